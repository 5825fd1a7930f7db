"""Coloured shapes that turn, grow and drift over varied backgrounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from data_prep.first_run.worlds import drawing
from data_prep.first_run.worlds.world import World

SHAPES: Final = ("triangle", "square", "star", "cross", "ellipse")
TURNS: Final = {"clockwise": -1, "counter-clockwise": 1, "none": 0}
GROWTHS: Final = {"grows": 1, "shrinks": -1, "stays": 0}
NUM_ANGLES: Final = 360


@dataclass(frozen=True)
class Motion:
    """Hold where a shape is, in each frame, [T]: centre in pixels, angle in radians, size in pixels."""

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    size: np.ndarray


@dataclass(frozen=True)
class Shapes(World):
    """Hold what the world depends on."""

    name: ClassVar = "shapes"
    wanted: ClassVar = {"turn": tuple(TURNS), "growth": tuple(GROWTHS), "shape": SHAPES}

    num_films: int = 96
    film_frames: int = 300
    train_clips: int = 990
    selection_clips: int = 315
    val_clips: int = 495
    slowest_deg: float = 5.0  # of turning, per frame
    fastest_deg: float = 9.0
    least_growth: float = 0.035  # of the logarithm of the size, per frame
    most_growth: float = 0.06
    smallest_px: float = 9.0  # in the middle of a clip; half the width, about
    largest_px: float = 17.0
    drift_px: float = 0.7  # per frame
    leg_frames: int = 24  # of a film, in which a shape goes on as it does

    def clip(self, number: int, wanted: Mapping[str, str]) -> tuple[np.ndarray, dict[str, str]]:
        """Draw one or two shapes that do the same."""
        rng = self.rng(number)
        num = 1 + int(rng.integers(2))
        motions = [
            self._motion([(TURNS[wanted["turn"]], GROWTHS[wanted["growth"]])], self.clip_frames, self._home(i, num, rng), rng)
            for i in range(num)
        ]
        return self._draw([wanted["shape"]] * num, motions, rng), dict(wanted)

    def film(self, number: int, num_frames: int) -> np.ndarray:
        """Draw one or two shapes, each of its own kind, that go on in another way after every leg."""
        rng = self.rng(number)
        num, legs = 1 + int(rng.integers(2)), -(-num_frames // self.leg_frames)
        doings = [list(zip(rng.integers(-1, 2, legs), rng.integers(-1, 2, legs), strict=True)) for _ in range(num)]
        motions = [self._motion(doing, num_frames, self._home(i, num, rng), rng) for i, doing in enumerate(doings)]
        return self._draw([SHAPES[rng.integers(len(SHAPES))] for _ in range(num)], motions, rng)

    def _home(self, place: int, num: int, rng: np.random.Generator) -> tuple[float, float]:
        """Draw the place around which a shape drifts: anywhere near the middle, or of two, each in a corner."""
        corner = 0 if num == 1 else 0.22 * self.side_px * (1 if place else -1)
        x, y = self.side_px / 2 + corner + 4 * rng.uniform(-1, 1, 2)
        return float(x), float(y)

    def _motion(
        self, doings: list[tuple[int, int]], num_frames: int, home: tuple[float, float], rng: np.random.Generator
    ) -> Motion:
        """Move a shape through legs, each with a turn and a growth of -1, 0 or 1; sizes turn back at the limits."""
        leg = num_frames if len(doings) == 1 else self.leg_frames
        turns, growths = np.repeat(np.array(doings), leg, axis=0)[: num_frames].T.astype(float)
        turns *= np.repeat(rng.uniform(self.slowest_deg, self.fastest_deg, len(doings)), leg)[:num_frames]
        growths *= np.repeat(rng.uniform(self.least_growth, self.most_growth, len(doings)), leg)[:num_frames]
        smallest, largest = math.log(self.smallest_px), math.log(self.largest_px)
        middle = rng.uniform(smallest, largest)
        size = np.cumsum(growths) - np.cumsum(growths)[num_frames // 2] + middle
        if len(doings) > 1:
            size = largest - abs((size - smallest) % (2 * (largest - smallest)) - (largest - smallest))
        steps = np.repeat(rng.uniform(-1, 1, (len(doings), 2)), leg, axis=0)[:num_frames] * self.drift_px
        way = np.cumsum(steps, axis=0)
        way = 8 - abs((way + 8) % 32 - 16)  # to and fro, within 8 px
        angle = np.radians(rng.uniform(0, 360) + np.cumsum(turns))
        return Motion(home[0] + way[:, 0], home[1] + way[:, 1], angle, np.exp(size))

    def _draw(self, shapes: list[str], motions: list[Motion], rng: np.random.Generator) -> np.ndarray:
        """Draw shapes, striped in colours of their own, over a background: uint8 [T, S, S, 3]."""
        side = self.side_px
        standing = drawing.background(side, rng.uniform(0.25, 0.65), 0.13, rng)
        looks = [(rng.random(3), rng.random(3), rng.uniform(0.4, 1.0)) for _ in shapes]
        frames = np.empty((len(motions[0].x), side, side, 3), np.uint8)
        for number, frame in enumerate(frames):
            picture = standing.copy()
            for shape, motion, (colour, other, density) in zip(shapes, motions, looks, strict=True):
                x, y = np.arange(side)[None] - motion.x[number], motion.y[number] - np.arange(side)[:, None]
                angle, size = motion.angle[number], motion.size[number]
                far, at = np.hypot(x, y), np.arctan2(y, x) - angle
                cover = np.clip(size * _outline(shape)[(at * NUM_ANGLES / math.tau).astype(int) % NUM_ANGLES] + 0.5 - far, 0, 1)
                stripes = 0.5 + 0.5 * np.sin(density * 8 * far * np.cos(at) / size)
                drawing.paint(picture, cover, colour + 0.5 * stripes[..., None] * (other - colour))
            frame[:] = drawing.to_bytes(picture)
        return frames


def _outline(shape: str) -> np.ndarray:
    """Give the distance of the outline from the centre at every degree, of a shape of size 1: [360]."""
    angle = np.arange(NUM_ANGLES) * math.tau / NUM_ANGLES
    if shape == "ellipse":
        return 1 / np.hypot(np.cos(angle) / 1.15, np.sin(angle) / 0.6)
    if shape == "cross":
        arm = 0.33
        x, y = np.maximum(abs(np.cos(angle)), 1e-9), np.maximum(abs(np.sin(angle)), 1e-9)
        return np.maximum(np.minimum(1.1 / x, arm / y), np.minimum(arm / x, 1.1 / y))
    if shape == "star":
        corner = abs((angle + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5)  # from the nearest point of five
        inner = 0.42
        return 1.2 * inner * math.sin(math.pi / 5) / (np.sin(corner) * (1 - inner * math.cos(math.pi / 5)) + inner * math.sin(math.pi / 5) * np.cos(corner))
    sides = {"triangle": 3, "square": 4}[shape]
    corner = (angle % (math.tau / sides)) - math.pi / sides
    return {3: 1.25, 4: 1.1}[sides] * math.cos(math.pi / sides) / np.cos(corner)
