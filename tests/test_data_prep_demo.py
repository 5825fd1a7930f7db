from __future__ import annotations

import json
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest

from data_prep.first_run import demo, video_set
from data_prep.first_run.digit_world import DigitVideo, DigitWorld, marks, render
from data_prep.first_run.video_set import prepare
from vjepa.data.clip_index import ClipIndex
from vjepa.errors import UserError

WORLD = DigitWorld()
DIGIT = np.zeros((8, 8))
DIGIT[1:7, 3:5] = 1.0


def refuse(*_: object) -> None:
    raise AssertionError("the fork server is the loader's")


@pytest.mark.fast
@pytest.mark.parametrize("motion", range(8))
def test_copies_move_together_in_their_direction(motion: int) -> None:
    """The shift of the whole picture that explains the next frame best is the direction of its label."""
    frames = render(WORLD, DigitVideo(3, DIGIT, motion)).astype(float).mean(axis=-1)
    before, after = frames[2] - frames[2].mean(), frames[5] - frames[5].mean()
    shifts = [(dy, dx) for dy in range(-9, 10) for dx in range(-9, 10)]
    score = {(dy, dx): (before[9:-9, 9:-9] * np.roll(after, (-dy, -dx), (0, 1))[9:-9, 9:-9]).sum() for dy, dx in shifts}
    dy, dx = max(score, key=lambda shift: score[shift])
    turned = np.degrees(np.arctan2(-dy, dx)) - 45 * motion
    assert abs((turned + 180) % 360 - 180) <= WORLD.wobble_deg + 12  # of a few whole pixels
    assert 3 * WORLD.slowest_px - 1 <= np.hypot(dy, dx) <= 3 * WORLD.fastest_px + 1


@pytest.mark.fast
def test_a_video_is_a_function_of_its_number() -> None:
    fifth, again, sixth = (render(WORLD, DigitVideo(number, DIGIT, motion=1)) for number in (5, 5, 6))
    np.testing.assert_array_equal(fifth, again)
    assert (fifth != sixth).any()


def test_files_are_written_once_verified_and_never_overwritten(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "SPLITS", {"selection": 4, "val": 8})
    monkeypatch.setattr(demo, "NUM_IMAGES", 24)
    monkeypatch.setattr(
        forkserver.ForkServer, "ensure_running", refuse
    )  # it belongs to the loader, which preloads PyTorch in it
    path = tmp_path / "demo" / "index.parquet"
    prepare(path, demo.Demo(), progress=False)
    index = ClipIndex.open(path)
    assert len(index) == len(index.select({})) == 36
    assert {split: len(index.select({"split": split})) for split in ("train", "selection", "val")} == {
        "train": 24,
        "selection": 4,
        "val": 8,
    }
    assert set(index.column("motion")) == set(demo.MOTIONS)
    images = {
        split: {index.column("image")[row] for row in index.select({"split": split})}
        for split in ("train", "selection", "val")
    }
    assert [len(images[split]) for split in images] == [12, 4, 8] and len(
        set.union(*images.values())
    ) == 24  # splits share no image
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "demo").rglob("*")}
    prepare(path, demo.Demo(), progress=False)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "demo").rglob("*")} == stamps

    changed = tmp_path / "demo" / "videos" / "00003.mp4"
    original = changed.read_bytes()
    changed.write_bytes(b"x")
    with pytest.raises(UserError, match=r"00003.mp4: is not the file that was written"):
        prepare(path, demo.Demo(), progress=False)
    changed.write_bytes(original)
    manifest = tmp_path / "demo" / "manifest.json"
    stored = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**stored, "recipe": {}}))
    with pytest.raises(UserError, match="another version of vjepa"):
        prepare(path, demo.Demo(), progress=False)
    manifest.write_text(json.dumps(stored))
    monkeypatch.setattr(video_set, "SCHEMA_VERSION", video_set.SCHEMA_VERSION + 1)
    with pytest.raises(UserError, match="another version of vjepa; delete the folder"):
        prepare(path, demo.Demo(), progress=False)


@pytest.mark.fast
def test_a_folder_of_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match="exists and is not the demo data set"):
        prepare(tmp_path / "index.parquet", demo.Demo(), progress=False)
    with pytest.raises(UserError, match="exists and is not the demo data set"):
        prepare(tmp_path / "holiday.mp4" / "index.parquet", demo.Demo(), progress=False)
    with pytest.raises(UserError, match="needs a folder of its own"):
        prepare(Path("index.parquet"), demo.Demo(), progress=False)


@pytest.mark.fast
def test_marks_are_the_ink_of_the_digits():
    video = DigitVideo(3, DIGIT, motion=2)
    frames, found = render(WORLD, video)[..., 0].astype(int), marks(WORLD, video, 7)
    assert set(np.unique(found)) == {0, 8} and found.shape == frames.shape
    assert frames[found == 8].mean() > frames[found == 0].mean() + 60
    assert (np.percentile(frames[found == 0], 99)) < np.median(frames[found == 8])
