"""Several indexes as one: they give what one index with the same rows gives, down to the weights of a run."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_runs import losses, same_weights, settings

from vjepa.config import ConfigError, Source
from vjepa.config.files import load
from vjepa.data.clip_index import SCHEMA, ClipIndex, write_index
from vjepa.data.joined_index import are_shared, open_index
from vjepa.data.quarantine import put_in_quarantine, quarantined
from vjepa.data.sources import open_sources
from vjepa.errors import UserError
from vjepa.probing.splits import fingerprint, read_splits
from vjepa.training.pretraining import train


@pytest.fixture
def halves(clips) -> list[str]:
    """Two indexes in different folders, of the first five rows of `clips` and of the last seven.

    Ids of labels are wrong in them, and each has a column of its own.
    """
    rows = [row | {"uri": str(clips.parent / row["uri"])} for row in ClipIndex.open(clips).records()]
    paths = []
    for name, some in (("a", rows[:5]), ("b", rows[5:])):
        path = clips.parent / name / "x.parquet"
        path.parent.mkdir()
        write_index(path, [row | {name: f"{name}{i}", "label_id": 0} for i, row in enumerate(some)])
        paths.append(str(path))
    return paths


@pytest.mark.fast
def test_every_way_of_reading_gives_what_one_index_gives(clips, halves):
    one, joined = ClipIndex.open(clips), open_index(halves)
    joined = pickle.loads(pickle.dumps(joined))  # noqa: S301 - as worker processes get it
    assert len(joined) == len(one) == 12 and set(joined.names) == {*one.names, "a", "b"}
    for i in range(12):
        assert repr(joined.row(i)) == repr(one.row(i)) and joined.uri(i) == one.uri(i)
        assert joined.keyframes(i).tolist() == one.keyframes(i).tolist()
        assert all(joined.cell(i, name) == one.cell(i, name) for name in set(one.names) - {"uri"})
    lists = {field.name for field in SCHEMA if pa.types.is_list(field.type)}
    texts = [name for name in one.names if name not in lists | {"uri"}]
    assert all(joined.column(name) == one.column(name) for name in texts)  # label_id too, which the halves have wrong
    assert joined.uris() == one.uris() == joined.column("uri")
    assert joined.column("a") == [f"a{i}" for i in range(5)] + [None] * 7
    for where in ({}, {"split": "train"}, {"label": ["plain", "other"], "split": ["val", "train"]}):
        assert joined.select(where).tolist() == one.select(where).tolist()
    assert joined.select({"b": ["b0", "b6"]}).tolist() == [5, 11]
    assert joined.find("label", ["plain"]) == one.find("label", ["plain"])
    records = [{name: row[name] for name in one.names if name != "uri"} for row in joined.records()]
    assert records == [{name: row[name] for name in one.names if name != "uri"} for row in one.records()]
    with pytest.raises(IndexError):
        joined.row(12)
    with pytest.raises(UserError, match="no column 'fold'"):
        joined.column("fold")
    with pytest.raises(UserError, match="none of its 12 rows"):
        joined.select({"split": "nowhere"})
    assert joined.arrow("label_id").type == SCHEMA.field("label_id").type


@pytest.mark.fast
def test_a_row_is_the_same_by_itself_and_among_others(halves):
    a, b = map(ClipIndex.open, halves)
    joined, turned = open_index(halves), open_index(halves[::-1])
    rng = np.random.default_rng(0)

    def files(index, row):
        first, part = next(found for found in reversed(index.parts) if found[0] <= row)
        return part.path, row - first

    for one in (a, b, joined, turned):
        for other in (a, b, joined, turned):
            rows, others = (np.sort(rng.permutation(len(index))[:4]) for index in (one, other))
            twin = [files(one, row) in {files(other, row) for row in others} for row in rows]
            assert are_shared(one, rows, other, others).tolist() == twin


@pytest.mark.fast
def test_quarantine_stays_beside_the_index_that_has_the_clip(halves):
    joined = open_index(halves)
    for row in (2, 7):
        put_in_quarantine(joined, row, "hung")
    assert quarantined(joined) == {2: "in quarantine: hung", 7: "in quarantine: hung"}
    assert list(quarantined(ClipIndex.open(halves[0]))) == [2] and list(quarantined(ClipIndex.open(halves[1]))) == [2]


@pytest.mark.fast
def test_what_cannot_be_joined_is_one_line(halves, clips):
    with pytest.raises(UserError, match=r"x\.parquet: is named twice, and its clips would count twice"):
        open_index([halves[0], f"{clips.parent}/b/../a/x.parquet"])
    with pytest.raises(UserError, match="no such clip index"):
        open_index([halves[0], "missing.parquet"])
    with pytest.raises(ConfigError, match=r"data.train.index: names no index"):
        load("small", ["data.train=[]"])
    with pytest.raises(ConfigError, match=r"data.prepare: demo is written beside one index"):
        load("demo", ["data.train=[a.parquet, b.parquet]"])


@pytest.mark.fast
def test_the_command_line_takes_a_list_and_one_choice_of_rows():
    found = load("small", ["data.train=[a.parquet, 7]", "data.train.where.split=train", "data.val=null"])
    assert found.data.train == Source(index=["a.parquet", "7"], where={"split": "train"})
    assert found.data.train.paths == ("a.parquet", "7") and Source(index="a").paths == ("a",)


@pytest.mark.fast
def test_clips_that_are_measured_are_refused_in_whatever_list(clips, halves):
    data = settings(clips, "run", data={"train": {"index": halves}, "val": {"index": halves[1]}}).data
    with pytest.raises(UserError, match=r"data\.val: 5 of its 7 clips are in data.train too"):
        read_splits(data, ["label"])


def test_a_run_on_the_joined_index_is_the_run_on_one_with_the_same_rows(clips, halves) -> None:
    val = {"where": {"split": "val"}}
    of = {
        name: {"train": {"index": index, "where": {"split": "train"}}, "val": {"index": index, **val}}
        for name, index in (("one", str(clips)), ("joined", halves))
    }
    one, joined = (settings(clips, name, data=of[name]) for name in of)
    assert [source.num_rows for source in open_sources(joined.data)] == [6]
    prints = [fingerprint(read_splits(run.data, ["label"])) for run in (one, joined)]
    assert prints[0] == prints[1]
    summary = train(one, progress=False)
    assert train(joined, stop_at_step=3, progress=False) is None
    resumed = train(joined, progress=False)
    assert summary is not None and resumed is not None
    assert losses(one.run.dir) == losses(joined.run.dir) and same_weights(one, joined)
    assert summary["probes"] == resumed["probes"]
    assert "index:\n    - " in Path(joined.run.dir, "config.yaml").read_text()
