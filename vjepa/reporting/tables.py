"""Tables for the terminal: what closes a run, from its summary.json; what a probe found, from its probe.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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

    summary: that of a run (see `probing.closing.evaluate_run`). Accuracies stand with their 95 % interval.
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
    head = (
        f"{label}: accuracy on {clips['val']} clips [95 % interval]; {clips['train']} to learn from, "
        f"{clips['selection']} to choose k and C"
    )
    lines = [head[:100], f"  {'':26}{'k-NN':22}linear"]
    columns = [_accuracies(entries[probe]) for probe in ("knn", "linear")]
    for kind, name in KINDS.items():
        if kind in columns[0]:
            lines.append(f"  {name:26}{columns[0][kind]:22}{columns[1][kind]}")
    return lines


def _accuracies(entry: Mapping[str, Any]) -> dict[str, str]:
    """Write the accuracy of each kind of features."""
    baselines = {name: _interval(one["top1"]["value"], one["top1"]) for name, one in entry["baselines"].items()}
    chance = entry["chance"]
    return {
        "trained": _interval(entry["accuracy"], entry),
        **baselines,
        "chance": _interval(chance["accuracy"], chance),
    }


def _interval(value: float, ends: Mapping[str, float]) -> str:
    return f"{_short(value, 3)} [{_short(ends['low'], 2)}, {_short(ends['high'], 2)}]"


def _short(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0") else text


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
    lines = list(_kinds_table(entry))
    if len(scores["per_class"]) <= _MOST_CLASSES:
        lines += ["", f"{'class':24}{'clips':8}{'recall':8}precision"]
        for one in scores["per_class"]:
            row = f"{one['name'][:22]:24}{one['num']:<8}{_number(one['recall']):8}{_number(one['precision']):8}"
            lines.append(row.rstrip())
    worst = scores["worst"][:_MOST_MISTAKES]
    lines += ["", "most confident mistakes:"] if worst else []
    for one in worst:
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
    ahead, folds = entry["anticipation_s"] is not None, entry["folds"] is not None
    head = f"{entry['eval_mode']} {entry['label']}"
    recall = f"{'class-mean recall@5':24}" if ahead else ""
    spread = "folds, mean ± std" if folds else ""
    yield f"{head:24}{'top-1 [95 %]':24}{recall}{'top-5':8}{'mean class':12}{spread}".rstrip()
    name = entry["encoder"] + (f", step {entry['step']}" if entry["step"] is not None else "")
    kinds = {name: {**entry["scores"], "recall_at_5": entry["recall_at_5"], "folds": entry["folds"]}}
    kinds |= {"with roll-out": entry["with_rollout"]} if entry["with_rollout"] else {}
    for kind, one in {**kinds, **entry["baselines"]}.items():
        recall = f"{_told(one['recall_at_5']):24}" if ahead else ""
        top5 = _number(one["top5"]["value"] if one["top5"] else None)
        spread = "{mean:.3f} ± {std:.3f}".format(**one["folds"]) if folds else ""
        row = f"{kind:24}{_told(one['top1']):24}{recall}{top5:8}{one['mean_class']['value']:<12.3f}{spread}"
        yield row.rstrip()
    chance = entry["chance"]
    recall = _number(entry["chance_recall_at_5"]) if ahead else ""
    yield f"{'chance':24}{_told({'value': chance['accuracy'], **chance}):24}{recall}".rstrip()


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
    return "-" if value is None else f"{value:.3f}"


def _chosen(chosen: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, (int, float)) else f"{name}: {_chosen(value)}"
        for name, value in chosen.items()
    )
