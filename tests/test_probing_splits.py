"""The rows that probes learn from, choose on and are measured on."""

import numpy as np
import pyarrow as pa
import pytest

from vjepa import config
from vjepa.data.clip_index import ClipIndex
from vjepa.errors import UserError
from vjepa.probing import splits


class FakeIndex(ClipIndex):
    """A clip index in memory: columns of equal length."""

    def __init__(self, path="clips.parquet", **columns):
        self.path, self.columns = path, {"group": [None] * len(columns["label"]), **columns}

    @property
    def parts(self):
        return [(0, self)]

    def __len__(self):
        return len(self.columns["label"])

    @property
    def names(self):
        return list(self.columns)

    def arrow(self, name):
        return pa.array(self.columns[name]) if name in self.columns else pa.nulls(len(self), pa.int32())

    def column(self, name):
        return self.columns[name]

    def select(self, where):
        wanted = {name: value if isinstance(value, list) else [value] for name, value in where.items()}
        return np.array(
            [
                i
                for i in range(len(self.columns["label"]))
                if all(self.columns[name][i] in values for name, values in wanted.items())
            ]
        )


def use(monkeypatch, index):
    monkeypatch.setattr(splits, "open_index", lambda paths: index)


def data(**sources):
    return config.Data(
        **{name: config.Source(index="clips.parquet", where={"split": split}) for name, split in sources.items()}
    )


@pytest.mark.fast
def test_without_selection_whole_groups_are_held_out(monkeypatch):
    groups = [f"person {i // 5}" for i in range(100)] + ["person x"] * 10
    use(monkeypatch, FakeIndex(label=["a", "b"] * 55, split=["train"] * 100 + ["val"] * 10, group=groups))
    found, again = (splits.read_splits(data(train="train", val="val"), ["label"]) for _ in range(2))
    assert len(found.selection.rows) == 20
    assert sorted([*found.train.rows, *found.selection.rows]) == list(range(100))
    assert not {groups[row] for row in found.train.rows} & {groups[row] for row in found.selection.rows}
    assert (found.selection.rows == again.selection.rows).all()


@pytest.mark.fast
@pytest.mark.parametrize(("sizes", "held"), [((50, 30, 40), 30), ((50,), None)])
def test_large_groups_are_not_torn_apart(monkeypatch, sizes, held):
    groups = [f"group {number}" for number, size in enumerate(sizes) for _ in range(size)]
    n = len(groups)
    use(monkeypatch, FakeIndex(label=["a"] * (n + 1), split=["train"] * n + ["val"], group=[*groups, None]))
    if held is None:
        with pytest.raises(UserError, match=r"data\.selection"):
            splits.read_splits(data(train="train", val="val"), ["label"])
    else:
        assert len(splits.read_splits(data(train="train", val="val"), ["label"]).selection.rows) == held


@pytest.mark.fast
def test_probes_learn_from_labelled_rows_of_their_own(monkeypatch):
    """Not from data.train then; what is held out is of them too."""
    parts = ["train"] * 10 + ["clips"] * 20 + ["val"] * 10
    use(monkeypatch, FakeIndex(label=["a", "b"] * 20, split=parts))
    found = splits.read_splits(data(train="train", labelled="clips", val="val"), ["label"])
    assert sorted([*found.train.rows, *found.selection.rows]) == list(range(10, 30)) and len(found.selection.rows) == 4
    found = splits.read_splits(data(train="train", labelled="clips", selection="train", val="val"), ["label"])
    assert list(found.train.rows) == list(range(10, 30))
    with pytest.raises(UserError, match=r"data\.val: 20 of its 20 clips are in data\.labelled"):
        splits.read_splits(data(train="train", labelled="clips", selection="train", val="clips"), ["label"])


@pytest.mark.fast
def test_a_clip_in_two_splits_is_refused(monkeypatch):
    use(monkeypatch, FakeIndex(label=["a"] * 20, split=["train"] * 10 + ["val"] * 10))
    with pytest.raises(UserError, match=r"data\.val: 10 of its 10 clips are in data\.selection"):
        splits.read_splits(data(train="train", selection="val", val="val"), ["label"])


@pytest.mark.fast
def test_rows_that_have_none_of_the_labels_are_not_decoded(monkeypatch):
    use(
        monkeypatch,
        FakeIndex(
            label=["a", None, None, "b"] * 5, speed=["x", None, "y", None] * 5, split=["train"] * 12 + ["val"] * 8
        ),
    )
    found = splits.read_splits(data(train="train", val="val"), ["label", "speed"])
    assert found.val.rows.tolist() == [12, 14, 15, 16, 18, 19]


@pytest.mark.fast
def test_no_val_is_an_error_that_names_the_key():
    with pytest.raises(UserError, match=r"data\.val"):
        splits.read_splits(data(train="train"), ["label"])
