"""Parts of films: each has the rows that it would have alone, and a film is decoded once, however many there are."""

import json
from contextlib import contextmanager
from itertools import islice, product
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep import engines
from data_prep.listing.entry import Entry
from data_prep.scanning import measure as measure_module
from data_prep.scanning.build import build_index
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scan import look_into, scan
from data_prep.scanning.track import FileScan
from vjepa.data import decode
from vjepa.errors import UserError

PARTS = [(0.0, 1.0), (0.5, 1.5), (1.25, None), (None, 0.75), (2.0, 2.1), (0.9, 3.0), (99.0, None), (0.0, 99.0)]
OPTIONS = [ScanOptions(), ScanOptions(window_s=0.4, min_s=0.3), ScanOptions(max_s=0.7, min_motion=0.1)]


def irregular(num_frames, seed=0):
    gaps_ms = np.random.default_rng(seed).choice([40, 40, 100, 150, 400], num_frames - 1)
    return [0, *np.cumsum(gaps_ms).tolist()]


@pytest.fixture
def films(make_video, tmp_path):
    """Of a steady rate, of a varying one, with a pause, of two recordings, and with a change of size."""
    pause_ms = [100 * i + (20_000 if i >= 14 else 0) for i in range(30)]
    seam, sizes = tmp_path / "seam.ts", tmp_path / "sizes.ts"
    seam.write_bytes(make_video("a.ts", 15, fps=10).read_bytes() + make_video("b.ts", 25, fps=10).read_bytes())
    small, large = make_video("c.ts", 12, fps=10, size=(32, 32)), make_video("d.ts", 20, fps=10, size=(64, 48))
    sizes.write_bytes(small.read_bytes() + large.read_bytes())
    return [
        make_video("steady.mp4", 40, fps=10),
        make_video("varying.mkv", 30, times_ms=irregular(30)),
        make_video("pause.mkv", 30, times_ms=pause_ms),
        seam,
        sizes,
    ]


def alone(monkeypatch, path, options, start_s, end_s):
    """A plain twin: the rows of a part where decoding stops a second behind it."""

    def until(frames):
        for frame in frames:
            yield frame
            if end_s is not None and frame.time is not None and frame.time > end_s + 1:
                return

    @contextmanager
    def stopped(media):
        with decode.open_video(media) as (container, stream):
            yield SimpleNamespace(decode=lambda stream: until(container.decode(stream))), stream

    with monkeypatch.context() as patch:
        patch.setattr(measure_module, "open_video", stopped)
        return scan(Entry(str(path), path.name, start_s=start_s, end_s=end_s), options, excluded=["torchcodec"])


def test_a_part_has_the_rows_that_it_has_where_decoding_stops_behind_it(films, monkeypatch):
    for film in films:
        found = look_into(Entry(str(film), film.name), ScanOptions(), excluded=["torchcodec"])
        found = FileScan.from_json(json.loads(json.dumps(found.to_json())))
        whole = found.clips(ScanOptions())[0]
        for options, part in product(OPTIONS, PARTS):
            rows, twins = found.clips(options, *part), alone(monkeypatch, film, options, *part)
            assert len(rows) == len(twins), (film, part)
            for row, twin in zip(rows, twins, strict=True):
                assert row.keys() == twin.keys()
                of_the_file = {"decoder", "keyframe_decoder"} & row.keys()
                assert {name: row[name] for name in of_the_file} == {name: whole[name] for name in of_the_file}
                assert all(row[name] == twin[name] for name in row.keys() - of_the_file), (film, part)


@pytest.fixture
def looked_into(monkeypatch):
    """Names of the files that were really scanned, in order."""
    names, true = [], engines.ENGINES["processes"]

    def engine(tasks, *given):
        tasks = list(tasks)
        names.extend(entry.name for _, entry in tasks)
        yield from true(tasks, *given)

    monkeypatch.setitem(engines.ENGINES, "processes", engine)
    return names


def write_list(tmp_path, parts):
    lines = [f"{name},{start},{end},{label}" for name, start, end, label in parts]
    (tmp_path / "parts.csv").write_text("\n".join(["file,start_s,end_s,label", *lines]) + "\n")


def build(tmp_path, **options):
    return build_index(tmp_path / "parts.csv", tmp_path / "x.parquet", workers=1, **options)


def rows_of(tmp_path):
    return pq.read_table(tmp_path / "x.parquet").to_pylist()


def test_a_film_is_scanned_once_whatever_parts_of_it_are_wanted_and_when(make_video, tmp_path, looked_into, capsys):
    for name, num_frames in (("a", 40), ("b", 44)):
        make_video(f"{name}.mp4", num_frames, fps=10)
    crossed = [(f"{name}.mp4", i / 2, i / 2 + 1, f"l{i}") for i in (2, 0, 1) for name in "ab"]
    write_list(tmp_path, crossed)
    build(tmp_path)
    said = capsys.readouterr()
    assert looked_into == ["a.mp4", "b.mp4"] and "2 files, 6 clips: 6 ok, 0 not usable" in said.out
    assert "2/2" in said.err
    rows = rows_of(tmp_path)
    assert [(row["uri"], row["first_frame"], row["label"]) for row in rows] == [
        (name, round(10 * start), label) for name, start, _, label in crossed
    ]
    for name, start, end, _ in crossed:  # the same as alone
        write_list(tmp_path, [(name, start, end, "l")])
        (alone,) = build_index(tmp_path / "parts.csv", tmp_path / "alone.parquet", workers=1, progress=False).records()
        (row,) = [row for row in rows if (row["uri"], row["first_frame"]) == (name, round(10 * start))]
        assert {**alone, "label": None, "label_id": 0} == {**row, "label": None, "label_id": 0}
    looked_into.clear()
    write_list(tmp_path, [("b.mp4", 0.3, 2.3, "new"), ("b.mp4", 0.0, 1.0, "l0"), ("a.mp4", 3.0, "", "new")])
    capsys.readouterr()
    index = build(tmp_path)
    said = capsys.readouterr().out
    assert looked_into == [] and index.column("first_frame") == ["3", "0", "30"]
    assert "2 files are as they were, 0 changed, 0 new, 0 gone" in said
    assert "files that were scanned for other parts of them: 2; these are cut without a scan" in said
    build(tmp_path, options=ScanOptions(window_s=0.5))
    assert looked_into == [] and len(rows_of(tmp_path)) == 4 + 2 + 2
    make_video("b.mp4", 50, fps=10)
    build(tmp_path)
    assert looked_into == ["b.mp4"]
    build(tmp_path, rescan=True)
    assert looked_into == ["b.mp4", "b.mp4", "a.mp4"]


def test_what_is_known_moves_with_the_films(make_video, tmp_path, looked_into):
    make_video("old/a.mp4", 30, fps=10)
    write_list(tmp_path / "old", [("a.mp4", 0, 1, "x")])
    build(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    write_list(tmp_path / "new", [("a.mp4", 1, 2, "x")])
    assert build(tmp_path / "new").column("first_frame") == ["10"] and looked_into == ["a.mp4"]


def test_an_interrupted_list_of_parts_goes_on_by_files(make_video, tmp_path, looked_into, monkeypatch, capsys):
    for name in "abc":
        make_video(f"{name}.mp4", 20, fps=10)
    write_list(tmp_path, [(f"{name}.mp4", start, start + 1, "x") for start in (0, 1) for name in "abc"])
    true = engines.ENGINES["processes"]

    def interrupted(*given):
        yield from islice(true(*given), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(engines.ENGINES, "processes", interrupted)
        build(tmp_path)
    assert "2 of 3 files are scanned" in capsys.readouterr().err
    looked_into.clear()
    assert len(build(tmp_path)) == 6 and looked_into == ["c.mp4"]
    assert "2 of 3 files were scanned before the interruption" in capsys.readouterr().out


def test_files_are_counted_once_and_reasons_by_part(make_video, tmp_path, capsys):
    make_video("a.mp4", 20, fps=10)
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    (tmp_path / "bad.mp4").write_text("text")
    write_list(tmp_path, [(name, start, start + 1, "x") for name in ("a.mp4", "b.mp4", "bad.mp4") for start in (0, 1)])
    index = build(tmp_path)
    said = capsys.readouterr().out
    assert "files with the content of another: 1;" in said
    assert "3 files, 6 clips: 4 ok, 2 not usable: not a video or image x2" in said
    assert index.column("duplicate_of") == [None, None, "a.mp4", "a.mp4", None, None]
    write_list(tmp_path, [("bad.mp4", 0, 1, "x"), ("bad.mp4", 1, 2, "x")])
    with pytest.raises(UserError, match="none of its 1 files can be decoded: not a video or image x2"):
        build(tmp_path)
