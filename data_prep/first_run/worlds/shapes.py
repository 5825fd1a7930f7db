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
    things: ClassVar = SHAPES
    wanted: ClassVar = {"turn": tuple(TURNS), "growth": tuple(GROWTHS), "shape": SHAPES}

    version: int = 2
    num_films: int = 96
    film_frames: int = 300
    train_clips: int = 990
    selection_clips: int = 315
    val_clips: int = 495
    slowest_deg: float = 7.0  # of turning, per frame
    fastest_deg: float = 12.0
    least_growth: float = 0.04  # of the logarithm of the size, per frame
    most_growth: float = 0.07
    smallest_px: float = 11.0  # in the middle of a clip; half the width, about
    largest_px: float = 18.0
    drift_px: float = 0.7  # per frame
    leg_frames: int = 24  # of a film, in which a shape goes on as it does

    def clip(self, number: int, wanted: Mapping[str, str]) -> tuple[np.ndarray, dict[str, str]]:
        """Draw one or two shapes that do the same."""
        rng = self.rng(number)
        motions = self._motions(wanted, rng)
        return self._draw([wanted["shape"]] * len(motions), motions, rng), dict(wanted)

    def marks(self, number: int, wanted: Mapping[str, str]) -> np.ndarray:
        """Mark the shapes, as they are drawn: uint8 [T, S, S]."""
        kind = 1 + SHAPES.index(wanted["shape"])
        marks = np.zeros((self.clip_frames, self.side_px, self.side_px), np.uint8)
        for motion in self._motions(wanted, self.rng(number)):
            for frame, found in enumerate(marks):
                drawing.mark(found, _place(wanted["shape"], motion, frame, self.side_px)[0], kind)
        return marks

    def _motions(self, wanted: Mapping[str, str], rng: np.random.Generator) -> list[Motion]:
        """Move the one or two shapes of a clip."""
        num = 1 + int(rng.integers(2))
        doing = [(TURNS[wanted["turn"]], GROWTHS[wanted["growth"]])]
        return [self._motion(doing, self.clip_frames, self._home(i, num, rng), rng) for i in range(num)]

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
        turns, growths = np.array(doings, dtype=float).T
        turns *= rng.uniform(self.slowest_deg, self.fastest_deg, len(doings))
        growths *= rng.uniform(self.least_growth, self.most_growth, len(doings))
        steps = np.stack([turns, growths, *(self.drift_px * rng.uniform(-1, 1, (2, len(doings))))])
        turned, size, x, y = np.cumsum(np.repeat(steps, leg, axis=1)[:, :num_frames], axis=1)
        limits = math.log(self.smallest_px), math.log(self.largest_px)
        size += rng.uniform(*limits) - size[num_frames // 2]
        if len(doings) > 1:
            size = drawing.to_and_fro(size, *limits)
        x, y = (start + drawing.to_and_fro(way, -8, 8) for start, way in zip(home, (x, y), strict=True))
        return Motion(x, y, np.radians(rng.uniform(0, 360) + turned), np.exp(size))

    def _draw(self, shapes: list[str], motions: list[Motion], rng: np.random.Generator) -> np.ndarray:
        """Draw shapes, striped in colours of their own, over a background: uint8 [T, S, S, 3].

        They are lighter than it, or all darker.
        """
        side, inverted = self.side_px, rng.integers(2) == 1
        standing = drawing.background(side, rng.uniform(0.1, 0.35), 0.05, rng)
        looks = [(rng.uniform(0.6, 1, 3), rng.uniform(0.3, 0.9, 3), rng.uniform(3, 8)) for _ in shapes]
        frames = np.empty((len(motions[0].x), side, side, 3), np.uint8)
        for number, frame in enumerate(frames):
            picture = standing.copy()
            for shape, motion, (colour, other, stripes) in zip(shapes, motions, looks, strict=True):
                cover, along = _place(shape, motion, number, side)
                mixed = 0.2 + 0.2 * np.sin(stripes * along)[..., None]
                drawing.paint(picture, cover, colour + mixed * (other - colour))
            frame[:] = drawing.to_bytes(1 - picture if inverted else picture)
        return frames


def _place(shape: str, motion: Motion, frame: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Cover a shape where it is in a frame, as `drawing.disc`, and measure along its own axis, in its sizes: [S, S]."""
    right, up = np.arange(side)[None] - motion.x[frame], motion.y[frame] - np.arange(side)[:, None]
    far, angle = np.hypot(right, up), np.arctan2(up, right) - motion.angle[frame]
    edge = motion.size[frame] * OUTLINES[shape][(angle * NUM_ANGLES / math.tau).astype(int) % NUM_ANGLES]
    return np.clip(edge + 0.5 - far, 0, 1), far * np.cos(angle) / motion.size[frame]


def _polygon(corners: list[tuple[float, float]]) -> np.ndarray:
    """Measure from the centre to a polygon of corners (distance, degrees) around it, at every degree: [360]."""
    far, at = np.array([*corners, (corners[0][0], 360 + corners[0][1])]).T
    x, y = far * np.cos(np.radians(at)), far * np.sin(np.radians(at))
    degrees = np.arange(NUM_ANGLES)
    side = np.searchsorted(at, degrees, side="right") - 1
    dx, dy, ray = x[side + 1] - x[side], y[side + 1] - y[side], np.radians(degrees)
    distance: np.ndarray = (x[side] * dy - y[side] * dx) / (np.cos(ray) * dy - np.sin(ray) * dx)
    return distance


_ANGLE: Final = np.radians(np.arange(NUM_ANGLES))
OUTLINES: Final = {
    "triangle": _polygon([(1.25, 120 * k) for k in range(3)]),
    "square": _polygon([(1.1, 90 * k) for k in range(4)]),
    "star": _polygon([(0.5 if k % 2 else 1.2, 36 * k) for k in range(10)]),
    "cross": _polygon(
        [
            point
            for k in range(4)
            for point in ((1.15, 90 * k), (1.15, 90 * k + 17), (0.47, 90 * k + 45), (1.15, 90 * k + 73))
        ]
    ),
    "ellipse": 1 / np.hypot(np.cos(_ANGLE) / 1.15, np.sin(_ANGLE) / 0.6),
}
