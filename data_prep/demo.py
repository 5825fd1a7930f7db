"""The demo data set: real H.264 files in which what is shared across space can be learned.

In each video, copies of one handwritten digit (scikit-learn's `load_digits`) move together over a textured background
that stands still. Two labels: `motion`, one of 8 directions that no single frame tells apart, and `digit`. The splits
`train`, `selection` and `val` share no digit image; each of `train` makes two videos, each of the others one.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np

from data_prep.new_folder import new_folder
from vjepa.command import progress_bar
from vjepa.counter_rng import generator
from vjepa.errors import UserError

MOTIONS: Final = ("east", "north-east", "north", "north-west", "west", "south-west", "south", "south-east")
NUM_IMAGES: Final = 1797  # all of `load_digits`
SPLITS: Final = {"selection": 200, "val": 400}  # images; the rest is `train`
VIDEOS_PER_TRAIN_IMAGE: Final = 2
MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that the files depend on. Brightness and contrasts are shares of white."""

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


def prepare(index_path: Path, progress: bool = True) -> None:
    """Make the data set in the folder of `index_path`, once; afterwards verify its files by hash.

    Raises UserError where the folder holds something else, or a file was changed.
    """
    folder = index_path.parent
    if (folder / MANIFEST).is_file():
        _verify(folder, index_path)
        return
    from data_prep.index import build_index

    with new_folder(folder, "exists and is not the demo data set") as partial:
        (partial / "videos").mkdir()
        hashes = _write_videos(partial, progress)
        build_index(partial / "videos", partial / index_path.name, labels=partial / "labels.csv", progress=progress)
        (partial / MANIFEST).write_text(json.dumps({"recipe": asdict(Recipe()), "sha256": hashes}, indent=0))


def render(recipe: Recipe, image: np.ndarray, motion: int, video: int) -> np.ndarray:
    """Digit image [8, 8] in 0..1 and a direction 0..7 -> frames uint8 [T, S, S, 3] of video number `video`."""
    rng = generator(recipe.seed, "demo", video)
    side = recipe.side_px
    background = (
        recipe.brightness + recipe.shade * _texture(3, side, rng) + recipe.grain * _texture(side // 2, side, rng)
    )
    field = recipe.ink * _scatter(recipe, _enlarge(image, recipe.digit_px), rng)
    angle = math.radians(45 * motion + recipe.wobble_deg * rng.uniform(-1, 1))
    speed_px = rng.uniform(recipe.slowest_px, recipe.fastest_px)
    top, left = rng.integers(recipe.field_px, size=2)
    frames = np.empty((recipe.num_frames, side, side, 3), dtype=np.uint8)
    for number, frame in enumerate(frames):
        shift = (top - round(math.sin(angle) * speed_px * number), left + round(math.cos(angle) * speed_px * number))
        grey = background + np.roll(field, shift, axis=(0, 1))[:side, :side]
        frame[:] = (255 * np.clip(grey, 0, 1)).astype(np.uint8)[..., None]
    return frames


def _texture(cells: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Random brightness of cells x cells, enlarged: [side, side], mean 0, standard deviation 1."""
    texture = _enlarge(rng.random((cells, cells)), side)
    normal: np.ndarray = (texture - texture.mean()) / texture.std()
    return normal


def _scatter(recipe: Recipe, digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Copies of `digit` [d, d] at random places of a torus, none over another, as many as find room: [field_px,
    field_px].
    """
    size, digit_px = recipe.field_px, recipe.digit_px
    field, free = np.zeros((size, size)), np.ones((size, size), dtype=bool)
    for _ in range(recipe.num_copies):
        places = np.flatnonzero(free)
        if not len(places):
            break
        place = np.array(divmod(int(places[rng.integers(len(places))]), size))
        field[np.ix_(*((start + np.arange(digit_px)) % size for start in place))] = digit
        free[np.ix_(*((start + np.arange(1 - digit_px, digit_px)) % size for start in place))] = False
    return field


def _enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """[n, n] -> [size, size], bilinear between pixel centres."""
    n = len(image)
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    low = np.minimum(at.astype(int), n - 2)
    weight = at - low
    rows = image[low] * (1 - weight)[:, None] + image[low + 1] * weight[:, None]
    enlarged: np.ndarray = rows[:, low] * (1 - weight) + rows[:, low + 1] * weight
    return enlarged


def _write_videos(folder: Path, progress: bool) -> dict[str, str]:
    """All videos and labels.csv; returns the sha256 of each file by its name."""
    from sklearn.datasets import load_digits

    recipe, digits = Recipe(), load_digits()
    order = generator(recipe.seed, "demo", 1 << 32).permutation(len(digits.images))[:NUM_IMAGES]
    places = np.concatenate([order, *[order[sum(SPLITS.values()) :]] * (VIDEOS_PER_TRAIN_IMAGE - 1)]).tolist()
    jobs = [_Job(number, digits.images[place] / 16, number % len(MOTIONS)) for number, place in enumerate(places)]
    names = [f"{number:05d}.mp4" for number in range(len(jobs))]
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "motion", "digit", "image", "split"))
        for name, job, place, split in zip(names, jobs, places, _splits(len(jobs)), strict=True):
            table.writerow((name, MOTIONS[job.motion], digits.target[place], place, split))
    # not of the fork server, which would then lack the PyTorch that the loader's processes are forked with
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        paths = [folder / "videos" / name for name in names]
        hashes = pool.map(_write_video, repeat(recipe), jobs, paths, chunksize=16)
        return dict(
            zip(
                names,
                progress_bar(hashes, shown=progress, total=len(jobs), desc="demo videos", unit="file"),
                strict=True,
            )
        )


@dataclass(frozen=True)
class _Job:
    number: int
    image: np.ndarray
    motion: int


def _splits(num_videos: int) -> Iterator[str]:
    for name, num in SPLITS.items():
        yield from repeat(name, num)
    yield from repeat("train", num_videos - sum(SPLITS.values()))


def _write_video(recipe: Recipe, job: _Job, path: Path) -> str:
    """Encode one video as H.264 and return the sha256 of the file."""
    import av

    with av.open(str(path), "w") as container:
        options = {"crf": "16", "preset": "veryfast", "bf": "0", "threads": "1"}
        stream: Any = container.add_stream("libx264", rate=recipe.fps, options=options)
        stream.width = stream.height = recipe.side_px
        stream.pix_fmt = "yuv420p"
        for frame in render(recipe, job.image, job.motion, job.number):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return _sha256(path)


def _verify(folder: Path, index_path: Path) -> None:
    from vjepa.data.clip_index import SCHEMA_VERSION, index_version

    manifest = json.loads((folder / MANIFEST).read_text())
    remedy = f"delete the folder {folder} to have the demo data set written anew"
    if manifest["recipe"] != asdict(Recipe()) or index_version(index_path) != SCHEMA_VERSION:
        raise UserError(f"{folder}: holds the demo data set of another version of vjepa; {remedy}")
    for name, sha256 in manifest["sha256"].items():
        path = folder / "videos" / name
        if not path.is_file() or _sha256(path) != sha256:
            raise UserError(f"{path}: is not the file that was written, or is gone; {remedy}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
