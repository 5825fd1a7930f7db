"""Pictures as files: what is written once, and what is refused."""

import numpy as np
import pytest

from data_prep.first_run import pictures
from data_prep.first_run.new_folder import new_folder
from vjepa.data.clip_index import ClipIndex
from vjepa.data.stills import read_image
from vjepa.errors import UserError


def test_pictures_are_written_once_with_their_columns_pixel_by_pixel(tmp_path):
    path, images = (
        tmp_path / "made" / "index.parquet",
        np.random.default_rng(0).integers(256, size=(4, 8, 8, 3), dtype=np.uint8),
    )
    pictures.prepare(path, images, {"label": "abab", "split": ["train", "train", "val", "val"]}, progress=False)
    index = ClipIndex.open(path)
    assert index.column("label") == list("abab") and index.select({"split": "val"}).tolist() == [2, 3]
    for number, image in enumerate(images):
        row = index.row(number)
        assert (row.num_frames, row.width, row.height) == (1, 8, 8)
        np.testing.assert_array_equal(read_image(row.uri), image)
    stamps = {file: file.stat().st_mtime_ns for file in path.parent.rglob("*")}
    pictures.prepare(path, images[:1], {}, progress=False)
    assert {file: file.stat().st_mtime_ns for file in path.parent.rglob("*")} == stamps
    path.unlink()
    with pytest.raises(UserError, match=r"made: exists without index\.parquet"):
        pictures.prepare(path, images, {}, progress=False)


@pytest.mark.fast
def test_a_folder_that_somebody_filled_meanwhile_is_left_alone(tmp_path):
    folder = tmp_path / "made"
    with pytest.raises(UserError, match="made: exists; choose another"), new_folder(folder, "exists") as partial:
        (partial / "own.txt").write_text("text")
        folder.mkdir()
        (folder / "precious.txt").write_text("text")
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "precious.txt"]
