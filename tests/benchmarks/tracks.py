"""Read frames of a numbered LeRobot data set at random, and count those that are not the frames of their state.

PYTHONPATH=.:tests python tests/benchmarks/tracks.py FOLDER [--reads N]

`tests/benchmarks/lerobot_folder.py` writes FOLDER with the `lerobot` package. Clips come as in training, of random
episodes and cameras; half of the reads are of the first and the last frames of episodes, where the next one begins in
the same film.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numbered import COLUMNS, ROWS, numbers

from data_prep.scanning.build import build_index
from vjepa.config import Data
from vjepa.data.clip_index import ClipIndex
from vjepa.data.decode import read_frames
from vjepa.data.loader import train_loader
from vjepa.data.sources import open_sources

CLIP_FRAMES = 40  # of a batch of 10 clips of 4
CAMERAS = {"observation.images.left": 0, "observation.images.wrist": 1}


def wrong_in_training(index: ClipIndex, reads: int) -> int:
    """Count wrong frames among `reads` of training clips: their states name them."""
    data = Data.model_validate_json(
        json.dumps({
            "train": str(index.path), "num_frames": 4, "clip_fps": 5, "crop_px": [ROWS, COLUMNS], "fit": "squash",
            "actions": "delta", "workers": 1, "global_batch": 10,
        })
    )  # fmt: skip
    cameras, wrong = index.column("camera"), 0
    for batch in train_loader(open_sources(data), data, 0, range(-(-reads // CLIP_FRAMES))):
        assert batch.states is not None and batch.actions is not None and not batch.failures, batch.failures
        for clip, states, row in zip(batch.video.numpy(), batch.states.numpy(), batch.clip_ids.tolist(), strict=True):
            expected = [(int(state[0]), int(state[1]), CAMERAS[cameras[row]]) for state in states]
            wrong += sum(one != other for one, other in zip(numbers(clip.transpose(1, 2, 3, 0)), expected, strict=True))
        steps = batch.states[:, 1:, 1] - batch.states[:, :-1, 1]
        wrong += int((batch.actions[:, :, 1] != steps).sum())
    return wrong


def wrong_at_seams(index: ClipIndex, reads: int) -> int:
    """Count wrong frames among `reads` of the first and the last frame of episodes, one at a time."""
    rng, cameras, wrong = np.random.default_rng(0), index.column("camera"), 0
    for number in range(reads):
        i = int(rng.integers(len(index)))
        row = index.row(i)
        frame = row.num_frames - 1 if number % 2 else 0
        found = numbers(read_frames(row, np.array([frame]), None))
        wrong += found != [(int(row.tracks.state[frame, 0]), frame, CAMERAS[cameras[i]])]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reads", type=int, default=1000)
    given = parser.parse_args()
    index = build_index(given.folder, given.folder.with_suffix(".parquet"))
    half = given.reads // 2
    wrong = wrong_in_training(index, half) + wrong_at_seams(index, half)
    reads = -(-half // CLIP_FRAMES) * CLIP_FRAMES + half
    print(f"{given.folder}: {wrong} of {reads} reads wrong, {len(index)} episodes of two cameras")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
