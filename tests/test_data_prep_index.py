"""Indexing a folder: what is measured is true, what is bad has a reason, and nothing stops a scan."""

import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import index as index_command
from data_prep import scan as scan_module
from data_prep.index import build_index
from data_prep.scan import ScanPool, scan
from vjepa.data.clip_index import ClipIndex
from vjepa.data.decode import av_library, open_video, read_frames, upright
from vjepa.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def build(tmp_path, labels=None):
    return build_index(tmp_path / "clips", tmp_path / "x.parquet", labels, workers=1, progress=False)


@pytest.mark.fast
def test_measures_rate_times_keyframes_and_size(make_video):
    columns = scan(make_video("a.mp4", 30, fps=10, size=(48, 32), gop=10))
    assert columns["status"] == "ok" and columns["times_s"] is None
    assert (columns["num_frames"], columns["fps"], columns["width"], columns["height"]) == (30, pytest.approx(10), 48, 32)
    assert columns["end_s"] - columns["start_s"] == pytest.approx(3.0)
    assert columns["keyframes_s"] == pytest.approx([0, 1, 2])
    assert columns["codec"] == "h264" and len(columns["content_hash"]) == 64


@pytest.mark.fast
def test_keeps_the_times_of_a_variable_rate(make_video):
    times_ms = [0, 40, 80, 500, 520, 1000, 1040, 1080]
    columns = scan(make_video("a.mp4", 8, times_ms=times_ms))
    assert columns["times_s"] == pytest.approx([ms / 1000 for ms in times_ms], abs=1e-3)
    assert columns["fps"] == pytest.approx(7 / 1.08, rel=1e-3)


@pytest.mark.fast
@pytest.mark.parametrize("fps", [23.976, 29.97, 30, 60])
def test_a_constant_rate_is_seen_through_timestamps_in_milliseconds(fps):
    times = 0.2 + np.arange(300) / fps
    columns = scan_module._rate(np.round(times, 3), fps)
    assert columns["times_s"] is None and columns["fps"] == pytest.approx(fps, rel=1e-4)
    assert scan_module._rate(np.delete(times, 150), fps)["times_s"] is not None  # one frame was dropped


def test_decord_is_chosen_where_it_is_exact(make_video, monkeypatch):
    path = make_video("a.mp4", 30, gop=10)
    assert scan(path)["decoder"] == "decord"
    right = scan_module.decord_frames
    monkeypatch.setattr(scan_module, "decord_frames", lambda reader, ids: right(reader, np.maximum(ids - 1, 0)))
    assert scan(path)["decoder"] == "pyav"  # a frame early, as on packed B-frames


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
    columns = scan(tmp_path / name)
    assert reason in columns["status"] and "\n" not in columns["status"]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [([0.0, 0.2, 0.1, 0.3], [0.0, 0.1, 0.2, 0.3]), ([None, None, None], [0.0, 0.1, 0.2]), ([1.0, None, 1.2], [1.0, 1.1, 1.2])],
)
def test_times_ascend_whatever_the_container_says(seconds, expected):
    assert scan_module._true_times(seconds, 10.0).tolist() == pytest.approx(expected)


def test_index_names_every_file_sorted_and_keeps_bad_ones(make_video, tmp_path, capsys):
    make_video("clips/b.mp4")
    make_video("clips/deep/a.MP4")
    Image.new("RGB", (8, 8)).save(tmp_path / "clips/c.png")
    for name in ("notes.txt", "bad.mp4", ".hidden.mp4", "labels.csv"):
        (tmp_path / "clips" / name).write_text("text")
    os.symlink(tmp_path / "clips", tmp_path / "clips/deep/again")
    index = build_index(tmp_path / "clips", tmp_path / "x.parquet", workers=2)
    assert index.column("uri") == ["clips/b.mp4", "clips/bad.mp4", "clips/c.png", "clips/deep/a.MP4"]
    assert index.column("status").count("ok") == 3 and index.column("decoder").count("image") == 1
    out = capsys.readouterr().out
    assert "files of other extensions, ignored: 1" in out and "3 ok, 1 not usable: not a video or image x1" in out
    elsewhere = build_index(tmp_path / "clips", tmp_path / "other/x.parquet", workers=1, progress=False)
    assert elsewhere.column("uri")[0] == str(tmp_path / "clips/b.mp4") and Path(elsewhere.row(0).uri).is_file()


def test_labels_split_group_and_other_columns(make_video, tmp_path, capsys):
    for name in ("a", "b", "c"):
        make_video(f"clips/{name}.mp4", 2)
    labels = tmp_path / "clips/labels.csv"
    labels.write_text('file,label,split,scene\n"a.mp4",run,train,park\nb.mp4,"jump, high",val,\nd.mp4,run,train,park\n')
    index = build_index(tmp_path / "clips", tmp_path / "x.parquet", labels, workers=1)
    assert index.column("label") == ["run", "jump, high", None]
    assert index.column("label_id") == ["1", "0", "-1"] and index.column("scene") == ["park", None, None]
    out = capsys.readouterr().out
    assert "rows without a file in the folder: 1 (d.mp4)" in out and "files without a row: 1 (c.mp4)" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nz.mp4,x\n", "none of its files is in the folder: z.mp4"),
        ("file,fps\na.mp4,3\n", "column names .*fps"),
        ("file,label\na.mp4\n", "line 2 has 1 cells"),
        ("file,label\na.mp4,x\na.mp4,y\n", "line 3 names a.mp4 a second time"),
        ("", "needs a header"),
    ],
)
@pytest.mark.fast
def test_labels_that_cannot_be_used(make_video, tmp_path, text, message):
    make_video("clips/a.mp4", 2)
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError, match=rf"l\.csv: .*{message}"):
        build(tmp_path, tmp_path / "l.csv")


def test_refusals_write_nothing(make_video, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        build(tmp_path)
    (tmp_path / "clips").mkdir()
    with pytest.raises(UserError, match="no video or image"):
        build(tmp_path)
    (tmp_path / "clips/a.mp4").write_text("text")
    with pytest.raises(UserError, match="none of its 1 files can be decoded: not a video or image x1"):
        build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]
    make_video("clips/b.mp4", 2)
    (tmp_path / "x.parquet").write_text("precious")
    with pytest.raises(UserError, match="not a clip index, so it is not replaced"):
        build(tmp_path)
    assert (tmp_path / "x.parquet").read_text() == "precious"
    (tmp_path / "x.parquet").unlink()
    assert len(build(tmp_path)) == len(build(tmp_path)) == 2  # an index may be replaced


def test_a_scan_that_hangs_or_crashes_is_replaced(make_video, tmp_path, monkeypatch):
    paths = [make_video(f"{name}.mp4", 2) for name in ("a", "hang", "b", "crash", "c")]
    (tmp_path / "child.py").write_text(
        "import os, time, data_prep.scan as s\n"
        "true = s.scan\n"
        "def scan(path):\n"
        "    time.sleep(60 * (path.stem == 'hang'))\n"
        "    return os.abort() if path.stem == 'crash' else true(path)\n"
        "s.scan = scan\n"
        "s.main()\n"
    )
    monkeypatch.setattr(scan_module, "_CHILD", [sys.executable, str(tmp_path / "child.py")])
    start = time.monotonic()
    statuses = [columns["status"] for columns in ScanPool(2, deadline_s=2.0).scan(paths)]
    assert statuses == ["ok", "scan took longer than 2 s and was stopped", "ok", "the decoder crashed", "ok"]
    assert time.monotonic() - start < 30


def test_the_command(make_video, tmp_path, monkeypatch):
    make_video("clips/a.mp4", 2)
    command = [sys.executable, "-m", "data_prep.index"]
    good = subprocess.run([*command, "clips", "--out", "x.parquet"], cwd=tmp_path, capture_output=True, text=True, env=_environment())
    assert good.returncode == 0 and "1 ok, 0 not usable" in good.stdout and len(ClipIndex.open(tmp_path / "x.parquet")) == 1
    bad = subprocess.run([*command, "nowhere", "--out", "y.parquet"], cwd=tmp_path, capture_output=True, text=True, env=_environment())
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1 and "nowhere" in bad.stderr


def _environment():
    return os.environ | {"PYTHONPATH": str(Path(index_command.__file__).parents[1])}


@pytest.mark.skipif(not (SHARED / "odd_videos").is_dir(), reason=f"real input {SHARED / 'odd_videos'} is absent")
def test_odd_videos_are_read_as_in_order_or_have_a_reason(tmp_path):
    index = build_index(SHARED / "odd_videos", tmp_path / "x.parquet", progress=False)
    status = {Path(uri).name: status for uri, status in zip(index.column("uri"), index.column("status"), strict=True)}
    assert {name: reason for name, reason in status.items() if reason != "ok"} == {
        "ExoPlayer__sample_ac3.mp4": "no video stream",
        "go-mp4__sample_qt.mp4": "no decodable frame",
        "made__truncated_tail_nasa.mp4": "not a video or image",
        "made__zero_bytes.mp4": "empty file",
        "streamio-ffmpeg__broken.mp4": "not a video or image",
    }
    for i in index.select({}):
        row = index.row(int(i))
        assert (np.diff(row.times()) >= 0).all() and row.end_s > row.start_s
        ids = np.unique(np.linspace(0, row.num_frames - 1, 4).astype(int))
        with open_video(Path(row.uri)) as (container, stream):
            reformatter = av_library().video.reformatter.VideoReformatter()
            decoded = enumerate(islice(container.decode(stream), row.num_frames))
            in_order = {k: upright(reformatter, frame, row.rotation, row.sample_aspect) for k, frame in decoded if np.abs(ids - k).min() <= 2}
        for k, frame in zip(ids, read_frames(row, ids), strict=True):
            away = {j: np.abs(frame[::2, ::2].astype(int) - in_order[j][::2, ::2]).mean() for j in range(k - 2, k + 3) if j in in_order}
            assert away[k] <= min(5.0, min(away.values()) + 0.05), (row.path.name, k, away)
