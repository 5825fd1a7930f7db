"""The world of the demo data set: copies of one handwritten digit that move together over a background at rest.

Which frames a video has is a function of `DigitWorld` and of its number alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from vjepa.counter_rng import generator


@dataclass(frozen=True)
class DigitWorld:
    """Hold everything that the files depend on. Brightness and contrasts are shares of white."""

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
    background = world.brightness + world.shade * _texture(3, side, rng) + world.grain * _texture(side // 2, side, rng)
    field = world.ink * _scatter(world, _enlarge(video.image, world.digit_px), rng)
    angle = math.radians(45 * video.motion + world.wobble_deg * rng.uniform(-1, 1))
    speed_px = rng.uniform(world.slowest_px, world.fastest_px)
    top, left = rng.integers(world.field_px, size=2)
    frames = np.empty((world.num_frames, side, side, 3), dtype=np.uint8)
    for number, frame in enumerate(frames):
        shift = (top - round(math.sin(angle) * speed_px * number), left + round(math.cos(angle) * speed_px * number))
        grey = background + np.roll(field, shift, axis=(0, 1))[:side, :side]
        frame[:] = (255 * np.clip(grey, 0, 1)).astype(np.uint8)[..., None]
    return frames


def _texture(cells: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw random brightness of cells x cells, enlarged: [side, side], mean 0, standard deviation 1."""
    texture = _enlarge(rng.random((cells, cells)), side)
    normal: np.ndarray = (texture - texture.mean()) / texture.std()
    return normal


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


def _enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """Enlarge [n, n] to [size, size], bilinear between pixel centres."""
    n = len(image)
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    low = np.minimum(at.astype(int), n - 2)
    weight = at - low
    rows = image[low] * (1 - weight)[:, None] + image[low + 1] * weight[:, None]
    enlarged: np.ndarray = rows[:, low] * (1 - weight) + rows[:, low + 1] * weight
    return enlarged


def write_video(world: DigitWorld, video: DigitVideo, path: Path) -> None:
    """Encode one video as H.264."""
    with av.open(str(path), "w") as container:
        options = {"crf": "16", "preset": "veryfast", "bf": "0", "threads": "1"}
        stream: Any = container.add_stream("libx264", rate=world.fps, options=options)
        stream.width = stream.height = world.side_px
        stream.pix_fmt = "yuv420p"
        for frame in render(world, video):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
