"""Describing an index: the numbers are those of a plain count, warnings name what is wrong, and no file can hang or
inject.
"""

import io
import os
import re
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import describe as command
from data_prep.looking.contact_sheet import FRAME_PX, read_clips, spread
from data_prep.looking.description import Table, printable, shorten, text
from data_prep.looking.findings import describe, usable_rows
from data_prep.looking.page import page
from data_prep.scanning.build import build_index
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
HOSTILE = '<img src=x onerror=alert(1)>\n\x1b[31m"&amp;.mp4'


def row(uri="a.mp4", **columns):
    return {
        "uri": uri, "first_frame": 0, "start_s": 0.0, "end_s": 2.0, "num_frames": 50,
        "fps": 25.0, "keyframes_s": [0.0, 1.0], "width": 64, "height": 48,
        "rotation": 0, "sample_aspect": 1.0, "codec": "h264", "decoder": "decord", "status": "ok", "file_bytes": 1000,
    } | columns  # fmt: skip


@pytest.fixture
def index(tmp_path):
    def write(*rows):
        write_index(tmp_path / "x.parquet", rows)
        return ClipIndex.open(tmp_path / "x.parquet")

    return write


def cells(description, title):
    """The rows of a table by their first cell."""
    (table,) = [table for table in description.tables if table.title == title]
    return {name: tuple(rest) for name, *rest in table.rows}


@pytest.mark.fast
def test_counts_hours_and_bytes_are_those_of_a_plain_count(index):
    found = describe(
        index(
            row("a.mp4", end_s=3600.0), row("a.mp4", first_frame=90, start_s=3600.0, end_s=5400.0),
            row("b.mp4", status="empty file"),
            row("c.png", end_s=1.0, decoder="image"), row("d.tar", offset=512, length=24),
            row("d.tar", offset=1024, length=1000, status="filtered: black"),
        )
    )  # fmt: skip
    overview = cells(found, "Overview")
    assert [
        overview[name][0] for name in ("usable clips", "left out by a filter", "not usable", "files", "stills")
    ] == ["4", "1", "1", "5", "1"]
    assert overview["video in usable clips"] == ("3", "1.5 h")  # the still is not video, the clips of one file add up
    assert (
        overview["files"][1] == f"{(3 * 1000 + 24 + 1000) / 1024:.4g} KiB"
    )  # a file once, members of a shard by their length
    assert found.warnings == ("17% of the rows are not usable; the reasons are below",)


@pytest.mark.fast
def test_quantiles_are_those_of_numpy(index):
    rng = np.random.default_rng(0)
    ends, fps = rng.uniform(1, 9, 101), rng.uniform(5, 60, 101)
    rows = [
        row(str(i), end_s=end, fps=rate, num_frames=40, keyframes_s=[0.0] * (1 + i % 4))
        for i, (end, rate) in enumerate(zip(ends, fps, strict=True))
    ]
    found = cells(describe(index(*rows, row("bad", end_s=999.0, status="broken"))), "Usable clips, quantiles")
    at = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
    assert found["duration, s"] == tuple(f"{value:.4g}" for value in np.quantile(ends, at))
    assert found["rate, fps"] == tuple(f"{value:.4g}" for value in np.quantile(fps, at))
    assert found["frames per keyframe"][0] == "10" and found["frames per keyframe"][-1] == "40"
    assert "motion, share of white" not in found  # not measured: not shown


@pytest.mark.fast
def test_reasons_come_with_files_and_those_that_differ_in_numbers_are_one(index):
    late = [row(f"late{i}.mp4", status=f"scan took longer than {60 + i}.5 s and was stopped") for i in range(4)]
    found = describe(
        index(
            row(), *late, row("folder/bad.mp4", status="empty file"), row("f.mp4", status="filtered: 1.5 s, under 2 s")
        )
    )
    failures = cells(found, "Not usable, by reason")
    assert failures == {
        "scan took longer than 60.5 s and was stopped (and other numbers)": (
            "4",
            "late0.mp4, late1.mp4, late2.mp4, ...",
        ),
        "empty file": ("1", "bad.mp4"),
    }
    assert cells(found, "Left out by a filter, by reason") == {"1.5 s, under 2 s": ("1", "f.mp4")}


@pytest.mark.fast
def test_examples_name_a_file_once_and_a_member_by_its_place(index):
    cut = [row("long.mp4", first_frame=50 * i, status="filtered: black") for i in range(5)]
    members = [row("s.tar", offset=512 * i, length=100, status="filtered: black") for i in range(2)]
    shown = cells(describe(index(row(), *cut, *members)), "Left out by a filter, by reason")
    assert shown == {"black": ("7", "long.mp4, s.tar at byte 0, s.tar at byte 512")}


@pytest.mark.fast
def test_many_reasons_are_summed_up(index):
    rows = [row(f"{i}.mp4", status=f"reason {'abcdefghijkl'[i]}") for i in range(12)]
    failures = cells(describe(index(row(), *rows)), "Not usable, by reason")
    assert len(failures) == 9 and failures["4 other reasons"] == ("4", "")


@pytest.mark.fast
def test_stored_oddities_sizes_codecs_and_the_slow_decoder(index):
    odd = row(
        "odd.avi",
        decoder="pyav",
        times_s=[0.0, 0.1, 0.5],
        rotation=90,
        sample_aspect=1.5,
        bit_depth=10,
        codec="mpeg4",
        width=48,
        height=64,
    )
    found = describe(
        index(row("a.mp4", bit_depth=8), row("b.mp4", bit_depth=8), odd, row("c.mp4", decoder="pyav", status="broken"))
    )
    assert (
        set(cells(found, "Handled while reading").values()) == {("1", "33.3%")}
        and len(cells(found, "Handled while reading")) == 4
    )
    assert cells(found, "Sizes, px (upright, square pixels)") == {"64x48": ("2", "66.7%"), "48x64": ("1", "33.3%")}
    assert cells(found, "Codecs")["h264"] == ("2", "66.7%") and cells(found, "Bits a sample")["10"] == ("1", "33.3%")
    (slow,) = [warning for warning in found.warnings if "in order" in warning]
    assert slow.startswith("1 usable clip (33%)") and "data_prep.transcode" in slow and "odd.avi" in slow


@pytest.mark.fast
def test_a_group_or_a_content_in_two_splits_is_a_warning(index):
    rows = [
        row("a.mp4", split="train", group="g", content_hash="1"),
        row("b.mp4", split="val", group="g", content_hash="2"),
        row("c.mp4", split="train", group="h", content_hash="3"),
        row("d.mp4", split="val", group="i", content_hash="3", duplicate_of="c.mp4"),
        row("e.mp4", split="val", group="h", content_hash="1", status="empty file"),
        row("f.mp4", group="h", content_hash="4"),
    ]  # fmt: skip
    found = describe(index(*rows))
    assert [warning for warning in found.warnings if "split" in warning] == [
        "1 group lies in more than one split, so a split holds what another one has seen; clips of them: a.mp4, b.mp4",
        "1 file content lies in more than one split, so a split holds what another one has seen; clips of "
        "them: c.mp4, d.mp4",
    ]
    assert any("1 usable clip is of a file with the same content" in warning for warning in found.warnings)
    assert cells(found, "Duplicates: files with the same content") == {"c.mp4": ("1",)}
    only_train = describe(index(*rows), {"split": ["train"]})
    assert not any("split" in warning for warning in only_train.warnings)


@pytest.mark.fast
def test_class_balance(index):
    labels = Counter({f"class {i:02}": i + 1 for i in range(30)})
    rows = [
        row(f"{label}/{i}.mp4", label=label, split="val" if i == 1 else "train")
        for label, count in labels.items()
        for i in range(count)
    ]
    rows += [row("x.mp4", label="lost", status="broken"), row("y.mp4"), row("z.mp4", label="only in val", split="val")]
    found = describe(index(*rows))
    shown = cells(found, "Classes, by number of usable clips")
    assert next(iter(shown)) == "class 29" and shown["class 29"][0] == "30" and shown["lost"][0] == "0"
    assert shown["... 16 others ..."] == ("", "") and len(shown) == 17
    (warning,) = [warning for warning in found.warnings if "classes" in warning]
    assert warning.startswith("3 classes with fewer than 2 usable clips") and warning.endswith(
        ": lost, only in val, class 00"
    )
    assert cells(found, "Splits")["val"][2:] == ("30", "1") and cells(found, "Splits")["(none)"][0] == "1"


@pytest.mark.fast
def test_where_keeps_rows_that_are_not_usable(index, tmp_path):
    x = index(
        row("a.mp4", split="train"),
        row("b.mp4", split="train", status="empty file"),
        row("c.mp4", split="val"),
        row("d.mp4"),
    )
    assert cells(describe(x, {"split": ["train"]}), "Overview")["not usable"][0] == "1"
    assert cells(describe(x, {"split": ["train", "val"]}), "Overview")["usable clips"][0] == "2"
    assert usable_rows(x, {"split": ["val"]}).tolist() == [2]
    wrong = {
        "split": "--where split: rows are written COLUMN=VALUE",
        "speed=3": "no column 'speed'",
        "keyframes_s=3": "no column 'keyframes_s'",
        "split=test": "none of its 4 rows matches split=test",
    }
    for where, message in wrong.items():
        with pytest.raises(UserError, match=message):
            command.main([str(x.path), "--where", where])


@pytest.mark.fast
def test_an_index_without_a_usable_clip_is_described(index):
    found = describe(index(row(status="empty file"), {"uri": "b.mp4", "status": "not a video or image"}))
    assert "no clip is usable" in found.warnings[0] and "empty file" in text(found)


@pytest.mark.fast
def test_columns_of_the_user_are_summed_up(index):
    found = describe(
        index(row("a.mp4", camera="left", group="g"), row("b.mp4", camera="left"), row("c.mp4", camera="right"))
    )
    assert cells(found, "Other columns") == {"group": ("1", "2", "g (1)"), "camera": ("2", "0", "left (2), right (1)")}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.links = Counter(), []

    def handle_starttag(self, tag, attrs):
        self.found[tag] += 1
        self.links += [value for name, value in attrs if name in ("src", "href") or name.startswith("on")]


def test_hostile_names_and_labels_inject_nothing(index, tmp_path):
    x = index(
        row(HOSTILE, label=HOSTILE, split=HOSTILE, **{HOSTILE: HOSTILE}),
        row("b.mp4", status=HOSTILE),
        row("c.mp4", status=f"filtered: {HOSTILE}"),
    )
    found = describe(x, {"label": [HOSTILE]})
    for description in (describe(x), found):
        tags = Tags()
        tags.feed(page(description, tuple(read_clips(x, [0]))))
        assert (
            tags.found["script"] == 1  # that of the house, whose hash the policy names
            and tags.found["b"] == tags.found["iframe"] == 0
            and all(link.startswith("data:") for link in tags.links)
        )
        assert "\x1b" not in text(description) and not any(
            line.startswith('"&amp;') for line in text(description).splitlines()
        )


@pytest.mark.fast
@pytest.mark.parametrize("words", ["a" * 99, HOSTILE, "", "\u202egpj.exe", "日本語 видео.mp4"])
def test_printable_and_shorten(words):
    assert printable(words).isprintable() and shorten(words, 20).isprintable() and len(shorten(words, 20)) <= 20
    assert printable("日本語 é") == "日本語 é"


@pytest.mark.fast
def test_columns_of_numbers_are_told_from_names():
    table = Table("", ("", "", "", ""), (("a", "1,200", "3.1 min", "02.mp4"), ("b", "", "5.0%", "-dash.mp4")))
    assert [table.is_number(column) for column in range(4)] == [False, True, True, False]


@pytest.mark.fast
def test_spread_is_even_and_without_repeats():
    assert spread(np.arange(100), 4).tolist() == [12, 37, 62, 87]
    assert spread(np.array([3, 5]), 9).tolist() == [3, 5] and spread(np.array([], dtype=np.int64), 4).tolist() == []


def test_a_sheet_shows_the_frames_and_a_hanging_file_only_costs_its_deadline(make_video, tmp_path):
    make_video("clips/a.mp4", 20, size=(96, 64))
    make_video("clips/b.mp4", 20, size=(64, 96))
    (tmp_path / "clips/c.mp4").write_text("text")
    rows = list(build_index(tmp_path / "clips", tmp_path / "x.parquet", workers=1, progress=False).records())
    os.mkfifo(tmp_path / "clips/pipe.mp4")  # opening it waits for a writer, for ever
    write_index(
        tmp_path / "y.parquet",
        [rows[0], rows[0] | {"uri": "clips/pipe.mp4", "decoder": "pyav"}, rows[0] | {"uri": "clips/gone.mp4"}, rows[1]],
    )
    index = ClipIndex.open(tmp_path / "y.parquet")
    started = time.monotonic()
    a, pipe, gone, b = read_clips(index, range(4), deadline_s=3.0)
    assert time.monotonic() - started < 60
    assert a.jpeg and b.jpeg and a.reason is b.reason is None
    assert pipe.jpeg is None and pipe.reason == "took longer than 3 s and was stopped"
    assert gone.jpeg is None and gone.reason and "\n" not in gone.reason
    strip = np.array(Image.open(io.BytesIO(a.jpeg)).convert("L")).astype(int)
    assert strip.shape == (FRAME_PX[1], a.num_frames * FRAME_PX[0]) and a.num_frames == 5
    middles = [strip[FRAME_PX[1] // 2, FRAME_PX[0] // 2 + place * FRAME_PX[0]] for place in range(5)]
    expected = [20 + i * 17 % 43 * 5 for i in (2, 6, 10, 14, 18)]  # `level` of conftest at 10 %, 30 % ... of 20 frames
    assert middles == pytest.approx(expected, abs=8)


def test_a_crash_of_the_child_costs_one_clip(make_video, tmp_path, monkeypatch):
    make_video("clips/a.mp4")
    index = build_index(tmp_path / "clips", tmp_path / "x.parquet", workers=1, progress=False)
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(
        "import os\nfrom vjepa.data import decode\nright = decode.read_frames\nflag = os.environ['FLAG']\n"
        "def read_frames(row, ids):\n    if not os.path.exists(flag):\n        open(flag, 'w').close()\n     "
        "   os._exit(11)\n    return right(row, ids)\n"
        "decode.read_frames = read_frames\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setenv("FLAG", str(tmp_path / "crashed"))
    assert [clip.reason for clip in read_clips(index, [0, 0])] == ["the decoder crashed", None]


def test_the_command_prints_and_writes_one_page(make_video, tmp_path, capsys):
    for name in ("a", "b", "c"):
        make_video(f"clips/{name}.mp4")
    build_index(tmp_path / "clips", tmp_path / "x.parquet", workers=1, progress=False)
    html = tmp_path / "page.html"
    for _ in range(2):  # a page may be replaced
        assert command.main([str(tmp_path / "x.parquet"), "--html", str(html), "--clips", "2"]) == 0
    out = capsys.readouterr().out
    assert "usable clips" in out and f"{html}: written" in out
    source = html.read_text()
    assert len(re.findall("data:image/jpeg;base64", source)) == 2
    loaded = re.findall(r"(?:src|href)=\"(?!data:|#)([^\"]*)", source)
    assert not loaded and "default-src 'none'" in source
    assert (
        "a.mp4: row 0" in source and "c.mp4: row 2" in source and "b.mp4: row 1" not in source
    )  # 2 of 3, evenly spaced
    for bad in (tmp_path / "x.parquet", tmp_path, tmp_path / "none/page.html"):
        before = (tmp_path / "x.parquet").read_bytes()
        with pytest.raises(UserError, match="--html"):
            command.main([str(tmp_path / "x.parquet"), "--html", str(bad)])
        assert (tmp_path / "x.parquet").read_bytes() == before


def test_every_odd_file_is_in_the_description(tmp_path):
    folder = SHARED / "odd_videos"
    if not folder.is_dir():
        pytest.skip("shared/data/odd_videos is not beside the checkout")
    index = build_index(folder, tmp_path / "x.parquet", progress=False)
    found = describe(index)
    overview = cells(found, "Overview")
    assert sum(int(overview[name][0]) for name in ("usable clips", "left out by a filter", "not usable")) == len(index)
    failures = cells(found, "Not usable, by reason")
    assert sum(int(count) for count, _ in failures.values()) == int(overview["not usable"][0])
    clips = list(read_clips(index, usable_rows(index).tolist()))
    assert all(clip.jpeg for clip in clips)
