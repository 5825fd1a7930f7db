"""Indexing: every file has its row, what is bad has a reason, nothing stops a scan, and nothing is scanned twice."""

import json
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep import engines
from data_prep import index as index_command
from data_prep.scanning import build as build_module
from data_prep.scanning.build import build_index
from data_prep.scanning.options import ScanOptions
from vjepa.data import clip_index
from vjepa.data.clip_index import ClipIndex
from vjepa.data.decode import read_frames, upright
from vjepa.data.pyav import open_video
from vjepa.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def build(tmp_path, labels=None, **options):
    return build_index(tmp_path / "clips", tmp_path / "x.parquet", labels, workers=1, progress=False, **options)


def rows_of(path):
    return pq.read_table(path).to_pylist()


def hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture
def scanned(monkeypatch):
    """Names of the files that were really scanned, in order."""
    names = []

    def engine(tasks, *given):
        tasks = list(tasks)
        names.extend(entry.name for _, entry in tasks)
        yield from true(tasks, *given)

    true = engines.ENGINES["processes"]
    monkeypatch.setitem(engines.ENGINES, "processes", engine)
    return names


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
    captured = capsys.readouterr()
    assert (
        "files of other extensions, ignored: 1" in captured.out
        and "4 files: 3 ok, 1 not usable: not a video or image x1" in captured.out
    )
    assert "1 bad: not a video or image x1" in captured.err and "4/4" in captured.err
    elsewhere = build_index(tmp_path / "clips", tmp_path / "other/x.parquet", workers=1, progress=False)
    assert elsewhere.column("uri")[0] == str(tmp_path / "clips/b.mp4") and Path(elsewhere.row(0).uri).is_file()
    assert hidden(tmp_path) == [".x.parquet.arrow"]  # of which ClipIndex knows; the journal is gone


def test_labels_split_group_and_other_columns(make_video, tmp_path, capsys):
    for name in ("a", "b", "c"):
        make_video(f"clips/{name}.mp4", 2)
    labels = tmp_path / "clips/labels.csv"
    labels.write_text('file,label,split,scene\n"a.mp4",run,train,park\nb.mp4,"jump, high",val,\nd.mp4,run,train,park\n')
    index = build_index(tmp_path / "clips", tmp_path / "x.parquet", labels, workers=1)
    assert index.column("label") == ["run", "jump, high", None] and index.column("split") == ["train", "val", None]
    assert index.column("label_id") == ["1", "0", "-1"] and index.column("scene") == ["park", None, None]
    out = capsys.readouterr().out
    assert "rows without a file: 1 (d.mp4)" in out and "files without a row: 1 (c.mp4)" in out


def test_several_sources_in_their_order_with_parts_of_videos(make_video, tmp_path, scanned):
    make_video("far/z.mp4", 40, fps=10)
    make_video("near/a.mp4", 4)
    (tmp_path / "list.jsonl").write_text(
        "\n".join(
            json.dumps({"path": "far/z.mp4", "start_s": start, "end_s": start + 1, "label": f"l{start}"})
            for start in (2, 0)
        )
        + "\n"
    )
    sources = [tmp_path / "list.jsonl", tmp_path / "near"]
    for _ in range(2):
        index = build_index(sources, tmp_path / "x.parquet", workers=1, progress=False)
        assert index.column("uri") == ["far/z.mp4", "far/z.mp4", "near/a.mp4"] and index.column("label") == [
            "l2",
            "l0",
            None,
        ]
        assert [(index.row(i).start_s, index.row(i).num_frames) for i in (0, 1)] == [(pytest.approx(2), 10), (0, 10)]
        assert index.column("manifest_part") == ["[2.0, 3.0]", "[0.0, 1.0]", None]
        assert index.column("duplicate_of") == [None] * 3  # parts of one file are no copies
        assert scanned == ["far/z.mp4", "a.mp4"]  # each file once, and the second time none


def test_clips_of_long_videos_keep_their_file_and_what_is_left_out(make_video, tmp_path, capsys, scanned):
    make_video("clips/a.mp4", 50, fps=10)
    (tmp_path / "clips/b.mp4").touch()
    options = ScanOptions(window_s=2.0, min_s=1.5)
    for _ in range(2):
        index = build_index(tmp_path / "clips", tmp_path / "x.parquet", workers=1, options=options)
        assert index.column("first_frame") == ["0", "20", "40", "0"]
        assert [status.split(":")[0] for status in index.column("status")] == ["ok", "ok", "filtered", "empty file"]
        out = capsys.readouterr().out
        assert "2 files, 4 clips: 2 ok, 1 left out (filtered: " in out and "1 not usable: empty file x1" in out
    assert scanned == ["a.mp4", "b.mp4"]
    with pytest.raises(
        UserError, match=r"none of its 2 files gives a clip that is left: filtered: .*; loosen the filters"
    ):
        build(tmp_path, options=ScanOptions(min_s=9.0))
    assert rows_of(tmp_path / "x.parquet") and hidden(tmp_path) == [
        ".x.parquet.arrow"
    ]  # the index that was there stays


def test_refusals_write_nothing(make_video, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        build(tmp_path)
    (tmp_path / "clips").mkdir()
    with pytest.raises(UserError, match="no video or image"):
        build(tmp_path)
    (tmp_path / "clips/a.mp4").write_text("text")
    with pytest.raises(UserError, match="none of its 1 files can be decoded: not a video or image x1"):
        build_index(tmp_path / "clips", tmp_path / "new/folder/x.parquet", workers=1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]
    make_video("clips/b.mp4", 2)
    (tmp_path / "x.parquet").write_text("precious")
    with pytest.raises(UserError, match="not a clip index, so it is not replaced"):
        build(tmp_path)
    assert (tmp_path / "x.parquet").read_text() == "precious"
    (tmp_path / "x.parquet").unlink()
    assert len(build(tmp_path)) == len(build(tmp_path)) == 2  # an index may be replaced


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers 0: at least 1"),
        ({"deadline_s": 0.0}, "deadline_s 0: must be more than 0"),
        ({"deadline_s": float("nan")}, "deadline_s nan"),
        ({"engine": "spark"}, "engine spark: no such engine; there are processes, ray"),
        ({"layout": "kinetic"}, "kinetic: no such layout"),
        ({"out": "s3://bucket/x.parquet"}, "written to this machine"),
        ({"out": "x" * 300}, "File name too long; choose another --out"),
        ({"sources": []}, "no source"),
    ],
)
def test_arguments_that_cannot_be_used(tmp_path, arguments, message):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.mp4").write_text("text")
    with pytest.raises(UserError, match=message):
        build_index(**{"sources": tmp_path / "clips", "out": tmp_path / "x.parquet", "progress": False} | arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


def test_a_full_disk_is_one_line_and_keeps_what_was_scanned(make_video, tmp_path, scanned, monkeypatch):
    make_video("clips/a.mp4", 3)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "write_index", full)
        with pytest.raises(UserError, match=r"No space left on device.*the same command continues"):
            build(tmp_path)
    assert len(build(tmp_path)) == 1 and scanned == ["a.mp4"]


def test_two_scans_do_not_write_the_same_index(make_video, tmp_path, monkeypatch):
    make_video("clips/a.mp4", 3)
    true = engines.ENGINES["processes"]

    def engine(*given):
        with pytest.raises(UserError, match="another scan is writing it"):
            build(tmp_path)
        yield from true(*given)

    monkeypatch.setitem(engines.ENGINES, "processes", engine)
    assert len(build(tmp_path)) == 1


@pytest.mark.fast
def test_a_missing_engine_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'video-jepa\[ray\]'"):
        build(tmp_path, engine="ray")


def test_a_scan_that_changed_nothing_scans_nothing_and_takes_labels_anew(make_video, tmp_path, scanned, capsys):
    for name, num_frames in (("a", 3), ("b", 4), ("c", 5), ("d", 6)):
        make_video(
            f"clips/{name}.mp4", num_frames, times_ms=[0, 40, 200, 240, 300, 390][:num_frames] if name == "d" else None
        )
    (tmp_path / "clips/e.mp4").write_text("text")
    build(tmp_path)
    before = rows_of(tmp_path / "x.parquet")
    assert scanned == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"]
    scanned.clear()
    (tmp_path / "labels.csv").write_text("file,label,scene\na.mp4,run,park\nd.mp4,walk,\n")
    index = build(tmp_path, tmp_path / "labels.csv")
    assert scanned == [] and index.column("label_id") == ["0", "-1", "-1", "1", "-1"]
    taken_anew = {"label": None, "label_id": -1, "scene": None}
    assert [{**row, **taken_anew} for row in rows_of(tmp_path / "x.parquet")] == [
        {**row, **taken_anew} for row in before
    ]

    make_video("clips/b.mp4", 9)
    make_video("clips/bb.mp4", 2)
    (tmp_path / "clips/c.mp4").unlink()
    index = build_index(tmp_path / "clips", tmp_path / "x.parquet", workers=1)
    assert (
        scanned == ["b.mp4", "bb.mp4"]
        and index.column("num_frames") == ["3", "9", "2", "6", "0"]
        and index.column("label") == [None] * 5
    )
    out = capsys.readouterr().out
    assert "3 files are as they were (1 not usable; --rescan tries them again), 1 changed, 1 new, 1 gone" in out
    assert "5 files: 4 ok, 1 not usable: not a video or image x1" in out
    build(tmp_path, rescan=True)
    assert len(scanned) == 2 + 5


def test_other_options_another_version_or_a_damaged_index_scan_all(make_video, tmp_path, scanned, monkeypatch):
    for name in ("a", "b"):
        make_video(f"clips/{name}.mp4", 10)
    build(tmp_path)
    build(tmp_path, options=ScanOptions(window_s=0.5))
    assert len(scanned) == 4
    monkeypatch.setattr(build_module, "ANSWERS_VERSION", 99)
    build(tmp_path, options=ScanOptions(window_s=0.5))
    assert len(scanned) == 6
    monkeypatch.setattr(clip_index, "SCHEMA_VERSION", 1)
    clip_index.write_index(tmp_path / "x.parquet", [{"uri": "clips/a.mp4", "status": "ok"}])
    monkeypatch.undo()
    assert len(build(tmp_path)) == 2


def test_copies_of_a_file_name_the_first_and_stay_usable(make_video, tmp_path, capsys):
    content = make_video("clips/b.mp4", 3).read_bytes()
    for name in ("a.mp4", "c.mp4"):
        (tmp_path / "clips" / name).write_bytes(content)
    make_video("clips/d.mp4", 4)
    index = build_index(tmp_path / "clips", tmp_path / "x.parquet", workers=1)
    assert (
        index.column("duplicate_of") == [None, "clips/a.mp4", "clips/a.mp4", None]
        and index.column("status") == ["ok"] * 4
    )
    assert "files with the content of another: 2; they stay usable" in capsys.readouterr().out


SLOW_COMMAND = """
import signal, sys, time
from data_prep import engines, index
from vjepa.command import run
true = engines.ENGINES["processes"]
def engine(*given):
    for number, rows in true(*given):
        yield number, rows
        print("kept", number, flush=True)
        if number == 2:
            for _ in range(600):
                time.sleep(0.1)
engines.ENGINES["processes"] = engine
signal.signal(signal.SIGTERM, index._stop)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
run(index.main)
"""


@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_scan_that_was_killed_continues_where_it_was(make_video, tmp_path, scanned, capsys, killer):
    for name in "abcdef":
        make_video(f"clips/{name}.mp4", 3 + ord(name) - ord("a"))
    (tmp_path / "clips/b.mp4").write_text("text")
    command = [sys.executable, "-c", SLOW_COMMAND, "clips", "--out", "x.parquet", "--workers", "1"]
    options = {
        "cwd": tmp_path,
        "env": _environment(),
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "start_new_session": True,
    }
    with subprocess.Popen(command, **options) as process:
        while process.stdout.readline() != "kept 2\n":
            assert process.poll() is None
        os.killpg(process.pid, killer) if killer == signal.SIGINT else process.send_signal(killer)
        _, said = process.communicate()
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[killer]
    if killer != signal.SIGKILL:
        assert "3 of 6 files are scanned; the same command continues from there" in said and "Traceback" not in said
    assert hidden(tmp_path) == [".x.parquet.scan.jsonl"]
    journal = tmp_path / ".x.parquet.scan.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 3
    with journal.open("a") as file:
        file.write('[["' + str(tmp_path / "clips/d.mp4"))  # as far as a line came before the power went

    build_index(tmp_path / "clips", tmp_path / "x.parquet", workers=1)
    assert scanned == ["d.mp4", "e.mp4", "f.mp4"]
    assert "3 of 6 files were scanned before the interruption" in capsys.readouterr().out
    assert not journal.exists()
    build_index(tmp_path / "clips", tmp_path / "y.parquet", workers=1, progress=False)
    assert rows_of(tmp_path / "x.parquet") == rows_of(tmp_path / "y.parquet")


def test_a_journal_counts_for_the_same_files_and_options_alone(make_video, tmp_path, scanned, monkeypatch, capsys):
    for name in "abc":
        make_video(f"clips/{name}.mp4", 3)
    true = engines.ENGINES["processes"]

    def interrupted(*given):
        yield from islice(true(*given), 2)
        raise KeyboardInterrupt

    def interrupt(**options):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setitem(engines.ENGINES, "processes", interrupted)
            build(tmp_path, **options)

    interrupt()
    make_video("clips/a.mp4", 5)
    scanned.clear()
    assert build(tmp_path).column("num_frames") == ["5", "3", "3"] and scanned == ["a.mp4", "c.mp4"]

    interrupt(rescan=True)
    scanned.clear()
    build(tmp_path, rescan=True)
    assert scanned == ["c.mp4"]  # an interrupted --rescan continues too

    interrupt(options=ScanOptions(min_s=0.1))
    scanned.clear()
    capsys.readouterr()
    build_index(tmp_path / "clips", tmp_path / "x.parquet", workers=1)
    assert (
        scanned == []
        and "an interrupted scan with other options, or of another version, is not continued" in capsys.readouterr().out
    )
    assert hidden(tmp_path) == [".x.parquet.arrow"]


def test_the_command(make_video, tmp_path):
    make_video("clips/a.mp4", 20, fps=10)
    good = run_command(tmp_path, "clips", "--out", "x.parquet", "--window-s", "1", "--max-black", "0.5")
    assert (
        good.returncode == 0
        and "1 files, 2 clips: 2 ok, 0 not usable" in good.stdout
        and len(ClipIndex.open(tmp_path / "x.parquet")) == 2
    )
    before = sorted(tmp_path.iterdir())
    for arguments in (
        ["nowhere", "--out", "y.parquet"],
        ["clips"],
        ["clips", "--out", "y.parquet", "--min-s", "soon"],
        ["clips", "--out", "y", "--max-black", "7"],
    ):
        bad = run_command(tmp_path, *arguments)
        assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1, bad.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.fast
def test_every_option_of_a_scan_is_an_argument_with_its_meaning():
    text = index_command._parser().format_help()
    for name in ScanOptions.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text and index_command._OPTION_HELP[name]


def run_command(folder, *arguments):
    command = [sys.executable, "-m", "data_prep.index", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=_environment(), check=False)


def _environment():
    return os.environ | {"PYTHONPATH": str(Path(index_command.__file__).parents[1])}


@pytest.mark.skipif(not (SHARED / "odd_videos").is_dir(), reason="shared/data/odd_videos is not beside the checkout")
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
        with open_video(row.uri) as (container, stream):
            reformatter = av.video.reformatter.VideoReformatter()
            decoded = enumerate(islice(container.decode(stream), row.num_frames))
            in_order = {
                k: upright(reformatter, frame, row.rotation, row.sample_aspect)
                for k, frame in decoded
                if np.abs(ids - k).min() <= 2
            }
        for k, frame in zip(ids, read_frames(row, ids), strict=True):
            away = {
                j: np.abs(frame[::2, ::2].astype(int) - in_order[j][::2, ::2]).mean()
                for j in range(k - 2, k + 3)
                if j in in_order
            }
            assert away[k] <= min(5.0, min(away.values()) + 0.05), (Path(row.uri).name, k, away)
