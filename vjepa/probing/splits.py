"""The rows of clip indexes that the probes of a run use: to learn from, to choose settings on, to be measured on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np

from vjepa import config
from vjepa.data.channels import require_channels
from vjepa.data.clip_index import ClipIndex
from vjepa.data.joined_index import are_shared, open_index
from vjepa.errors import UserError
from vjepa.probing.metrics import Texts

HELD_OUT: Final = 0.2


@dataclass(frozen=True)
class Split:
    """Name rows of an index and their classes.

    rows: int64 [n], those with at least one of the labels.
    labels: column -> one value, or None, for every row of the index.
    """

    index: ClipIndex
    rows: np.ndarray
    labels: dict[str, list[str | None]]

    def labels_of(self, column: str) -> Texts:
        """Take the values in `column` of the rows that have one: [n]."""
        found = [str(text) for row in self.rows if (text := self.labels[column][row]) is not None]
        return np.array(found, dtype=str)


@dataclass(frozen=True)
class Splits:
    """Hold the three splits of a run. Probes learn from `train`, choose on `selection`, are measured once, on `val`."""

    train: Split
    selection: Split
    val: Split


def read_splits(data: config.Data, labels: Sequence[str], group: str = "group") -> Splits:
    """Select the rows that probes use. It is cheap: call it before training too, so that a mistake shows at once.

    Probes learn from data.labelled, or else from data.train. Without data.selection, a fifth of these rows is held out,
    rows with one value in the column `group` together. Raises UserError for a missing index, column or row, and where
    two of the three share a row.
    """
    if data.val is None:
        raise UserError("data.val: not set, so there is nothing to measure on")
    train, val = _read_split(data.labelled or data.train, labels), _read_split(data.val, labels)
    if data.selection is None:
        train, selection = hold_out(train, group)
    else:
        selection = _read_split(data.selection, labels)
    splits = {"labelled" if data.labelled else "train": train, "selection": selection, "val": val}
    for split in splits.values():
        require_channels(split.index, split.rows, data.channels)
    for (name, split), (other_name, other) in combinations(splits.items(), 2):
        shared = are_shared(other.index, other.rows, split.index, split.rows).sum()
        if shared:
            raise UserError(
                f"data.{other_name}: {shared} of its {len(other.rows)} clips are in data.{name} too; give "
                f"other rows, e.g. where: {{split: val}}"
            )
    return Splits(train, selection, val)


def fingerprint(splits: Splits) -> str:
    """Hash what probes would see: which clips, by their content where it is known, and their labels: sha256."""
    digest = hashlib.sha256()
    for split in (splits.train, splits.selection, splits.val):
        columns = [split.index.column(name) for name in ("uri", "content_hash", "first_frame", "num_frames")]
        for row in split.rows:
            uri, content, *part = (values[row] for values in columns)
            labels = [values[row] for values in split.labels.values()]
            digest.update(json.dumps([content or uri, *part, *labels]).encode())
    return digest.hexdigest()


def hold_out(train: Split, column: str) -> tuple[Split, Split]:
    """Divide a split: four fifths to learn from and, at most, a fifth to choose on.

    Rows of one value in `column` stay together. Raises UserError where they all do.
    """
    names = train.index.column(column)
    groups = [f"group {names[row]}" if names[row] is not None else f"row {row}" for row in train.rows]
    sizes = Counter(groups)
    # in the order of a hash: fixed for ever, and blind to the order and the labels of the rows
    order = sorted(sizes, key=lambda group: hashlib.sha256(group.encode()).digest())
    room, held = max(1, round(HELD_OUT * len(groups))), set[str]()
    for group in order:
        if sizes[group] <= room:
            held.add(group)
            room -= sizes[group]
    if not held and len(order) > 1:
        held = {min(order, key=lambda group: sizes[group])}  # every group is larger than a fifth
    if not held or len(held) == len(order):
        raise UserError(
            f"data.selection: {len(groups)} labelled train clips in {len(order)} group(s) cannot be divided; "
            "give rows for selection"
        )
    is_held = np.array([group in held for group in groups])
    return replace(train, rows=train.rows[~is_held]), replace(train, rows=train.rows[is_held])


def _read_split(source: config.Source, labels: Sequence[str]) -> Split:
    index = open_index(source.paths)
    columns = {label: index.column(label) for label in labels}
    selected = index.select(source.where)
    rows = [row for row in selected if any(values[row] is not None for values in columns.values())]
    if not rows:
        raise UserError(f"{index.path}: no row has a value in {' or '.join(labels)}; the probes need labels")
    return Split(index, np.array(rows, dtype=np.int64), columns)
