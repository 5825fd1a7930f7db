"""Tables for the terminal: what closes a run, from its summary.json; what a probe found, from its probe.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill
from typing import Any, Final

from vjepa.errors import UserError
from vjepa.health.verdict import Verdict, has_collapsed
from vjepa.run_folder import RunFolder

# kinds of features in the order of the closing table
KINDS: Final = {
    "trained": "trained",
    "shuffled_frames": "trained, shuffled frames",
    "random_init": "random init",
    "pixels": "pixels",
    "motion_energy": "motion energy",
    "chance": "chance",
}
# task -> the measures of its answers: name in an entry, title, whether its interval is told, width of the column
_MEASURES: Final[dict[str, tuple[tuple[str, str, bool, int], ...]]] = {
    "classify": (
        ("top1", "top-1 [95 %]", True, 24),
        ("top5", "top-5", False, 8),
        ("mean_class", "mean class", False, 12),
        ("macro_f1", "macro F1", False, 10),
    ),
    "regress": (
        ("r2", "R2 [95 %]", True, 26),
        ("rmse", "RMSE", False, 10),
        ("mae", "MAE", False, 10),
        ("spearman", "Spearman", False, 10),
    ),
    "multilabel": (("map", "mAP [95 %]", True, 24),),
}
_RECALL: Final = ("recall_at_5", "class-mean recall@5", True, 24)  # of action anticipation
_MOST_CLASSES: Final = 20  # that are printed; all are in the JSON
_MOST_MISTAKES: Final = 5


def read_summary(run: RunFolder) -> dict[str, Any]:
    """Read the summary of a finished run. Raises UserError where there is none, or one of an older version."""
    path = run.summary
    if not path.is_file():
        raise UserError(f"{path}: no such file; a run writes it when it ends")
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if "effective_rank" in summary:  # its labels lie beside the figures of the run
        raise UserError(
            f"{path}: written by an older version; move it away and run python -m vjepa.train --config {run.config} "
            "again, which measures the finished run anew"
        )
    return summary


def closing_table(summary: Mapping[str, Any]) -> str:
    """Lay out every label, probe and kind of features, then whether the features collapsed; at most 100 columns.

    summary: that of a run (see `probing.closing.evaluate_run`). Accuracies, R2 and mAP stand with their 95 % interval.
    """
    lines: list[str] = []
    for label, entries in summary.get("probes", {}).items():
        lines += [*_label_table(label, entries), ""]
    if summary.get("num_unreadable"):
        lines.append(
            f"{summary['num_unreadable']} clips could not be read and are left out; summary.json names them "
            "under `unreadable`"
        )
    if summary.get("num_replaced"):
        lines.append(
            f"{summary['num_replaced']} training clips could not be read and were replaced; summary.json "
            "names the files under `replaced`"
        )
    if "measured" in summary:
        lines.append("measured: {encoder}, step {step}".format(**summary["measured"]))
    if "collapse" in summary:
        lines.append(_collapse(summary["collapse"], summary.get("untrained")))
    if "verdict" in summary:
        ended = ", which ended it early" if summary["ended_early"] else ""
        lines.append(fill(f"verdict{ended}: {Verdict(**summary['verdict'])}", 100, subsequent_indent="  "))
    if "final_loss" in summary:
        lines.append(f"final loss {summary['final_loss']:.6f} after {summary['steps']} steps")
    return "\n".join(lines)


def _label_table(label: str, entries: Mapping[str, Any]) -> list[str]:
    clips = entries["knn"]["num_clips"]
    setting = "alpha" if "alpha" in entries["linear"].get("chosen", ()) else "C"
    head = (
        f"{label}: {measure_of(entries['knn'])} on {clips['val']} clips [95 % interval]; {clips['train']} to learn "
        f"from, {clips['selection']} to choose k and {setting}"
    )
    lines = [head[:100], f"  {'':26}{'k-NN':22}linear"]
    columns = [
        {kind: share and _interval(share["value"], share) for kind, share in first_measures(entries[probe]).items()}
        for probe in ("knn", "linear")
    ]
    for kind, name in KINDS.items():
        if kind in columns[0]:
            lines.append(f"  {name:26}{columns[0][kind]:21} {columns[1][kind]}")
    return lines


def measure_of(entry: Mapping[str, Any]) -> str:
    """Name what stands for the probe; entries of older versions have no other than accuracy."""
    name: str = entry.get("measure", "accuracy")
    return name


def first_measures(entry: Mapping[str, Any]) -> dict[str, Mapping[str, float] | None]:
    """Give the measure that stands for the probe, {"value", "low", "high"}, of each kind of features; None: undefined.

    entry: of summary.json or probe.json.
    """
    name, key = measure_of(entry), _measures_of(entry)[0][0]

    def share(of: Mapping[str, Any]) -> Mapping[str, float] | None:
        return None if of[name] is None else {"value": of[name], "low": of["low"], "high": of["high"]}

    baselines = {kind: one[key] for kind, one in entry["baselines"].items()}
    return {"trained": share(entry), **baselines, "chance": share(entry["chance"])}


def _measures_of(entry: Mapping[str, Any]) -> tuple[tuple[str, str, bool, int], ...]:
    return _MEASURES[entry.get("task", "classify")]


def _interval(value: float, ends: Mapping[str, float]) -> str:
    return f"{_short(value, 3)} [{_short(ends['low'], 2)}, {_short(ends['high'], 2)}]"


def _short(value: float, digits: int) -> str:
    """Write a number without the 0 before its point; a large one, such as a poor R2, with fewer digits."""
    text = f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.3g}"
    text = text if float(text) else text.removeprefix("-")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _collapse(features: Mapping[str, float], untrained: Mapping[str, float] | None) -> str:
    """Tell rank and deviation, and how they stand to those of the untrained encoder, where that was measured."""
    said = f"effective rank {features['effective_rank']:.1f} of {features['num_features']}"
    std = f"feature std {features['feature_std']:.2f}"
    if untrained is None:
        return f"{said}, {std}"
    said += f" (untrained {untrained['effective_rank']:.1f}), {std} ({untrained['feature_std']:.2f})"
    return f"{said}: {'COLLAPSED' if has_collapsed(features, untrained) else 'no collapse'}"


def probe_table(entry: Mapping[str, Any]) -> str:
    """Lay out the encoder beside its baselines, its classes, its worst mistakes, and what was measured.

    entry: of probe.json.
    """
    scores = entry["scores"]
    lines = [*_kinds_table(entry), *_few_table(entry), *_class_table(entry)]
    worst = scores["worst"][:_MOST_MISTAKES]
    lines += ["", "largest errors:" if entry["task"] == "regress" else "most confident mistakes:"] if worst else []
    for one in worst:
        if entry["task"] == "regress":
            lines.append(f"  {one['uri']}: {one['truth']:g}, taken for {one['predicted']:.4g}")
        else:
            lines.append(f"  {one['uri']}: {one['truth']}, taken for {one['predicted']} ({one['confidence']:.2f})")
    lines += ["", f"chosen on selection: {_chosen(entry['chosen'])}"]
    units = f"{scores['num_groups']} groups" if scores["num_groups"] else "clips"
    lines.append(
        f"{scores['num_clips']} clips measured, {entry['num_unreadable']} unreadable; intervals over {units}; "
        f"{entry['views']['test']}"
    )
    lines += [_anticipation(entry)] if entry["anticipation_s"] is not None else []
    lines += [f"unreadable: {line}" for line in entry["unreadable"][:_MOST_MISTAKES]]
    pooled = "" if entry["pool"] in (None, "mean") else f"pool {entry['pool']}, "
    lines.append(f"{pooled}data {entry['data_hash'][:12]}, weights {entry['weights_hash'][:12]}")
    return "\n".join(lines)


def _kinds_table(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each kind of features, and for chance."""
    folds, (first, *others) = entry["folds"] is not None, _measures_of(entry)
    ahead = entry["anticipation_s"] is not None and entry["task"] == "classify"
    columns = [first, *([_RECALL] if ahead else []), *others]
    head = f"{entry['eval_mode']} {entry['label']}"
    titles = "".join(f"{title:{width}}" for _, title, _, width in columns)
    yield f"{head:24}{titles}{'folds, mean ± std' if folds else ''}".rstrip()
    for kind, one in _kinds(entry).items():
        spread = _spread(one["folds"]) if folds else ""
        yield f"{kind:24}{_row(one, columns)}{spread}".rstrip()
    chance = entry["chance"]
    shares = {**chance, first[0]: {"value": chance[entry["measure"]], **chance}}
    if ahead:
        shares["recall_at_5"] = entry["chance_recall_at_5"]
    yield f"{'chance':24}{_row(shares, columns, blank='')}".rstrip()


def _kinds(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Map the name of each kind of features to its measures."""
    name = entry["encoder"] + (f", step {entry['step']}" if entry["step"] is not None else "")
    of_entry = {key: entry[key] for key in ("recall_at_5", "folds", "few_labels")}
    kinds = {name: {**entry["scores"], **of_entry}}
    kinds |= {"with roll-out": entry["with_rollout"]} if entry["with_rollout"] else {}
    return {**kinds, **entry["baselines"]}


def _row(measures: Mapping[str, Any], columns: Sequence[tuple[str, str, bool, int]], blank: str = "-") -> str:
    """Write the measures in their columns; `blank` for one that is not there."""
    cells = []
    for name, _, with_interval, width in columns:
        share = measures.get(name)
        value = share["value"] if isinstance(share, Mapping) else share
        text = blank if value is None else _told(share) if with_interval and share is not value else _number(value)
        cells.append(f"{text:{width - 1}} ")
    return "".join(cells)


def _few_table(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was learned from few clips, a line for each kind of features."""
    if not entry["few_labels"]:
        return
    shots = entry["few_labels"]
    yield ""
    are_numbers = entry["task"] == "regress"
    head = f"{entry['measure']}, clips{'' if are_numbers else ' a class'}"
    yield f"{head:24}{''.join(f'{num:22}' for num in shots)}".rstrip()
    for kind, one in _kinds(entry).items():
        yield f"{kind:24}{''.join(f'{_drawn(few):22}' for few in one['few_labels'].values())}".rstrip()
    draws = len(next(iter(shots.values()))["draws"])
    yield f"mean [95 % interval] of {draws} draws of train clips; settings are chosen on all selection clips"
    for num, few in shots.items():
        if few["short_classes"]:
            some = "train has" if are_numbers else f"{few['short_classes']} classes have"
            yield f"{some} fewer than {num} clips, of which all are taken"


def _drawn(few: Mapping[str, Any]) -> str:
    return _number(few["mean"]) if few["low"] is None else _interval(few["mean"], few)


def _class_table(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each class, where there are not too many."""
    classes = entry["scores"].get("per_class", ())
    if not 0 < len(classes) <= _MOST_CLASSES:
        return
    columns = (("ap", "AP"),) if "ap" in classes[0] else (("recall", "recall"), ("precision", "precision"))
    yield ""
    yield f"{'class':24}{'clips':8}{''.join(f'{title:8}' for _, title in columns)}".rstrip()
    for one in classes:
        cells = "".join(f"{_number(one[key]):8}" for key, _ in columns)
        yield f"{one['name'][:22]:24}{one['num']:<8}{cells}".rstrip()


def masks_table(entry: Mapping[str, Any]) -> str:
    """Lay out a dense probe: each kind of features beside the baselines; of `dense` the IoU of each kind of thing.

    entry: as `probing.dense.measure` gives it.
    """
    shares = [name for name in ("mIoU", "J&F", "J", "F") if name in next(iter(entry["kinds"].values()))]
    names = entry["names"] if entry["eval_mode"] == "dense" else ()
    head = f"{entry['eval_mode']} {entry['label']}"
    titles = "".join(f"{name:{max(len(name), 5) + 2}}" for name in names)
    lines = [f"{head:24}{''.join(f'{name:24}' for name in shares)}{titles}".rstrip()]
    for kind, one in entry["kinds"].items():
        each = "".join(
            f"{_number(iou):{max(len(name), 5) + 2}}" for name, iou in zip(names, one.get("each", ()), strict=False)
        )
        cells = "".join(f"{_told(one[name]):24}" for name in shares)
        lines.append(f"{KINDS.get(kind, kind):24}{cells}{each}".rstrip())
    clips = ", ".join(f"{num} {part}" for part, num in entry["num_clips"].items())
    told = f"clips: {clips}; {entry['cells']} x {entry['cells']} cells of a token; intervals over clips or groups"
    hashes = f"data {entry['data_hash'][:12]}, weights {entry['weights_hash'][:12]}"
    return "\n".join([*lines, "", told, hashes])


def _anticipation(entry: Mapping[str, Any]) -> str:
    said = f"clips end {entry['anticipation_s']:g} s before the action"
    if entry["rollout"] == "none":
        return f"{said}; no roll-out"
    slots = entry["time_slots"]
    who = "row `with roll-out`" if entry["rollout"] == "both" else "all rows of the encoder"
    return (
        f"{said}; roll-out of {slots['predicted']} time slots after {slots['observed']}, trained on "
        f"{slots['trained']}: {who}"
    )


def _told(share: Mapping[str, float] | None) -> str:
    return "-" if share is None else f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 1000 else f"{value:.5g}"


def _spread(few: Mapping[str, Any]) -> str:
    return "-" if few["mean"] is None else f"{few['mean']:.3f} ± {few['std']:.3f}"


def _chosen(chosen: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, (int, float)) else f"{name}: {_chosen(value)}"
        for name, value in chosen.items()
    )
