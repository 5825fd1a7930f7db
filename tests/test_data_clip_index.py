"""The clip index: what goes in comes out; filters; refusals with a remedy."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vjepa.data import clip_index
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.errors import UserError

pytestmark = pytest.mark.fast


def make_row(name, **columns):
    row = {
        "uri": name, "start_s": 0.5, "end_s": 1.5, "num_frames": 4,
        "fps": 4.0, "width": 64, "height": 48, "rotation": 90,
        "sample_aspect": 1.0, "codec": "h264", "decoder": "pyav", "keyframes_s": [0.5], "status": "ok", "label_id": -1,
    }  # fmt: skip
    return row | columns


@pytest.fixture
def index(tmp_path):
    rows = [
        make_row("a.mp4", label="cat", label_id=0, split="train", fold="1"),
        make_row("/b.mp4", label="dog", label_id=1, split="val", fold="2", times_s=[0.5, 0.6, 1.0, 1.2]),
        make_row("c.mp4", status="empty file", split="train"),
        make_row("d.mp4", split="train", fold="2", offset=7, length=9, decoder="decord", keyframe_decoder="pyav_seek"),
    ]
    write_index(tmp_path / "x.parquet", rows)
    return ClipIndex.open(tmp_path / "x.parquet")


def test_rows_come_back_as_written(index, tmp_path):
    assert len(index) == 4 and index.path == tmp_path / "x.parquet"
    row = index.row(0)
    assert (row.clip_id, row.uri, row.first_frame, row.num_frames, row.rotation, row.decoder) == (
        0,
        str(tmp_path / "a.mp4"),
        0,
        4,
        90,
        "pyav",
    )
    assert (index.row(1).uri, index.row(2).offset, index.row(3).offset, index.row(3).length) == ("/b.mp4", None, 7, 9)
    assert (row.keyframe_decoder, index.row(3).decoder, index.row(3).keyframe_decoder) == (None, "decord", "pyav_seek")
    assert index.keyframes(0).tolist() == [0.5]
    assert index.row(0).times().tolist() == [0.5, 0.75, 1.0, 1.25]
    assert index.row(1).times().tolist() == [0.5, 0.6, 1.0, 1.2]
    with pytest.raises(IndexError):
        index.row(4)


def test_columns_are_text_and_extra_ones_are_kept(index):
    assert index.column("label") == ["cat", "dog", None, None]
    assert index.column("fold") == ["1", "2", None, "2"]
    assert index.column("label_id") == ["0", "1", "-1", "-1"]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({}, [0, 1, 3]),
        ({"split": "train"}, [0, 3]),
        ({"fold": "2"}, [1, 3]),
        ({"fold": ["1", "2"], "split": ["train"]}, [0, 3]),
        ({"label_id": "1"}, [1]),
    ],
)
def test_select_gives_usable_rows_that_match(index, where, rows):
    selected = index.select(where)
    assert selected.dtype == np.int64 and selected.tolist() == rows


def test_select_names_what_is_wrong(index):
    with pytest.raises(UserError, match=r"no column 'splitt'; it has .*split.*fold"):
        index.select({"splitt": "train"})
    with pytest.raises(UserError, match=r"x\.parquet: none of its 4 rows .* split=test"):
        index.select({"split": "test"})


def test_pickles_as_its_path(index):
    assert len(pickle.dumps(index)) < 1000
    assert pickle.loads(pickle.dumps(index)).row(3) == index.row(3)  # noqa: S301


def test_refuses_what_it_cannot_read_and_names_the_remedy(tmp_path, index):
    (tmp_path / "text.parquet").write_text("file,label\n")
    pq.write_table(pa.table({"uri": ["a"]}), tmp_path / "other.parquet")
    old = pq.read_table(index.path).replace_schema_metadata({clip_index._VERSION_KEY: b"999"})
    pq.write_table(old, tmp_path / "old.parquet")
    reasons = {"missing": "no such", "text": "not a clip index", "other": "not a clip index", "old": "version 999"}
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=rf"{name}\.parquet: .*{reason}.*data_prep\.index FOLDER") as caught:
            ClipIndex.open(tmp_path / f"{name}.parquet")
        assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_index(tmp_path, index):
    before = index.path.read_bytes()
    with pytest.raises((pa.ArrowException, TypeError)):
        write_index(index.path, [make_row("a.mp4", num_frames="many")])
    assert index.path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.parquet.arrow", "x.parquet"]


def test_an_index_written_anew_is_read_anew(index):
    assert index.row(0).num_frames == 4
    write_index(index.path, [make_row("a.mp4", num_frames=5)])
    reopened = ClipIndex.open(index.path)
    assert (len(reopened), reopened.row(0).num_frames) == (1, 5)


def test_records_are_what_was_written(index):
    records = list(index.records())
    assert [record["uri"] for record in records] == ["a.mp4", "/b.mp4", "c.mp4", "d.mp4"]
    assert records[1]["times_s"] == [0.5, 0.6, 1.0, 1.2] and records[1]["fold"] == "2" and records[0]["offset"] is None
    write_index(index.path, records)
    assert list(ClipIndex.open(index.path).records()) == records


def test_where_the_folder_is_read_only_the_copy_lies_in_the_cache_of_the_user(index, tmp_path, monkeypatch):
    (tmp_path / ".x.parquet.arrow").unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(clip_index.os, "access", lambda folder, _: folder != tmp_path)
    assert ClipIndex.open(index.path).row(3) == index.row(3)
    assert not (tmp_path / ".x.parquet.arrow").exists() and len(list((tmp_path / "cache/vjepa").iterdir())) == 1


def test_many_groups_of_rows_are_one_index(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_index, "_ROWS_PER_GROUP", 7)
    rows = [
        make_row(f"{i}.mp4", num_frames=i + 1, times_s=None if i % 3 else [float(k) for k in range(i + 1)])
        for i in range(40)
    ]
    write_index(tmp_path / "x.parquet", iter(rows), extra=[])
    index = ClipIndex.open(tmp_path / "x.parquet")
    assert len(index) == 40 and [index.row(i).num_frames for i in range(40)] == list(range(1, 41))
    assert [index.row(i).times_s is None for i in range(40)] == [bool(i % 3) for i in range(40)]
    assert index.row(39).times_s.tolist() == list(range(40)) and index.select({}).tolist() == list(range(40))


@pytest.mark.parametrize("beside_the_link", [False, True])
def test_an_index_used_through_a_link_finds_its_files(tmp_path, beside_the_link):
    store, work = tmp_path / "store", tmp_path / "work"
    store.mkdir()
    work.mkdir()
    write_index(store / "x.parquet", [{"uri": "v/a.mp4", "status": "ok"}])
    (work / "y.parquet").symlink_to(store / "x.parquet")
    folder = work if beside_the_link else store
    (folder / "v").mkdir()
    (folder / "v" / "a.mp4").touch()
    assert ClipIndex.open(work / "y.parquet").uri(0) == str(folder / "v" / "a.mp4")
