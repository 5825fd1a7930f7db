"""The demo data set: real H.264 files in which what is shared across space can be learned.

In each video, copies of one handwritten digit (scikit-learn's `load_digits`) move together over a textured background
that stands still. Two labels: `motion`, one of 8 directions that no single frame tells apart, and `digit`. The splits
`train`, `selection` and `val` share no digit image; each of `train` makes two videos, each of the others one.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np

from data_prep.first_run.digit_world import DigitVideo, DigitWorld, write_video
from data_prep.first_run.new_folder import new_folder
from data_prep.scanning.build import build_index
from vjepa.command import progress_bar
from vjepa.counter_rng import generator
from vjepa.data.clip_index import SCHEMA_VERSION, index_version
from vjepa.data.images import handwritten_digits
from vjepa.errors import UserError

MOTIONS: Final = ("east", "north-east", "north", "north-west", "west", "south-west", "south", "south-east")
NUM_IMAGES: Final = 1797  # all of `load_digits`
SPLITS: Final = {"selection": 200, "val": 400}  # images; the rest is `train`
VIDEOS_PER_TRAIN_IMAGE: Final = 2
MANIFEST: Final = "manifest.json"


def prepare(index_path: Path, progress: bool = True) -> None:
    """Make the data set in the folder of `index_path`, once; afterwards verify its files by hash.

    Raises UserError where the folder holds something else, or a file was changed.
    """
    folder = index_path.parent
    if (folder / MANIFEST).is_file():
        _verify(folder, index_path)
        return
    with new_folder(folder, "exists and is not the demo data set") as partial:
        (partial / "videos").mkdir()
        hashes = _write_videos(partial, progress)
        build_index(partial / "videos", partial / index_path.name, labels=partial / "labels.csv", progress=progress)
        (partial / MANIFEST).write_text(json.dumps({"recipe": asdict(DigitWorld()), "sha256": hashes}, indent=0))


def _write_videos(folder: Path, progress: bool) -> dict[str, str]:
    """Write all videos and labels.csv, and give the sha256 of each video by its name."""
    world, (images, digits) = DigitWorld(), handwritten_digits()
    order = generator(world.seed, "demo", 1 << 32).permutation(len(images))[:NUM_IMAGES]
    places = np.concatenate([order, *[order[sum(SPLITS.values()) :]] * (VIDEOS_PER_TRAIN_IMAGE - 1)]).tolist()
    videos = [DigitVideo(i, images[place] / 16, i % len(MOTIONS)) for i, place in enumerate(places)]
    paths = [folder / "videos" / f"{video.number:05d}.mp4" for video in videos]
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "motion", "digit", "image", "split"))
        for path, video, place, split in zip(paths, videos, places, _splits(len(videos)), strict=True):
            table.writerow((path.name, MOTIONS[video.motion], digits[place], place, split))
    # not of the fork server, which would then lack the PyTorch that the loader's processes are forked with
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        written = pool.map(write_video, repeat(world), videos, paths, chunksize=16)
        for _ in progress_bar(written, shown=progress, total=len(videos), desc="demo videos", unit="file"):
            pass
    return {path.name: _sha256(path) for path in paths}


def _splits(num_videos: int) -> Iterator[str]:
    for name, num in SPLITS.items():
        yield from repeat(name, num)
    yield from repeat("train", num_videos - sum(SPLITS.values()))


def _verify(folder: Path, index_path: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    remedy = f"delete the folder {folder} to have the demo data set written anew"
    if manifest["recipe"] != asdict(DigitWorld()) or index_version(index_path) != SCHEMA_VERSION:
        raise UserError(f"{folder}: holds the demo data set of another version of vjepa; {remedy}")
    for name, sha256 in manifest["sha256"].items():
        path = folder / "videos" / name
        if not path.is_file() or _sha256(path) != sha256:
            raise UserError(f"{path}: is not the file that was written, or is gone; {remedy}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
