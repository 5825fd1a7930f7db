"""Scanning a file: what is measured is true, the decoder that is chosen is exact, and no file hangs or stops a scan."""

import contextlib
import dataclasses
import hashlib
import os
import struct
import textwrap
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from conftest import brightest_quarter, level
from PIL import Image

from data_prep.engines import in_processes
from data_prep.listing.entry import Entry
from data_prep.listing.places import file_facts
from data_prep.scanning import random_access, scanner
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scan import scan
from data_prep.scanning.scanner import Scan
from data_prep.scanning.track import true_times
from vjepa.data import decode
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.frame_times import frame_ids_at
from vjepa.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
TENTHS = np.arange(30) / 10


def entry(path, **changes):
    return Entry(**{"uri": str(path), "name": Path(path).name} | changes)


def scan_all(entries, workers=1, deadline_s=60.0):
    """The rows of each file, in order, by children that can be killed."""
    numbered = in_processes(enumerate(entries), Scan(ScanOptions(), deadline_s), workers)
    return [found.clips(ScanOptions()) for _, found in sorted(numbered, key=lambda answer: answer[0])]


def scan_file(path, **changes):
    (row,) = scan(
        entry(path, **changes), ScanOptions(), excluded=["torchcodec"]
    )  # it imports PyTorch, which takes seconds
    return row


@pytest.fixture
def row_of(tmp_path):
    def row_of(path, row):
        write_index(tmp_path / "x.parquet", [{"uri": str(path), "label_id": -1} | row])
        return ClipIndex.open(tmp_path / "x.parquet").row(0)

    return row_of


def write_video(path, pictures, codec="libx264", fps=10, pix_fmt="yuv420p", options=None):
    """uint8 [H, W, 3] pictures in a file, of changing size where the container can."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def grey(value, size=(48, 64)):
    return np.full((*size, 3), value, np.uint8)


@pytest.mark.fast
def test_measures_rate_times_keyframes_and_size(make_video):
    path = make_video("a.mp4", 30, fps=10, size=(64, 32), gop=10)
    row = scan_file(path)
    assert row["status"] == "ok" and row["times_s"] is None
    assert (row["num_frames"], row["fps"], row["width"], row["height"]) == (30, pytest.approx(10), 64, 32)
    assert row["end_s"] - row["start_s"] == pytest.approx(3.0)
    assert row["keyframes_s"] == pytest.approx([0, 1, 2])
    assert (row["codec"], row["bit_depth"], row["rotation"], row["sample_aspect"], row["first_frame"]) == (
        "h264",
        8,
        0,
        1.0,
        0,
    )
    assert row["content_hash"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (row["file_bytes"], row["modified_ns"]) == (path.stat().st_size, path.stat().st_mtime_ns)


@pytest.mark.fast
def test_rotation_aspect_and_the_size_that_follows(make_video):
    row = scan_file(make_video("a.mp4", 4, size=(96, 64), rotation=90))
    assert (row["rotation"], row["width"], row["height"]) == (90, 64, 96)
    row = scan_file(make_video("b.mp4", 4, size=(64, 48), aspect=Fraction(3, 2)))
    assert (row["sample_aspect"], row["width"], row["height"]) == (1.5, 96, 48)


@pytest.mark.fast
def test_bit_depth_is_that_of_the_pixels(tmp_path):
    pictures = [grey(level(i)) for i in range(4)]
    assert scan_file(write_video(tmp_path / "a.mkv", pictures, "ffv1", pix_fmt="yuv420p10le"))["bit_depth"] == 10
    assert scan_file(write_video(tmp_path / "b.gif", pictures, "gif", pix_fmt="rgb8"))["bit_depth"] == 8


@pytest.mark.fast
def test_keeps_the_times_of_a_variable_rate(make_video):
    times_ms = [200, 240, 280, 700, 720, 1200, 1240, 1280]
    row = scan_file(make_video("a.mkv", 8, times_ms=times_ms))
    assert row["times_s"] == pytest.approx([ms / 1000 for ms in times_ms], abs=1e-3) and row[
        "start_s"
    ] == pytest.approx(0.2, abs=1e-3)
    assert row["fps"] == pytest.approx(7 / 1.08, rel=1e-3)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([0.0, 0.2, 0.1, 0.3], [0.0, 0.1, 0.2, 0.3]),
        ([None, None, None], [0.0, 0.1, 0.2]),
        ([1.0, None, 1.2], [1.0, 1.1, 1.2]),
    ],
)
def test_times_ascend_whatever_the_container_says(seconds, expected):
    times, clock_starts = true_times(np.array(seconds, float), 10.0)
    assert times.tolist() == pytest.approx(expected) and clock_starts == []


@pytest.mark.fast
@pytest.mark.parametrize(
    ("seconds", "starts", "expected"),
    [
        ([*TENTHS, *TENTHS], [30], [*TENTHS, *(3 + TENTHS)]),  # `cat a.ts b.ts`
        ([*(9 + TENTHS), *TENTHS, *(50 + TENTHS)], [30, 60], [*(9 + TENTHS), *(12 + TENTHS), *(62 + TENTHS)]),
        ([*TENTHS, *(12.9 + TENTHS)], [30], [*TENTHS, *(12.9 + TENTHS)]),  # a pause
        ([*TENTHS, *(3.9 + TENTHS)], [], [*TENTHS, *(3.9 + TENTHS)]),  # a second is no pause
        (np.cumsum([0.1, 0.1, 2.0] * 9), [], np.cumsum([0.1, 0.1, 2.0] * 9)),  # a screen that often stands still
        ([0.0, 5.0, 10.0, 15.0], [], [0.0, 5.0, 10.0, 15.0]),
        ([0.0, 0.0, 0.0], [], [0.0, 0.0, 0.0]),
    ],
)
def test_a_clock_that_jumps_begins_a_stretch(seconds, starts, expected):
    times, found = true_times(np.array(seconds, float), 10.0)
    assert found == starts and times.tolist() == pytest.approx(list(expected))


@pytest.mark.fast
def test_no_clip_crosses_the_seam_of_two_recordings(make_video, row_of, tmp_path):
    parts = [make_video(f"{name}.ts", 30, fps=10, mark=mark) for name, mark in (("a", True), ("b", False))]
    seam = tmp_path / "seam.ts"
    seam.write_bytes(b"".join(part.read_bytes() for part in parts))
    rows = scan(Entry(str(seam), seam.name), ScanOptions())
    assert [(row["first_frame"], row["num_frames"], row["cut_at"]) for row in rows] == [
        (0, 30, None),
        (30, 30, "clock"),
    ]
    for row, part in zip(rows, parts, strict=True):
        assert row["fps"] == pytest.approx(10) and row["end_s"] - row["start_s"] == pytest.approx(3)
        whole = scan_file(part)
        pictures = [
            decode.read_frames(row_of(path, found), np.arange(30)) for path, found in ((seam, row), (part, whole))
        ]
        assert np.array_equal(*pictures)


@pytest.mark.fast
@pytest.mark.parametrize("pause_s", [10, 60, 3600])
def test_no_clip_waits_through_a_pause_of_the_recording(make_video, row_of, pause_s):
    times_ms = [100 * i + (1000 * pause_s if i >= 20 else 0) for i in range(40)]
    path = make_video("a.mkv", 40, fps=10, times_ms=times_ms)
    rows = scan(Entry(str(path), path.name), ScanOptions())
    assert [(row["first_frame"], row["cut_at"], row["decoder"]) for row in rows] == [
        (0, None, "decord"),
        (20, "clock", "decord"),
    ]
    for row in rows:
        assert row["end_s"] - row["start_s"] == pytest.approx(2, abs=0.01) and row["fps"] == pytest.approx(10, rel=1e-2)
        frames = decode.read_frames(row_of(path, row), np.arange(20))
        levels = [level(row["first_frame"] + i) for i in range(20)]
        assert frames.mean((1, 2, 3)) == pytest.approx(levels, abs=4)


def mirror(path):
    """Let the display matrix of an MP4 mirror left and right before it rotates."""
    file = bytearray(path.read_bytes())
    place = file.index(b"tkhd") + 4 + 40  # behind times, duration, layer and volume of version 0
    a, b = struct.unpack_from(">2i", file, place)
    struct.pack_into(">2i", file, place, -a, -b)
    path.write_bytes(file)
    return path


@pytest.mark.parametrize(
    ("rotation", "corner"), [(90, "top left"), (-90, "bottom right"), (180, "bottom left"), (0, "top right")]
)
@pytest.mark.parametrize("size", [None, (48, 32)])
@pytest.mark.fast
def test_mirrored_frames_are_mirrored_and_upright(make_video, row_of, rotation, corner, size):
    path = mirror(make_video("a.mp4", 4, size=(96, 64), rotation=rotation, mark=True))
    found = scan_file(path)
    assert (found["rotation"], found["decoder"]) == (360 + rotation % 360, "pyav_seek")
    for name in ("pyav", "pyav_seek"):
        frame = decode.read_frames(row_of(path, found | {"decoder": name}), np.array([0]), size)[0, ..., 0]
        assert frame.shape == (size or ((96, 64) if rotation % 180 else (64, 96)))
        assert brightest_quarter(frame) == corner


@pytest.mark.fast
def test_frozen_is_a_share_of_the_time(make_video):
    times_ms = [0, 100, 200, 1100, 1200, 1300]  # the third frame stays .9 s, .8 of them beyond its time
    assert scan_file(make_video("a.mkv", 6, times_ms=times_ms))["frozen_ratio"] == pytest.approx(0.8 / 1.3, abs=0.01)


@pytest.mark.fast
def test_of_several_pictures_in_a_file_the_first_is_used_and_it_is_said(tmp_path):
    pictures = [Image.new("RGB", (16, 12), (value, 0, 0)) for value in (10, 100, 200)]
    for name in ("a.webp", "a.png", "a.tiff"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:])
        assert scan_file(tmp_path / name)["codec"] == f"{name[2:]} (first of several)"
    pictures[0].save(tmp_path / "b.png")
    assert scan_file(tmp_path / "b.png")["codec"] == "png"


@pytest.mark.fast
@pytest.mark.skipif(not (SHARED / "odd_cases").is_dir(), reason="shared/data/odd_cases is not beside the checkout")
def test_a_cover_is_no_video():
    assert scan_file(SHARED / "odd_cases" / "song_with_cover.mp4")["status"] == "no video stream"
    assert scan_file(SHARED / "odd_cases" / "video_with_cover.mp4")["num_frames"] == 40


@pytest.mark.fast
def test_motion_black_and_frozen_are_shares_of_the_frames(tmp_path):
    levels = [0, 0, 0, 100, 100, 200, 200, 200, 200, 100]  # of 10 frames 3 are black; of 9 changes 3 are some
    row = scan_file(write_video(tmp_path / "a.mkv", [grey(value) for value in levels], "ffv1", pix_fmt="bgr0"))
    assert row["black_ratio"] == pytest.approx(3 / 10) and row["frozen_ratio"] == pytest.approx(6 / 9)
    assert row["motion_ratio"] == pytest.approx(300 / 255 / 9, rel=1e-3)


@pytest.mark.fast
def test_frames_before_damage_are_kept(make_video, tmp_path):
    whole = make_video("a.ts", 40, gop=10)
    content = whole.read_bytes()
    (tmp_path / "b.ts").write_bytes(content[: len(content) // 2])
    row = scan_file(tmp_path / "b.ts")
    assert row["status"] == "ok" and 10 <= row["num_frames"] < 40


@pytest.mark.fast
def test_a_change_of_size_starts_a_clip(make_video, tmp_path):
    small, large = make_video("a.ts", 6, size=(32, 32)), make_video("b.ts", 7, size=(64, 48))
    (tmp_path / "c.ts").write_bytes(small.read_bytes() + large.read_bytes())
    rows = scan(entry(tmp_path / "c.ts"), ScanOptions())
    assert [(row["first_frame"], row["num_frames"], row["width"], row["height"]) for row in rows] == [
        (0, 6, 32, 32),
        (6, 7, 64, 48),
    ]
    assert {row["decoder"] for row in rows} == {"pyav"}


@pytest.mark.fast
def test_frames_of_each_size_are_read(make_video, row_of, tmp_path):
    small, large = make_video("a.ts", 6, size=(32, 32)), make_video("b.ts", 7, size=(64, 48))
    (tmp_path / "c.ts").write_bytes(small.read_bytes() + large.read_bytes())
    rows = scan(entry(tmp_path / "c.ts"), ScanOptions())
    for row, size in zip(rows, [(32, 32), (48, 64)], strict=True):
        frames = decode.read_frames(row_of(tmp_path / "c.ts", row), np.arange(row["num_frames"]))
        assert (
            frames.shape[1:3] == size
            and np.abs(frames.mean((1, 2, 3)) - [level(i) for i in range(len(frames))]).max() < 3
        )


def test_a_member_of_a_shard_and_an_address_are_as_the_file_itself(make_video, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    path = make_video("a.mp4", 20, times_ms=[50 * i + i % 3 for i in range(20)])
    (tmp_path / "shard.tar").write_bytes(b"x" * 512 + path.read_bytes() + b"y" * 99)
    with fsspec.open("memory://shards/0.tar", "wb") as file:
        file.write((tmp_path / "shard.tar").read_bytes())
    size = path.stat().st_size
    alone = scan_file(path)
    for uri in (tmp_path / "shard.tar", "memory://shards/0.tar"):
        member = scan_file(uri, name="a.mp4", offset=512, length=size)
        assert member["file_bytes"] == size + 512 + 99 and member["decoder"] in random_access.CANDIDATES
        for name in set(alone) - {"file_bytes", "modified_ns", "decoder"}:
            assert member[name] == alone[name], name
        assert "beyond the end" in scan_file(uri, name="a.mp4", offset=512, length=size + 999)["status"]
    Image.new("RGB", (9, 7)).save(tmp_path / "p.png")
    (tmp_path / "stills.tar").write_bytes(bytes(512) + (tmp_path / "p.png").read_bytes())
    still = scan_file(tmp_path / "stills.tar", name="p.png", offset=512, length=(tmp_path / "p.png").stat().st_size)
    assert (still["decoder"], still["width"], still["codec"]) == ("image", 9, "png")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.mp4", b"", "empty file"),
        ("a.mp4", b"text " * 99, "not a video or image"),
        ("a.png", b"text " * 99, "not a video or image"),
        ("a.mp4", None, "No such file"),
    ],
)
def test_a_bad_file_has_a_reason(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    row = scan_file(tmp_path / name)
    assert reason in row["status"] and "\n" not in row["status"]


@pytest.mark.fast
def test_a_still_is_one_frame_without_motion(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.PNG")
    row = scan_file(tmp_path / "a.PNG")
    assert (row["num_frames"], row["width"], row["height"], row["codec"], row["decoder"]) == (1, 20, 10, "png", "image")
    assert (row["motion_ratio"], row["black_ratio"], row["frozen_ratio"]) == (None, 1.0, None)
    assert scan(entry(tmp_path / "a.PNG"), ScanOptions(min_s=5, min_motion=0.5))[0]["status"] == "ok"
    assert scan(entry(tmp_path / "a.PNG"), ScanOptions(max_black=0.5))[0]["status"].startswith("filtered")


@pytest.mark.fast
def test_facts_of_a_remote_file():
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://videos/a.bin", "wb") as file:
        file.write(b"12345")
    facts = file_facts("memory://videos/a.bin")
    assert facts.file_bytes == 5 and (facts.modified_ns is None or facts.modified_ns > 0)
    assert "nowhere" in scan(entry("memory://videos/nowhere.mp4"), ScanOptions())[0]["status"]


def test_the_quickest_exact_decoder_is_chosen(make_video, monkeypatch):
    """Twins of decoders that are wrong each in their own way; those that are right come after."""
    path = make_video("a.mp4", 40, gop=10)
    right = decode.READERS["pyav"]

    def chosen(wrong_ids):
        wrong = lambda row, ids, *size: right(row, np.clip(wrong_ids(ids), 0, 39), *size)  # noqa: E731
        monkeypatch.setattr(decode, "READERS", decode.READERS | {"decord": wrong})
        return scan_file(path)["decoder"]

    assert scan_file(path)["decoder"] == "decord"
    assert chosen(lambda ids: ids) == "decord"
    for wrong_ids in (
        lambda ids: ids - 1,  # a frame early, as on packed B-frames
        lambda ids: ids + 2 * (len(ids) == 1),  # only where a single frame is read
        lambda ids: ids - (ids % 10 == 9),  # only before keyframes
        lambda ids: ids - (ids == 39),  # only at the end
        lambda ids: ids + (ids > 30),
    ):
        assert chosen(wrong_ids) != "decord"


@pytest.mark.fast
def test_a_decoder_that_is_not_installed_is_not_tried(make_video, monkeypatch):
    path, opened = make_video("a.mp4", 20, gop=10), []
    monkeypatch.setattr(decode, "decord", None)
    monkeypatch.setattr(decode, "open_decord", opened.append)
    assert scan_file(path)["decoder"] == "pyav_seek" and not opened


def test_clips_from_keyframes_have_a_quicker_decoder_where_it_is_exact_there(make_video, monkeypatch):
    """Twins of a decoder that is wrong in other ways; away from keyframes it is not asked."""
    path = make_video("a.mp4", 40, gop=10)
    right = decode.READERS["pyav"]

    def chosen(wrong_ids):
        wrong = lambda row, ids, *size: right(row, np.clip(wrong_ids(ids), 0, 39), *size)  # noqa: E731
        monkeypatch.setattr(decode, "READERS", decode.READERS | {"pyav_seek": wrong})
        row = scan_file(path)
        return row["decoder"], row["keyframe_decoder"]

    assert chosen(lambda ids: ids) == chosen(lambda ids: ids - (ids % 10 == 9)) == ("decord", "pyav_seek")
    for wrong_ids in (lambda ids: ids - 1, lambda ids: ids + (ids % 10 == 2), lambda ids: ids + (ids >= 30)):
        assert chosen(wrong_ids) == ("decord", None)
    assert scan(entry(path), ScanOptions(), excluded=["pyav_seek"])[0]["keyframe_decoder"] is None


@pytest.mark.fast
def test_checked_frames_are_few_and_cover_the_file():
    frame = lambda i: SimpleNamespace(key_frame=i % 250 == 0)  # noqa: E731
    asked = []
    samples = random_access.Samples(lambda frame: asked.append(1) or np.zeros((4, 4, 3), np.uint8))
    for i in range(20_000):
        samples.add(i, frame(i))
    samples.end()
    assert len(samples.points) <= 2 * 8 * 7 + 4 and len(asked) < 1500
    checks = [ids.tolist() for ids in (*samples.checks(), *samples.keyframe_checks())]
    assert [0] in checks and [19_999] in checks and list(range(19_996, 20_000)) in checks
    assert max(np.diff(checks[0])) <= 20_000 / 4 and all(i in samples.points for ids in checks for i in ids)


@pytest.mark.fast
@pytest.mark.parametrize(
    "changes", [{"window_s": 0.0}, {"max_s": -1.0}, {"min_s": -1.0}, {"max_black": 2.0}, {"min_motion": float("nan")}]
)
def test_options_that_make_no_sense(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        ScanOptions(**changes)


def child_with(tmp_path, monkeypatch, body):
    """Children of the pool that run `body` first, which may replace what a decoder does."""
    path = tmp_path / "child.py"
    path.write_text(
        "import ctypes, os, re, time\nfrom data_prep.scanning import scan as module\nfrom vjepa.data import decode\n"
        + textwrap.dedent(body)
        + "\nmodule.main()\n"
    )
    monkeypatch.setattr(scanner, "_PROGRAM", [str(path)])


HOLD_THE_GIL = (
    "ctypes.PyDLL(None).sleep(60)"  # PyDLL keeps the GIL: no signal and no other thread of the child gets a turn
)


def test_a_file_outlives_decoders_that_hang_or_crash(make_video, tmp_path, monkeypatch):
    paths = [make_video(f"{name}.mp4", 4) for name in ("a", "hang", "b", "crash", "raise", "c")]
    child_with(
        tmp_path,
        monkeypatch,
        f"""
        true = decode.READERS["decord"]
        def decord(row, *rest):
            if "hang" in row.uri:
                {HOLD_THE_GIL}
            if "crash" in row.uri:
                os.abort()
            if "raise" in row.uri:
                raise KeyError("a bug")
            return true(row, *rest)
        decode.READERS["decord"] = decord
        """,
    )
    start = time.monotonic()
    rows = [rows[0] for rows in scan_all(map(entry, paths), 2, deadline_s=4.0)]
    assert [row["status"] for row in rows] == ["ok"] * 6 and [row["num_frames"] for row in rows] == [4] * 6
    assert [row["decoder"] == "decord" for row in rows] == [True, False, True, False, False, True]
    assert time.monotonic() - start < 40


def test_a_file_on_which_decoding_in_order_hangs_or_crashes_has_a_reason(make_video, tmp_path, monkeypatch):
    paths = [make_video(f"{name}.mp4", 2) for name in ("a", "hang", "b", "crash", "raise", "c")]
    child_with(
        tmp_path,
        monkeypatch,
        f"""
        true = module.look_into
        def look_into(entry, options, excluded, announce, most):
            announce(facts={{"file_bytes": 7, "modified_ns": 8}})
            if "hang" in entry.uri:
                {HOLD_THE_GIL}
            if "crash" in entry.uri:
                os.abort()
            if "raise" in entry.uri:
                raise KeyError("a bug")
            return true(entry, options, excluded, announce, most)
        module.look_into = look_into
        """,
    )
    start = time.monotonic()
    rows = [rows[0] for rows in scan_all(map(entry, paths), 2, deadline_s=3.0)]
    assert [row["status"] for row in rows] == [
        "ok",
        "decoding stood still for 3 s and was stopped",
        "ok",
        "the decoder crashed",
        "the scan failed: KeyError: 'a bug'",
        "ok",
    ]
    assert (rows[1]["file_bytes"], rows[1]["modified_ns"]) == (7, 8) == (rows[3]["file_bytes"], rows[3]["modified_ns"])
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("how", [HOLD_THE_GIL, "os.abort()"], ids=["hangs", "crashes"])
def test_parts_before_the_place_where_decoding_ends_for_ever_are_as_of_a_whole_film(
    make_video, tmp_path, monkeypatch, how
):
    path = make_video("film.mp4", 200, fps=10, gop=10)
    parts = ((0.0, 2.0), (3.0, 5.5), (9.0, 12.5), (15.0, 16.0), (None, None))

    def rows_of_parts(deadline_s):
        ((_, found),) = in_processes([(0, entry(path))], Scan(ScanOptions(), deadline_s), 1)
        rows = [found.clips(ScanOptions(), *part)[0] for part in parts]
        # decord is for files of which it counts every frame
        return [{name: row[name] for name in row if "decoder" not in name} for row in rows], rows[0]["decoder"]

    whole, _ = rows_of_parts(60.0)
    child_with(
        tmp_path,
        monkeypatch,
        f"""
        from data_prep.scanning import measure
        measure._PROGRESS_S = 0.0
        true = measure._Meter.add
        def add(self, i, frame):
            if i == 120:
                {how}
            true(self, i, frame)
        measure._Meter.add = add
        """,
    )
    reason = "decoding stood still for 4 s and was stopped" if "sleep" in how else "the decoder crashed"
    found, decoder = rows_of_parts(4.0)
    assert [row["status"] for row in whole] == ["ok"] * 5 and found[:2] == whole[:2]
    assert decoder == "pyav_seek"
    assert [row["status"] for row in found[2:]] == [reason] * 3


def test_strange_names_pass(make_video, tmp_path):
    content = make_video("a.mp4", 3).read_bytes()
    names = [b"-rf.mp4", b"two\nlines.mp4", b"b\xff\xfe.mp4", b" %20#?.mp4", "ü 猫.mp4".encode(), b"file:x.mp4"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(content)
    paths = [os.fsdecode(os.path.join(os.fsencode(tmp_path), name)) for name in names]
    assert [rows[0]["status"] for rows in scan_all(map(entry, paths))] == ["ok"] * len(names)


def test_an_engine_takes_few_entries_ahead_and_can_be_left(make_video):
    path, taken = make_video("a.mp4", 2), []
    entries = (taken.append(i) or entry(path) for i in range(10_000))
    found = in_processes(enumerate(entries), Scan(ScanOptions(), 60.0), workers=1)
    assert [next(found)[1].status for _ in range(3)] == [None] * 3 and len(taken) < 20
    found.close()


def test_slow_progress_is_stopped_and_fast_progress_is_not(make_video, tmp_path, monkeypatch):
    paths = [make_video("slow.mp4", 2), make_video("long.mp4", 2)]
    child_with(
        tmp_path,
        monkeypatch,
        """
        import time
        true = module.look_into
        def look_into(entry, options, excluded, announce, most):
            for i in range(1, 13):
                time.sleep(0.25)
                announce(num_frames=i * 50 if "long" in entry.uri else 1)
            return true(entry, options, excluded, announce, most)
        module.look_into = look_into
        """,
    )
    statuses = [rows[0]["status"] for rows in scan_all(map(entry, paths), 2, deadline_s=2.0)]
    assert statuses[0].startswith("decoding came to 1 frames in ") and statuses[1] == "ok"


@pytest.mark.skipif(not (SHARED / "odd_videos").is_dir(), reason="shared/data/odd_videos is not beside the checkout")
def test_odd_videos_give_the_frames_of_decoding_in_order_or_a_reason(row_of):
    paths = sorted(path for path in (SHARED / "odd_videos").iterdir() if path.suffix != ".csv")
    reasons = {}
    for path, (row,) in zip(paths, scan_all(map(entry, paths)), strict=True):
        if row["status"] != "ok":
            reasons[path.name] = row["status"]
            continue
        clip = row_of(path, row)
        assert (np.diff(clip.times()) >= 0).all() and clip.end_s > clip.times()[-1], path.name
        ids = np.unique(np.linspace(0, clip.num_frames - 1, 5).astype(int))
        last_key = frame_ids_at(clip.times(), np.array(row["keyframes_s"][-1:] or [0.0]))
        from_key = np.arange(last_key[0], min(last_key[0] + 3, clip.num_frames))
        in_order = dict(frames_in_order(clip, np.union1d(ids, from_key)))
        for wanted, decoder in ((ids, clip.decoder), (from_key, clip.keyframe_decoder or clip.decoder)):
            for i, frame in zip(
                wanted.tolist(), decode.read_frames(dataclasses.replace(clip, decoder=decoder), wanted), strict=True
            ):
                away = {
                    j: np.abs(frame[::2, ::2].astype(int) - in_order[j]).mean() for j in in_order if abs(i - j) <= 2
                }
                assert away[i] <= min(5.0, min(away.values()) + 0.05), (path.name, decoder, i, away)
    assert reasons == {
        "ExoPlayer__sample_ac3.mp4": "no video stream",
        "go-mp4__sample_qt.mp4": "no decodable frame",
        "made__truncated_tail_nasa.mp4": "not a video or image",
        "made__zero_bytes.mp4": "empty file",
        "streamio-ffmpeg__broken.mp4": "not a video or image",
        "torchcodec__sine_mono_s16.wav": "no video stream",
    }


def frames_in_order(clip, ids):
    """A plain twin: every frame from the first one on, and of these the wanted ones and their neighbours."""
    count = 0
    with decode.open_video(clip.uri) as (container, stream), contextlib.suppress(av.error.FFmpegError):
        for i, frame in enumerate(container.decode(stream)):
            count += 1
            if np.abs(ids - i).min() <= 2:
                width, height = (clip.height, clip.width) if clip.rotation % 180 else (clip.width, clip.height)
                yield (
                    i,
                    np.rot90(frame.reformat(width, height, "rgb24").to_ndarray(), clip.rotation // 90)[::2, ::2].astype(
                        int
                    ),
                )
    assert count == clip.num_frames
