"""Fixtures that several rooms share."""

import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_prep.listing.entry import Entry
from data_prep.scanning.build import build_index
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scan import scan


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz-copies",
        type=int,
        default=60,
        metavar="N",
        help="damaged files that the scan has to survive (default: 60)",
    )


def pytest_configure():
    """One thread for all that is tested: as many sums as workers of pytest at a time, in one order on any machine, so
    that what one process computes can be compared by its bits with what several do.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # read when PyTorch is imported


def scanned(path):
    """The row of the clip index that the scan of a file gives."""
    return scan(Entry(str(path), path.name), ScanOptions())[0]


def level(i):
    """The grey level of frame i in the videos of `make_video`: another one for each of 43 frames, far from those of its
    neighbours.
    """
    return 20 + i * 17 % 43 * 5


def brightest_quarter(frame):
    """Name the quarter of a picture [H, W] that is brightest."""
    y, x = frame.shape[0] // 4, frame.shape[1] // 4
    quarters = {
        "top left": frame[:y, :x],
        "top right": frame[:y, -x:],
        "bottom left": frame[-y:, :x],
        "bottom right": frame[-y:, -x:],
    }
    return max(quarters, key=lambda place: quarters[place].mean())


@pytest.fixture
def make_video(tmp_path):
    """make_video("a/b.mp4", num_frames) writes grey frames whose brightness is `level(i)` and returns the path.

    times_ms: one timestamp per frame, for a variable rate; rotation: degrees of the display matrix; mark: a white top
    left quarter; aspect: width over height of a pixel; gop: frames from one keyframe to the next.
    """

    def make(name, num_frames=16, fps=8, size=(64, 64), times_ms=None, rotation=0, mark=False, aspect=None, gop=12):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = size
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps, options={"g": str(gop), "preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if times_ms is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            if rotation:
                stream.set_display_rotation(rotation)
            for i in range(num_frames):
                picture = np.full((height, width, 3), level(i), np.uint8)
                if mark:
                    picture[: height // 2, : width // 2] = 255
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if times_ms is not None:
                    frame.pts, frame.time_base = times_ms[i], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """Folders that `make_index` has made, by what they are of: the next test of the same gets a copy."""
    return tmp_path_factory.mktemp("kept"), {}


@pytest.fixture
def make_index(make_video, tmp_path, kept):
    """make_index([{"label": "a", ...}, ...], num_frames=6) indexes as many videos with these values of columns, every
    other one marked; returns its path.
    """

    def make(rows, **video):
        root, made = kept
        key = repr((rows, video))
        if key not in made:
            lines = [["file", *rows[0]]]
            for number, values in enumerate(rows):
                make_video(f"clips/{number:02}.mp4", mark=number % 2 == 0, **video)
                lines.append([f"{number:02}.mp4", *values.values()])
            (tmp_path / "labels.csv").write_text("\n".join(map(",".join, lines)))
            index = tmp_path / "clips.parquet"
            build_index(tmp_path / "clips", index, labels=tmp_path / "labels.csv", workers=1, progress=False)
            made[key] = root / str(len(made))
            for name in ("clips", "labels.csv", "clips.parquet"):
                copy(tmp_path / name, made[key] / name)
        else:
            copy(made[key], tmp_path)
        return tmp_path / "clips.parquet"

    return make


def copy(source, place):
    """Copy a file or a folder with its times, which an index knows."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, place, dirs_exist_ok=True)
    else:
        shutil.copy2(source, place)


@pytest.fixture
def clips(make_index) -> Path:
    """An index of 12 short videos with labels and splits."""
    splits = ["train"] * 6 + ["selection"] * 2 + ["val"] * 4
    rows = [{"label": "plain" if i % 2 else "marked", "split": split} for i, split in enumerate(splits)]
    return make_index(rows, num_frames=8, size=(32, 32))


@pytest.fixture
def images(tmp_path) -> Path:
    """An index of 4 images."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{number}.png")
    build_index(tmp_path / "images", tmp_path / "images.parquet", workers=1, progress=False)
    return tmp_path / "images.parquet"
