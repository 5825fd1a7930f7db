"""The right frames, upright, from every decoder; every failure a DecodeError."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import level
from PIL import Image

from data_prep.scan import scan
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.decode import DecodeError, read_frames


@pytest.fixture
def row_of(tmp_path):
    def row_of(path, **changes):
        write_index(tmp_path / "x.parquet", [{"uri": path.name, "label_id": -1} | scan(path)])
        return dataclasses.replace(ClipIndex.open(tmp_path / "x.parquet").row(0), **changes)

    return row_of


def numbers(frames):
    """Frame numbers below 43, read off the brightness."""
    levels = np.array([level(i) for i in range(43)])
    return np.abs(levels - frames.mean((1, 2, 3))[:, None]).argmin(1).tolist()


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("ids", [[0, 4, 8, 39], [39, 0, 17], [7], [5, 5, 6, 6, 6], list(range(40))])
@pytest.mark.fast
def test_delivers_the_wanted_frames_in_the_wanted_order(make_video, row_of, decoder, ids):
    row = row_of(make_video("a.mp4", 40), decoder=decoder)
    frames = read_frames(row, np.array(ids))
    assert frames.dtype == np.uint8 and frames.shape == (len(ids), 64, 64, 3)
    assert numbers(frames) == ids


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize(("rotation", "corner"), [(90, "bottom left"), (-90, "top right"), (180, "bottom right"), (0, "top left")])
@pytest.mark.fast
def test_frames_are_upright(make_video, row_of, decoder, rotation, corner):
    row = row_of(make_video("a.mp4", 4, size=(96, 64), rotation=rotation, mark=True), decoder=decoder)
    frame = read_frames(row, np.array([0]))[0, ..., 0].astype(int)
    assert frame.shape == ((96, 64) if rotation % 180 else (64, 96)) == (row.height, row.width)
    quarters = {"top left": frame[4:20, 4:20], "top right": frame[4:20, -20:-4], "bottom left": frame[-20:-4, 4:20], "bottom right": frame[-20:-4, -20:-4]}
    assert max(quarters, key=lambda place: quarters[place].mean()) == corner


@pytest.mark.parametrize(("aspect", "size"), [(Fraction(3, 2), (96, 48)), (Fraction(1, 2), (64, 96))])
@pytest.mark.fast
def test_pixels_are_made_square(make_video, row_of, aspect, size):
    row = row_of(make_video("a.mp4", 4, size=(64, 48), aspect=aspect))
    assert (row.width, row.height) == size and row.decoder == "pyav"
    assert read_frames(row, np.array([0, 1])).shape == (2, size[1], size[0], 3)


@pytest.mark.fast
def test_a_still_is_one_frame_turned_by_its_exif(tmp_path, row_of):
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    frames = read_frames(row_of(tmp_path / "a.png"), np.array([0, 0]))
    assert (frames == np.rot90(picture, -1)).all() and frames.shape == (2, 9, 6, 3)


@pytest.mark.fast
def test_every_failure_is_a_decode_error(make_video, row_of, tmp_path):
    row = row_of(make_video("a.mp4", 8))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    still = row_of(tmp_path / "a.png")
    (tmp_path / "garbage.mp4").write_bytes(b"no video " * 100)
    (tmp_path / "short.mp4").write_bytes(Path(row.uri).read_bytes()[:600])
    for decoder in ("pyav", "decord", "image"):
        for path in ("garbage.mp4", "short.mp4", "missing.mp4", "."):
            with pytest.raises(DecodeError, match=r"^.+$"):
                read_frames(dataclasses.replace(row, uri=str(tmp_path / path), decoder=decoder), np.array([0]))
    for wrong in ([8], [-1, 0]):
        with pytest.raises(DecodeError, match="wanted, it has 8"):
            read_frames(row, np.array(wrong))
    for decoder in ("pyav", "decord"):  # the file became shorter, or smaller, since its scan: no hang, no wrong frame
        with pytest.raises(DecodeError, match=r"8|9"):
            read_frames(dataclasses.replace(row, num_frames=99, decoder=decoder), np.array([9]))
        with pytest.raises(DecodeError, match="changed"):
            read_frames(dataclasses.replace(row, width=32, decoder=decoder), np.array([0]))
    with pytest.raises(DecodeError, match="changed"):
        read_frames(dataclasses.replace(still, width=32), np.array([0]))
