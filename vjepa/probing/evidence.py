"""The evidence that closes a run: frozen features beside chance, the untrained encoder and raw pixels, on the same
clips.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any, Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from vjepa import config
from vjepa.data.clip_index import ClipIndex
from vjepa.data.loader import eval_loader
from vjepa.data.time_order import Time, in_time
from vjepa.errors import UserError
from vjepa.probing import heads, knn, metrics
from vjepa.probing.features import Extractor, Features, encode, extract, motion_energy, pixels
from vjepa.probing.sweep import Probed

Probe = Literal["knn", "linear"]
PROBES: dict[Probe, Callable[..., Probed]] = {"knn": knn.probe, "linear": heads.probe}
HELD_OUT = 0.2


@dataclass(frozen=True)
class Split:
    """Rows of an index, and what they are called.

    rows: int64 [n], those with at least one of the labels.
    labels: column -> one value, or None, for every row of the index.
    """

    index: ClipIndex
    rows: np.ndarray
    labels: dict[str, list[str | None]]


@dataclass(frozen=True)
class Splits:
    """Probes learn from `train`, choose their setting on `selection`, and are measured once, on `val`."""

    train: Split
    selection: Split
    val: Split


@dataclass(frozen=True)
class Labelled:
    """The clips of one split that have a label: features [N, D] and classes [N], N >= 1."""

    features: metrics.Floats
    classes: metrics.Classes

    @classmethod
    def of(cls, features: Features, labels: Sequence[str | None], where: str) -> Labelled:
        """Rows without the label are skipped; `where` names split and label in the UserError if none is left."""
        have = np.array([labels[clip_id] is not None for clip_id in features.clip_ids], dtype=bool)
        if not have.any():
            raise UserError(f"{where}: no readable clip has this label")
        return cls(features.values[have], np.array([str(labels[clip_id]) for clip_id in features.clip_ids[have]]))


def evaluate_run(
    settings: config.Config, trained: nn.Module, untrained: nn.Module, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Everything that the closing table shows, from the settings `data`, `eval` and two frozen encoders; see
    `evidence`.

    Adds `num_unreadable`, and `unreadable`: one line for each clip that was left out. Raises UserError as `read_splits`
    does.
    """
    splits = read_splits(settings.data, settings.eval.labels, settings.eval.group)
    extractors: dict[str, Extractor] = {
        "trained": encode(trained.to(device).eval(), device, dtype),
        "random_init": encode(untrained.to(device).eval(), device, dtype),
        "pixels": pixels,
        "motion_energy": motion_energy,
    }
    wanted = ["trained", *settings.eval.baselines]
    ordered = {name: extractors[name] for name in wanted if name in extractors}
    features = {name: extract_split(split, settings, ordered) for name, split in vars(splits).items()}
    if "shuffled_frames" in wanted:
        for name, split in vars(splits).items():
            features[name]["shuffled_frames"] = extract_split(
                split, settings, {"trained": extractors["trained"]}, "shuffled"
            )["trained"]
    unreadable = [
        f"{name} row {row}: {reason}" for name in features for row, reason in features[name]["trained"].failures
    ]
    labels = {name: split.labels for name, split in vars(splits).items()}
    return {**evidence(features, labels), "num_unreadable": len(unreadable), "unreadable": unreadable}


def evidence(
    features: Mapping[str, Mapping[str, Features]], labels: Mapping[str, Mapping[str, Sequence[str | None]]]
) -> dict[str, Any]:
    """Accuracy of every probe on every kind of features for every label.

    features: split (train, selection, val) -> kind -> Features; the kind `trained` must be there.
    labels: split -> column -> one value, or None, for every row of the index that the clip ids count.

    Returns {label: {"knn" | "linear": {kind | "chance": {accuracy, low, high}}, "chosen": {probe: {kind: k or C}},
    "num_clips": {split: N}}, ..., "effective_rank", "feature_std", "num_features"}; the last three are of the trained
    encoder on val.
    """
    trained = features["val"]["trained"].values
    report: dict[str, Any] = {
        label: {probe: {} for probe in PROBES} | {"chosen": {probe: {} for probe in PROBES}}
        for label in labels["train"]
    }
    for (kind, probe), found in measure_all(features, labels).items():
        for label, (accuracy, setting) in found.items():
            report[label][probe][kind] = accuracy.to_dict()
            report[label]["chosen"][probe][kind] = setting
    for label in labels["train"]:
        parts = label_parts({split: kinds["trained"] for split, kinds in features.items()}, labels, label)
        chance = metrics.chance(parts["train"].classes, parts["val"].classes).to_dict()
        for probe in PROBES:
            report[label][probe]["chance"] = chance
        report[label]["num_clips"] = {split: len(part.classes) for split, part in parts.items()}
    report["effective_rank"] = metrics.effective_rank(trained)
    report["feature_std"] = metrics.feature_std(trained)
    report["num_features"] = trained.shape[1]
    return report


def measure_all(
    features: Mapping[str, Mapping[str, Features]], labels: Mapping[str, Mapping[str, Sequence[str | None]]]
) -> dict[tuple[str, Probe], dict[str, tuple[metrics.Accuracy, float]]]:
    """(kind, probe) -> label -> what `measure` finds; side by side, the widest features first, for most products are
    too small to share.
    """

    def measured(kind: str, probe: Probe) -> dict[str, tuple[metrics.Accuracy, float]]:
        prepared = prepare(probe, {split: kinds[kind] for split, kinds in features.items()})
        return {label: measure(probe, label_parts(prepared, labels, label), label) for label in labels["train"]}

    jobs = list(product(features["val"], PROBES))
    with threadpool_limits(1), ThreadPoolExecutor(torch.get_num_threads()) as threads:
        widest_first = sorted(jobs, key=lambda job: -features["val"][job[0]].values.shape[1])
        running = {job: threads.submit(measured, *job) for job in widest_first}
        return {job: running[job].result() for job in jobs}


def prepare(probe: Probe, features: Mapping[str, Features]) -> dict[str, Features]:
    """One kind of features as `probe` works on them, in train, selection and val; made once, it serves every label.

    Linear probes standardise by all training clips of the split, those without the label at hand included.
    """
    if probe == "knn":
        return dict(features)
    values = heads.prepare(*(features[split].values for split in ("train", "selection", "val")))
    return {
        split: replace(features[split], values=found)
        for split, found in zip(("train", "selection", "val"), values, strict=True)
    }


def label_parts(
    features: Mapping[str, Features], labels: Mapping[str, Mapping[str, Sequence[str | None]]], label: str
) -> dict[str, Labelled]:
    """The clips of each split that have `label`. Raises UserError as `Labelled.of` does."""
    return {split: Labelled.of(found, labels[split][label], f"{split}, {label}") for split, found in features.items()}


def measure(probe: Probe, parts: Mapping[str, Labelled], label: str) -> tuple[metrics.Accuracy, float]:
    """Accuracy on `parts["val"]`, and the k or C chosen on `parts["selection"]`; features are as `prepare` gives them.

    Raises UserError for fewer than two classes in `parts["train"]`.
    """
    train, selection, val = parts["train"], parts["selection"], parts["val"]
    if len(np.unique(train.classes)) < 2:
        raise UserError(f"train, {label}: every clip is {train.classes[0]!r}; a probe needs two classes")
    probed = PROBES[probe](train.features, train.classes, selection.features, selection.classes, val.features)
    return metrics.Accuracy.of(probed.predicted, val.classes), probed.setting


def read_splits(data: config.Data, labels: Sequence[str], group: str = "group") -> Splits:
    """The rows that probes use. Cheap: call it before training too, so that a mistake shows at once.

    Without data.selection, a fifth of the train rows is held out, rows with one value in the column `group` together.
    Raises UserError for a missing index, column or row, and where two of the three share a row.
    """
    if data.val is None:
        raise UserError("data.val: not set, so there is nothing to measure on")
    train, val = _read_split(data.train, labels), _read_split(data.val, labels)
    train, selection = (
        hold_out(train, group) if data.selection is None else (train, _read_split(data.selection, labels))
    )
    splits = {"train": train, "selection": selection, "val": val}
    for (name, split), (other_name, other) in combinations(splits.items(), 2):
        shared = len(np.intersect1d(split.rows, other.rows)) if split.index.path == other.index.path else 0
        if shared:
            raise UserError(
                f"data.{other_name}: {shared} of its {len(other.rows)} clips are in data.{name} too; give "
                f"other rows, e.g. where: {{split: val}}"
            )
    return Splits(**splits)


def _read_split(source: config.Source, labels: Sequence[str]) -> Split:
    index = ClipIndex.open(source.index)
    columns = {label: index.column(label) for label in labels}
    rows = np.array(
        [row for row in index.select(source.where) if any(values[row] is not None for values in columns.values())],
        dtype=np.int64,
    )
    if not len(rows):
        raise UserError(f"{source.index}: no row has a value in {' or '.join(labels)}; the probes need labels")
    return Split(index, rows, columns)


def hold_out(train: Split, column: str) -> tuple[Split, Split]:
    """Two splits of one: four fifths to learn from and, at most, a fifth to choose on; rows of one value in `column`
    stay together.
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
    return Split(train.index, train.rows[~is_held], train.labels), Split(train.index, train.rows[is_held], train.labels)


def extract_split(
    split: Split, settings: config.Config, extractors: Mapping[str, Extractor], time: Time = "forward"
) -> dict[str, Features]:
    """Extract features of every row of a split, from one pass over its clips."""
    loader = eval_loader(split.index, split.rows, settings.data, settings.eval.batch, settings.data.workers)
    return extract((replace(batch, video=in_time(batch.video, batch.clip_ids, time)) for batch in loader), extractors)
