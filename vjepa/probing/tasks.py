"""Which task a label is: as the user says, or as its column looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

import numpy as np

from vjepa import config
from vjepa.errors import UserError
from vjepa.probing.metrics import Texts
from vjepa.probing.scores_multilabel import SEPARATOR
from vjepa.probing.splits import Split
from vjepa.probing.task import Kind, Task
from vjepa.probing.task_classify import Classify
from vjepa.probing.task_multilabel import Multilabel
from vjepa.probing.task_regress import Regress, as_number

KINDS: Final = get_args(Kind)
_OF_CONFIG: Final[Mapping[str, Kind]] = {
    "classification": "classify",
    "regression": "regress",
    "multilabel": "multilabel",
}
_MANY: Final = 10  # different numbers with a fraction: fewer may be names of classes, such as versions


def choose(kind: Kind | Literal["auto"], labels: Texts, balanced: bool = False) -> Task:
    """Make the task `kind`, for `auto` the one that `labels` [n] look like.

    Cells with `|` are many classes; numbers of which ten or more different ones have a fraction are numbers; all else
    is classes. balanced: see the tasks. Raises UserError for numbers that are to be balanced.
    """
    if kind == "auto":
        kind = _looks_like(labels)
    if kind == "regress" and balanced:
        raise UserError("--class_weights balanced: numbers have no classes; leave it out, or give --task classify")
    tasks: dict[Kind, Task] = {
        "classify": Classify(balanced),
        "regress": Regress(),
        "multilabel": Multilabel(balanced),
    }
    return tasks[kind]


def _looks_like(labels: Texts) -> Kind:
    texts = np.unique(labels).tolist()
    if any(SEPARATOR in text for text in texts):
        return "multilabel"
    values = [as_number(text) for text in texts]
    known = all(text.strip().lower() == "nan" or x == x for text, x in zip(texts, values, strict=True))
    fractions = {value for value in values if np.isfinite(value) and value % 1}
    return "regress" if known and len(fractions) >= _MANY else "classify"


def describe(task: Task, label: str, labels: Texts) -> str:
    """Say in one line how a column was read, and how to have it read otherwise."""
    different = len(np.unique(labels))
    read = {
        "classify": f"{different} classes",
        "regress": f"numbers, {different} different ones",
        "multilabel": f"many classes a clip, {len(task.targets(labels).names)} in all",
    }
    others = " or ".join(kind for kind in KINDS if kind != task.kind)
    return f"{label}: read as {read[task.kind]} (--task {task.kind}; say {others} to have it read otherwise)"


def of_run(wanted: config.Eval, parts: Mapping[str, Split]) -> dict[str, Task]:
    """Make the task of every label that a run is measured by, as `eval.targets` says."""
    found: dict[str, Task] = {}
    for label in wanted.labels:
        named = wanted.targets_of(label)
        kind = "auto" if named == "auto" else _OF_CONFIG[named]
        found[label] = choose(kind, np.concatenate([split.labels_of(label) for split in parts.values()]))
    return found


def check_run(tasks: Mapping[str, Task], parts: Mapping[str, Split]) -> None:
    """Raise UserError where a probe of a label would have nothing to learn, to choose on or to be measured on."""
    for label, task in tasks.items():
        for name, split in parts.items():
            labels = split.labels_of(label)
            if not len(labels):
                raise UserError(
                    f"data.{name}: none of its clips has a value in {label}; give others, or other eval.labels"
                )
            part = "data.train (or data.labelled)" if name == "train" else f"data.{name}"
            task.check(labels, f"{part}, {label}", learned=name == "train")
