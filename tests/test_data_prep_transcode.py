"""Copies: the right frames at the right times, upright, easy to seek in; a run that was interrupted goes on; nothing
lands elsewhere.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_prep import transcode as command
from data_prep.copying import transcode as copying
from data_prep.copying.encode import copy_size, timeline
from data_prep.copying.job import CopyOptions
from data_prep.copying.output import claim_folder, index_facts
from data_prep.copying.transcode import copy_name, transcode
from data_prep.scanning.build import build_index
from data_prep.scanning.options import ScanOptions
from tests.conftest import level
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.decode import read_frames
from vjepa.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def build(tmp_path, labels=None):
    return build_index(tmp_path / "clips", tmp_path / "x.parquet", labels, workers=1, progress=False)


def copies(tmp_path, index, out="out", progress=False, **options):
    where = options.pop("where", None)
    return transcode(index, tmp_path / out, CopyOptions(**options), where=where, workers=1, progress=progress)


def greys(index, i):
    """The grey level of each frame of a row."""
    return read_frames(index.row(i), np.arange(index.row(i).num_frames)).mean(axis=(1, 2, 3))


def packets(path):
    """(seconds, is a keyframe, is in the order of display) of each packet of a video."""
    with av.open(str(path)) as container:
        return [
            (float(packet.pts * packet.time_base), packet.is_keyframe, packet.pts == packet.dts)
            for packet in container.demux(video=0)
            if packet.size
        ]


def rewrite(index, change):
    """The index with `change(record, i)` done to each record."""
    write_index(index.path, [record | change(record, i) for i, record in enumerate(index.records())])
    return ClipIndex.open(index.path)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1280, 720), (456, 256)),
        ((720, 1280), (256, 456)),
        ((256, 256), (256, 256)),
        ((321, 241), (320, 240)),
        ((1, 9), (2, 8)),
        ((3840, 1600), (614, 256)),
    ],
)
def test_sizes_are_even_and_never_larger(size, expected):
    assert copy_size(*size, 256) == expected


def test_frames_times_and_keyframes(make_video, tmp_path):
    make_video("clips/a.mp4", 43, fps=10, size=(320, 240), gop=250)
    source = build(tmp_path)
    index = copies(tmp_path, source, short_side_px=64, gop_frames=8)
    row, record = index.row(0), next(index.records())
    assert (row.num_frames, row.width, row.height, row.fps, row.start_s) == (43, 86, 64, pytest.approx(10), 0)
    assert row.end_s == pytest.approx(4.3)
    assert greys(index, 0) == pytest.approx(greys(source, 0), abs=2)
    seconds, keys, in_order = zip(*packets(row.uri), strict=True)
    assert seconds == pytest.approx(np.arange(43) / 10, abs=1e-4) and all(in_order)
    assert list(np.flatnonzero(keys)) == list(range(0, 43, 8)) and record["keyframes_s"] == pytest.approx(
        np.arange(0, 43, 8) / 10
    )
    content = Path(row.uri).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # faststart
    with av.open(row.uri) as container:
        assert len(container.streams) == 1 and container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_keyframes_and_cuts_of_the_source_leave_no_trace(tmp_path, make_video):
    make_video("clips/a.mp4", 20, gop=3)
    index = copies(tmp_path, build(tmp_path), gop_frames=16)
    assert [key for _, key, _ in packets(index.row(0).uri)] == [i % 16 == 0 for i in range(20)]


def test_a_variable_rate_keeps_its_times_or_becomes_constant(make_video, tmp_path):
    times_ms = [100, 140, 180, 600, 620, 1100, 1140, 1180]
    make_video("clips/a.mp4", 8, times_ms=times_ms)
    source = build(tmp_path)
    kept = copies(tmp_path, source)
    assert kept.row(0).times() == pytest.approx((np.array(times_ms) - 100) / 1000, abs=1e-4)
    assert greys(kept, 0) == pytest.approx([level(i) for i in range(8)], abs=3)
    constant = copies(tmp_path, source, "constant", fps=20)
    row = constant.row(0)
    assert row.times_s is None and row.fps == pytest.approx(20)
    true_times, wanted = source.row(0).times() - source.row(0).start_s, np.arange(row.num_frames) / 20
    expected = [max(i for i, time in enumerate(true_times) if time <= at + 1e-6) for at in wanted]
    assert greys(constant, 0) == pytest.approx([level(i) for i in expected], abs=3)
    assert row.end_s == pytest.approx(source.row(0).end_s - source.row(0).start_s, abs=1 / 20)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_copies_are_upright_with_square_pixels(make_video, tmp_path, rotation):
    make_video("clips/a.mp4", 4, size=(96, 48), rotation=rotation, mark=True, aspect=2)
    source = build(tmp_path)
    index = copies(tmp_path, source)
    row = index.row(0)
    assert (row.rotation, row.sample_aspect, row.width, row.height) == (0, 1, source.row(0).width, source.row(0).height)
    assert np.abs(read_frames(row, np.arange(4)).astype(int) - read_frames(source.row(0), np.arange(4))).mean() < 3


def test_colours_stay(tmp_path, make_video):
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :32], picture[:, 32:64], picture[:, 64:] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    (tmp_path / "clips").mkdir()
    with av.open(str(tmp_path / "clips/a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv444p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    source = build(tmp_path)
    index = copies(tmp_path, source, crf=5)
    points = np.s_[:, 8:56, [16, 48, 80]]
    wanted, got = (read_frames(rows.row(0), np.arange(3))[points].astype(int) for rows in (source, index))
    assert np.abs(wanted - got).max() <= 6


def test_parts_of_a_video_become_files_of_their_own_and_it_is_decoded_once(make_video, tmp_path, monkeypatch):
    make_video("clips/a.mp4", 40, fps=10)
    whole = next(build(tmp_path).records())
    parts = [(0, 10), (5, 20), (30, 10)]
    rows = [
        whole
        | {
            "first_frame": a,
            "num_frames": n,
            "start_s": a / 10,
            "end_s": (a + n) / 10,
            "scene": str(a),
            "label": "x",
            "label_id": 0,
        }
        for a, n in parts
    ]
    write_index(tmp_path / "x.parquet", rows)
    index = copies(tmp_path, ClipIndex.open(tmp_path / "x.parquet"))
    assert [index.row(i).first_frame for i in range(3)] == [0, 0, 0] and len({index.row(i).uri for i in range(3)}) == 3
    for i, (first, num) in enumerate(parts):
        assert index.row(i).start_s == 0 and greys(index, i) == pytest.approx(
            [level(j) for j in range(first, first + num)], abs=3
        )
    assert index.column("scene") == ["0", "5", "30"] and index.column("label_id") == ["0"] * 3
    jobs = list(copying._jobs(ClipIndex.open(tmp_path / "x.parquet"), [0, 1, 2], tmp_path / "out", CopyOptions()))
    assert [len(job.rows) for job in jobs] == [3]


def test_stills(tmp_path):
    (tmp_path / "clips").mkdir()
    picture = Image.effect_noise((60, 40), 80).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "clips/a.png")
    picture.save(tmp_path / "clips/b.JPG", exif=turned)
    picture.save(tmp_path / "clips/c.bmp")
    index = copies(tmp_path, build(tmp_path), short_side_px=20)
    assert [Path(index.row(i).uri).name for i in range(3)] == ["000000000-a.png", "000000001-b.jpg", "000000002-c.png"]
    assert [(index.row(i).width, index.row(i).height) for i in range(3)] == [(30, 20), (20, 30), (30, 20)]
    same = copies(tmp_path, build(tmp_path), "same", short_side_px=256)
    assert (read_frames(same.row(0), np.zeros(1, int))[0] == np.asarray(picture)).all()


def area_means(frames, factor):
    """Reduce [T, H, W, C] by a whole factor, the plain way."""
    num, height, width, channels = frames.shape
    cells = frames.reshape(num, height // factor, factor, width // factor, factor, channels)
    return cells.mean((2, 4))


@pytest.mark.parametrize(("kind", "side_px"), [(np.uint8, 20), (np.uint16, 20), (np.uint16, 256)])
def test_stacks_become_arrays_of_their_values(tmp_path, kind, side_px):
    """Of smooth pictures, of which any good filter gives about the mean of an area."""
    (tmp_path / "clips").mkdir()
    waves = np.sin(np.arange(7)[:, None, None, None] + np.linspace(0, 3, 40)[:, None, None] * np.arange(1, 6))
    stack = (np.iinfo(kind).max * (0.5 + 0.4 * np.broadcast_to(waves, (7, 40, 60, 5)))).astype(kind)
    np.savez_compressed(tmp_path / "clips/a.npz", np.moveaxis(stack, -1, 1))
    options = ScanOptions(axes="tchw", stack_fps=4, window_s=1)
    source = build_index(tmp_path / "clips", tmp_path / "x.parquet", workers=1, progress=False, options=options)
    index = copies(tmp_path, source, short_side_px=side_px)
    assert [(row.num_frames, row.fps) for row in map(index.row, range(2))] == [(4, 4), (3, 4)]
    found = np.concatenate([read_frames(row, np.arange(row.num_frames)) for row in map(index.row, range(2))])
    assert found.dtype == kind and [Path(index.row(i).uri).suffix for i in range(2)] == [".npy"] * 2
    if side_px == 256:
        assert np.array_equal(found, stack)
    else:
        assert np.abs(found - area_means(stack.astype(float), 2)).max() < 0.02 * np.iinfo(kind).max
    slower = copies(tmp_path, source, "slower", fps=2)
    assert slower.row(0).fps == 2
    assert np.array_equal(read_frames(slower.row(0), np.arange(2)), stack[:4:2])


def test_a_mixed_index_is_copied_and_pairs_stay_where_they_are(make_video, tmp_path, capsys):
    for name in ("alone", "film", "depth"):
        make_video(f"clips/{name}.mp4", 4, size=(64, 48))
    np.save(tmp_path / "clips/stack.npy", np.full((6, 8, 5), 9, np.uint16))
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "file,companion,split\nalone.mp4,,train\nfilm.mp4,depth.mp4,train\nstack.npy,,train\ndepth.mp4,,\n"
    )
    source = build(tmp_path, labels)
    index = copies(tmp_path, source, progress=True, where={"split": ["train"]})
    assert "2 clips copied; 2 stay as they are, where they are" in capsys.readouterr().out
    names = {Path(index.row(i).uri).name: index.row(i) for i in range(len(index))}
    assert {name: row.bits for name, row in names.items()} == {
        "000000000-alone.mp4": 8, "depth.mp4": 8, "film.mp4": 8, "000000003-stack.npy": 16,
    }  # fmt: skip
    assert names["film.mp4"].companion.uri == str(tmp_path / "clips/depth.mp4")
    assert index.column("source")[2] == str(tmp_path / "clips/film.mp4")
    pairs = copies(tmp_path, source, "pairs", where={"split": ["train"], "companion": ["depth.mp4"]})
    assert len(pairs) == 2


def test_labels_and_other_columns_are_kept_and_bad_rows_counted(make_video, tmp_path, capsys):
    for name in ("a", "b", "c"):
        make_video(f"clips/{name}.mp4", 2)
    (tmp_path / "clips/d.mp4").write_text("text")
    labels = tmp_path / "clips/labels.csv"
    labels.write_text(
        "file,label,split,group,scene\na.mp4,run,train,g,park\nb.mp4,jump,val,g,\nc.mp4,run,val,h,sea\nd.mp4,run,val,h,sea\n"
    )
    source = build(tmp_path, labels)
    index = copies(tmp_path, source, progress=True, where={"split": ["val"], "label": ["run", "jump"]})
    assert (
        index.column("label") == ["jump", "run"]
        and index.column("scene") == [None, "sea"]
        and index.column("label_id") == ["0", "1"]
    )
    assert index.column("source") == [str(tmp_path / f"clips/{name}.mp4") for name in "bc"] and index.column(
        "group"
    ) == ["g", "h"]
    out = capsys.readouterr().out
    assert "2 clips copied" in out and "not usable in" in out and "1: not a video or image x1" in out
    again = copies(tmp_path, index, "again", short_side_px=32)
    assert again.column("source") == index.column("source")  # a copy of a copy still names the original


def test_a_second_run_goes_on_where_the_first_one_was(make_video, tmp_path):
    for name in ("a", "b", "c"):
        make_video(f"clips/{name}.mp4", 4)
    source = build(tmp_path)
    index = copies(tmp_path, source)
    paths = [Path(index.row(i).uri) for i in range(3)]
    records = list(index.records())
    stamps = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    journal = tmp_path / "out" / copying._JOURNAL
    journal.write_bytes(journal.read_bytes() + b'[["000000/0000')  # cut off in the middle of a line
    (tmp_path / "out/index.parquet").unlink()
    again = copies(tmp_path, source)
    drop = {"modified_ns": None}
    assert [record | drop for record in again.records()] == [record | drop for record in records]
    assert [path.stat().st_mtime_ns == stamp for path, stamp in zip(paths, stamps, strict=True)] == [True, False, True]
    with pytest.raises(UserError, match=r"was made otherwise .crf 23.0, now 30.0.; choose another --out"):
        copies(tmp_path, source, crf=30.0)


def test_an_interrupted_command_leaves_whole_copies_only(make_video, tmp_path):
    for i in range(6):
        make_video(f"clips/{i}.mp4", 40, size=(320, 240))
    build(tmp_path)
    line = [sys.executable, "-m", "data_prep.transcode", "x.parquet", "--out", "out", "--workers", "1"]
    process = subprocess.Popen(line, cwd=tmp_path, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    journal = tmp_path / "out" / copying._JOURNAL
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (0, 130)
    for path in tmp_path.glob("out/*/[!.]*.mp4"):
        assert len(packets(path)) == 40
    done = subprocess.run(line, cwd=tmp_path, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "6 clips copied" in done.stdout
    assert not list(tmp_path.glob("out/*/.*"))


def test_a_file_that_cannot_be_copied_is_named_and_the_rest_goes_on(make_video, tmp_path, capsys):
    for name in ("a", "b", "c"):
        make_video(f"clips/{name}.mp4", 8)
    source = rewrite(build(tmp_path), lambda record, i: {"num_frames": 99} if i == 1 else {})
    os.remove(tmp_path / "clips/c.mp4")
    index = copies(tmp_path, source, progress=True)
    assert index.column("source") == [str(tmp_path / "clips/a.mp4")]
    out = capsys.readouterr().out
    assert (
        "not copied: 2" in out
        and "ends after 8 frames, the index says 99" in out
        and "No such file" in out
        and str(tmp_path / "clips/b.mp4") in out
    )
    make_video("clips/c.mp4", 8)
    assert len(copies(tmp_path, source)) == 2  # tried again
    for name in ("a", "b", "c"):
        (tmp_path / f"clips/{name}.mp4").unlink()
    with pytest.raises(UserError, match="none of its 3 clips could be copied: No such file or directory x3"):
        copies(tmp_path, source, "other")


def test_a_child_that_hangs_or_crashes_costs_its_file_only(make_video, tmp_path, monkeypatch):
    for name in ("a", "b", "c", "d"):
        make_video(f"clips/{name}.mp4", 8)
    source = build(tmp_path)
    (tmp_path / "child.py").write_text(
        "import os, sys, time\nfrom data_prep.copying import encode\nright = encode.open_video\n"
        "def wrong(path, *rest):\n"
        "    if 'a.mp4' in str(path): sum(iter(int, 1))\n"  # spins in native code and holds the GIL
        "    if 'c.mp4' in str(path): os._exit(3)\n"
        "    return right(path, *rest)\n"
        "encode.open_video = wrong\nencode.main()\n"
    )
    monkeypatch.setattr(copying, "_PROGRAM", [str(tmp_path / "child.py")])
    index = transcode(source, tmp_path / "out", workers=1, deadline_s=5.0, progress=False)
    assert [Path(uri).name for uri in index.column("source")] == ["b.mp4", "d.mp4"]
    assert not list(tmp_path.glob("out/*/.*"))


def test_one_run_at_a_time_and_what_a_killed_one_left_goes(make_video, tmp_path):
    make_video("clips/a.mp4", 2)
    source = build(tmp_path)
    facts = index_facts(source, {}) | asdict(CopyOptions())
    with (
        claim_folder(tmp_path / "out", copying._MARKER, facts),
        pytest.raises(UserError, match="another process is writing there"),
    ):
        copies(tmp_path, source)
    (tmp_path / "out/000000").mkdir()
    (tmp_path / "out/000000/.partial-1-000000000-a.mp4").write_text("half")
    copies(tmp_path, source)
    assert [path.name for path in (tmp_path / "out/000000").iterdir()] == ["000000000-a.mp4"]


@pytest.mark.fast
def test_refusals(make_video, tmp_path):
    make_video("clips/a.mp4", 2)
    source = build(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious.txt").write_text("text")
    with pytest.raises(UserError, match=r"full: holds other things already \(precious.txt\)"):
        copies(tmp_path, source, "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious.txt"]
    with pytest.raises(UserError, match="cannot be used as a folder"):
        copies(tmp_path, source, "x.parquet")
    for options, message in [
        ({"short_side_px": 255}, "even number"),
        ({"crf": 60}, "--crf 60: "),
        ({"gop_frames": 0}, "--gop-frames 0"),
        ({"fps": -1}, "--fps -1"),
    ]:
        with pytest.raises(UserError, match=message):
            copies(tmp_path, source, **options)
    with pytest.raises(UserError, match="no column 'spilt'"):
        copies(tmp_path, source, where={"spilt": ["train"]})
    with pytest.raises(UserError, match="--where split: rows are written COLUMN=VALUE"):
        command.main([str(source.path), "--out", str(tmp_path / "o"), "--where", "split"])


@pytest.mark.fast
@pytest.mark.parametrize(
    "uri",
    [
        "/x/..",
        "/x/-rf .mp4",
        "/x/a\nb.mp4",
        "/x/../../etc/passwd",
        "/x/.hidden",
        "s3://b/a%2F..%2F.mp4",
        "/x/\udcff\x00.mp4",
        "/x/" + "a" * 300,
        "",
    ],
)
def test_hostile_names_stay_inside(make_video, tmp_path, uri):
    row = build_row(uri)
    name = copy_name(row)
    assert name.isascii() and name.isprintable() and len(name) < 100
    folder, file = name.split("/")
    assert folder.isdigit() and file.startswith("000000012-") and file.endswith(".mp4") and ".." not in file


def build_row(uri):
    from vjepa.data.clip_index import IndexRow

    return IndexRow(12, uri, None, None, 0, 0.0, 1.0, 10, 10.0, None, 64, 64, 0, 1.0, "pyav")


def test_a_file_with_a_hostile_name_is_copied(make_video, tmp_path):
    path = make_video("clips/a.mp4", 4)
    path.rename(tmp_path / "clips/-rf\n;$(x).mp4")
    index = copies(tmp_path, build(tmp_path))
    assert Path(index.row(0).uri).parent == tmp_path / "out/000000" and index.row(0).num_frames == 4


@pytest.mark.fast
def test_the_timeline_of_frames_that_share_a_time():
    row = build_row("/x")
    ids, seconds = timeline(row, 5)
    assert ids.tolist() == [0, 2, 4, 6, 8] and seconds == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    ids, seconds = timeline(row, 0)
    assert ids.tolist() == list(range(10)) and seconds == pytest.approx(np.arange(10) / 10)


def _environment():
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.mark.skipif(not (SHARED / "odd_videos").is_dir(), reason="shared/data/odd_videos is not beside the checkout")
def test_packed_b_frames_come_out_in_the_right_order(tmp_path):
    (tmp_path / "clips").mkdir()
    os.symlink(SHARED / "odd_videos/opencv-doc__tree.avi", tmp_path / "clips/a.avi")
    source = build(tmp_path)
    index = copies(tmp_path, source)
    n = source.row(0).num_frames
    wanted, got = (read_frames(rows.row(0), np.arange(n)).astype(int) for rows in (source, index))
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).mean(axis=(1, 2, 3)).max() < 6
    assert index.row(0).times() == pytest.approx(source.row(0).times() - source.row(0).start_s, abs=1e-4)
