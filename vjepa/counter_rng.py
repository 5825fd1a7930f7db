"""Randomness as arithmetic: every draw is a pure function of (seed, stream, counter); there is no state to save."""

from __future__ import annotations

from typing import Final

import numpy as np

# One number per use, so that no two uses ever share a stream. Numbers are never reused or reordered.
STREAMS: Final = {
    "order": 0,
    "frames": 1,
    "crop": 2,
    "masks": 3,
    "weights": 4,
    "replacement": 5,
    "demo": 6,
    "shuffled_frames": 7,
    "drop_path": 8,
    "turns": 9,
    "source_seeds": 10,
    "bootstrap": 11,
    "probe_views": 12,
    "probe_order": 13,
    "probe_weights": 14,
    "sigreg": 15,
    "monitor": 16,
    "paddles": 17,
    "bricks": 18,
    "shapes": 19,
    "camera": 20,
    "rand_augment": 22,
    "mix": 23,
    "tuner": 24,
    "tuner_views": 25,
    "shots": 30,
    "rooms": 40,
    "roll_out": 41,
    "planner": 42,
    "episodes": 43,
    "dense_probe": 44,
}


def generator(seed: int, stream: str, counter: int) -> np.random.Generator:
    """Make the generator of one thing: `generator(seed, "crop", sample)` is the same on every rank, worker and resume.

    Philox is a counter-based generator (Salmon et al. 2011): the key holds (seed, stream), the counter's third and
    fourth words hold `counter`, which leaves 2**128 draws before two counters could meet.
    """
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, STREAMS[stream]], dtype=np.uint64)
    start = np.array([0, 0, counter & 0xFFFFFFFFFFFFFFFF, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=start))


def source_seed(seed: int, source: int) -> int:
    """Derive the seed for the samples of one source of a mix, which count from 0 in each.

    Source 0, data.train, keeps `seed`.
    """
    return int(generator(seed, "source_seeds", source).integers(1 << 64, dtype="uint64")) if source else seed
