"""The world of the demo data set: copies of one handwritten digit that move together over a background at rest.

Which frames a video has is a function of `DigitWorld` and of its number alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from data_prep.first_run.worlds.drawing import enlarge, texture
from vjepa.counter_rng import generator

_INKED: Final = 0.3  # of the darkest ink: where a pixel belongs to a digit


@dataclass(frozen=True)
class DigitWorld:
    """Hold everything that the files depend on. Brightness and contrasts are shares of white."""

    version: int = 1
    seed: int = 2
    side_px: int = 64
    num_frames: int = 16
    fps: int = 8
    digit_px: int = 12
    num_copies: int = 58
    field_px: int = 128  # the copies lie on a torus of this size, of which the video shows a part
    slowest_px: float = 1.4  # per frame
    fastest_px: float = 2.4
    wobble_deg: float = 12.0  # how far a direction may be from that of its label
    brightness: float = 0.25
    ink: float = 0.65
    shade: float = 0.05  # standard deviation of a smooth background
    grain: float = 0.04  # standard deviation of a fine one


@dataclass(frozen=True)
class DigitVideo:
    """Name one video. image: of its digit, [8, 8] in 0..1. motion: direction 0..7, counter-clockwise from the east."""

    number: int
    image: np.ndarray
    motion: int


def render(world: DigitWorld, video: DigitVideo) -> np.ndarray:
    """Draw the frames of a video: uint8 [T, S, S, 3]."""
    rng = generator(world.seed, "demo", video.number)
    side = world.side_px
    background = world.brightness + world.shade * texture(3, side, rng) + world.grain * texture(side // 2, side, rng)
    frames = np.empty((world.num_frames, side, side, 3), dtype=np.uint8)
    for frame, copies in zip(frames, _move(world, video, rng), strict=True):
        frame[:] = (255 * np.clip(background + world.ink * copies, 0, 1)).astype(np.uint8)[..., None]
    return frames


def marks(world: DigitWorld, video: DigitVideo, digit: int) -> np.ndarray:
    """Say where the copies are, as they are drawn: uint8 [T, S, S], 0 for the ground, else 1 + digit."""
    rng = generator(world.seed, "demo", video.number)
    for cells in (3, world.side_px // 2):  # the ground is drawn first
        texture(cells, world.side_px, rng)
    inked = _move(world, video, rng) >= _INKED
    return (inked * (1 + digit)).astype(np.uint8)


def _move(world: DigitWorld, video: DigitVideo, rng: np.random.Generator) -> np.ndarray:
    """Move the copies of the digit over the frames: ink of 0 to 1, [T, S, S]."""
    side, field = world.side_px, _scatter(world, enlarge(video.image, world.digit_px), rng)
    angle = math.radians(45 * video.motion + world.wobble_deg * rng.uniform(-1, 1))
    speed_px = rng.uniform(world.slowest_px, world.fastest_px)
    top, left = rng.integers(world.field_px, size=2)
    frames = np.empty((world.num_frames, side, side))
    for number, frame in enumerate(frames):
        shift = (top - round(math.sin(angle) * speed_px * number), left + round(math.cos(angle) * speed_px * number))
        frame[:] = np.roll(field, shift, axis=(0, 1))[:side, :side]
    return frames


def _scatter(world: DigitWorld, digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put copies of `digit` [d, d] at random places of a torus [field_px, field_px].

    None lies over another, and there are as many as find room.
    """
    size, digit_px = world.field_px, world.digit_px
    field, free = np.zeros((size, size)), np.ones((size, size), dtype=bool)
    for _ in range(world.num_copies):
        places = np.flatnonzero(free)
        if not len(places):
            break
        place = np.array(divmod(int(places[rng.integers(len(places))]), size))
        field[np.ix_(*((start + np.arange(digit_px)) % size for start in place))] = digit
        free[np.ix_(*((start + np.arange(1 - digit_px, digit_px)) % size for start in place))] = False
    return field
