from __future__ import annotations

import numpy as np

from vjepa.counter_rng import generator

SIDE_PX = 64
NUM_FRAMES = 16
FPS = 8
MOTIONS = ("east", "north-east", "north", "north-west", "west", "south-west", "south", "south-east")


def _resize(image, size):
    """bilinear [h,w] -> [size,size]"""
    n = image.shape[0]
    at = np.clip((np.arange(size) + .5) * n / size - .5, 0, n - 1)
    lo = np.floor(at).astype(int); hi = np.minimum(lo + 1, n - 1); w = at - lo
    rows = image[lo] * (1 - w)[:, None] + image[hi] * w[:, None]
    return rows[:, lo] * (1 - w) + rows[:, hi] * w


def render(image, motion, seed, video, copies=24, digit_px=12, speed=2.0, gap=12, canvas=96, noise=0.0, contrast=1.0, coarse=8, bg=0.5, side=64, slow=None, tex=1.0, fine=0.0, fine_n=24):
    rng = generator(seed, "demo", video)
    s = side
    back = np.stack([_resize(rng.random((coarse, coarse)), s) for _ in range(3)], -1) * bg + noise * rng.standard_normal((s, s, 3))
    if fine: back = back + fine * (np.stack([_resize(rng.random((fine_n, fine_n)), s)] * 3, -1) - .5)
    if slow: speed = rng.uniform(slow, speed)
    big = _resize(image, digit_px)
    layer = np.zeros((canvas, canvas)); placed = []
    for _ in range(copies * 20):
        if len(placed) == copies: break
        p = rng.integers(0, canvas, 2)
        if all(np.abs((p - q + canvas // 2) % canvas - canvas // 2).max() >= gap for q in placed):
            placed.append(p)
            layer[np.ix_((p[0] + np.arange(digit_px)) % canvas, (p[1] + np.arange(digit_px)) % canvas)] = big
    angle = motion * np.pi / 4
    start = rng.integers(0, canvas, 2)
    frames = np.empty((NUM_FRAMES, s, s, 3), np.uint8)
    for t in range(NUM_FRAMES):
        shift = (int(start[0]) + round(-np.sin(angle) * speed * t), int(start[1]) + round(np.cos(angle) * speed * t))
        moved = (np.roll(layer, shift, (0, 1))[:s, :s] * contrast)[..., None]
        frames[t] = np.clip(back * (1 - moved) + moved, 0, 1) * 255
    return frames
