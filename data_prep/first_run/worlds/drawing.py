"""What the worlds draw with: textures, and soft-edged discs and boxes, on frames [S, S, 3] of 0 to 1."""

from __future__ import annotations

import numpy as np


def texture(cells: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw random brightness of cells x cells, enlarged: [side, side], mean 0, standard deviation 1."""
    enlarged = enlarge(rng.random((cells, cells)), side)
    normal: np.ndarray = (enlarged - enlarged.mean()) / enlarged.std()
    return normal


def enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """Enlarge [n, n] to [size, size], bilinear between pixel centres."""
    n = len(image)
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    low = np.minimum(at.astype(int), n - 2)
    weight = at - low
    rows = image[low] * (1 - weight)[:, None] + image[low + 1] * weight[:, None]
    enlarged: np.ndarray = rows[:, low] * (1 - weight) + rows[:, low + 1] * weight
    return enlarged


def background(side: int, brightness: float, contrast: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a coloured background, smooth and grained: [side, side, 3] around `brightness`."""
    layers = [0.8 * texture(3, side, rng) + 0.4 * texture(12, side, rng) for _ in range(3)]
    grain = 0.4 * texture(side // 2, side, rng)
    picture: np.ndarray = np.clip(brightness + contrast * (np.stack(layers, -1) + grain[..., None]), 0, 1)
    return picture


def disc(side: int, centre: np.ndarray, radius: float) -> np.ndarray:
    """Cover a disc around (x, y): [side, side], 1 inside and 0 outside, with an edge one pixel wide."""
    x, y = np.arange(side) - centre[0], np.arange(side) - centre[1]
    cover: np.ndarray = np.clip(radius + 0.5 - np.hypot(x[None], y[:, None]), 0, 1)
    return cover


def box(side: int, centre: tuple[float, float], half: tuple[float, float]) -> np.ndarray:
    """Cover an upright box around (x, y), `half` as wide and high: [side, side], as `disc`."""
    x, y = (np.clip(h + 0.5 - abs(np.arange(side) - c), 0, 1) for c, h in zip(centre, half, strict=True))
    cover: np.ndarray = y[:, None] * x[None]
    return cover


def paint(frame: np.ndarray, cover: np.ndarray, colour: np.ndarray | tuple[float, ...]) -> None:
    """Lay a colour, [3] or [S, S, 3], over a frame [S, S, 3] in place, as opaque as `cover` [S, S] says."""
    frame += cover[..., None] * (np.asarray(colour) - frame)


def mark(marks: np.ndarray, cover: np.ndarray, kind: int) -> None:
    """Write a number into marks, uint8 [S, S], in place, wherever `cover` [S, S] is at least a half."""
    marks[cover >= 0.5] = kind


def to_bytes(frame: np.ndarray) -> np.ndarray:
    """Round a frame of 0 to 1 to uint8."""
    rounded: np.ndarray = (255 * np.clip(frame, 0, 1)).astype(np.uint8)
    return rounded


def to_and_fro(way: np.ndarray, low: float, high: float) -> np.ndarray:
    """Fold a way back wherever it would leave low..high."""
    folded: np.ndarray = high - abs((way - low) % (2 * (high - low)) - (high - low))
    return folded
