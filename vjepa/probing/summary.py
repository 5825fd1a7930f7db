"""What a comparison says, as a table for the terminal, plain values for JSON, and pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from vjepa.data.plan_rows import Views
from vjepa.probing import pictures
from vjepa.probing.comparison import ROLLOUT, TRAINED, Comparison, Measured
from vjepa.probing.datasets import Dataset
from vjepa.probing.protocol import Method
from vjepa.probing.scores import TOP, Share

_MOST_CLASSES: Final = 20  # that are printed; all are in the JSON
_MOST_MISTAKES: Final = 5


def to_dict(comparison: Comparison, dataset: Dataset, method: Method) -> dict[str, Any]:
    """Ready for JSON. accuracy, low, high: top-1 of the encoder with its 95 % interval."""
    trained = comparison.kinds[TRAINED]
    chosen = [dict(answer.chosen) for answer in trained.answers]
    scores = trained.scores.to_dict()
    for mistake in scores["worst"]:
        mistake["uri"] = dataset.source.uri(mistake["clip_id"])
    top1 = trained.scores.top1
    return {
        "accuracy": top1.value,
        "low": top1.low,
        "high": top1.high,
        "chance": comparison.chance.to_dict(),
        "chosen": chosen[0]
        if len(chosen) == 1
        else {trial.name: one for trial, one in zip(dataset.trials, chosen, strict=True)},
        "selection": [answer.selection for answer in trained.answers],
        "folds": _folds(trained) if len(dataset.trials) > 1 else None,
        "recall_at_5": asdict(trained.recall_at_5) if trained.recall_at_5 else None,
        "chance_recall_at_5": _chance_recall(trained),
        "baselines": {
            name: _baseline(one, len(dataset.trials) > 1)
            for name, one in comparison.kinds.items()
            if name not in (TRAINED, ROLLOUT)
        },
        "with_rollout": _baseline(comparison.kinds[ROLLOUT], len(dataset.trials) > 1)
        if ROLLOUT in comparison.kinds
        else None,
        "scores": scores,
        "method": {
            "head": method.head,
            "batch_norm": method.batch_norm,
            "depth": method.depth,
            "epochs": method.grid.epochs,
            "seed": method.grid.seed,
        },
        "num_clips": comparison.num_clips,
        "num_unreadable": len(comparison.failures),
        "unreadable": [f"{dataset.source.uri(clip_id)}: {reason}" for clip_id, reason in comparison.failures],
    }


def _folds(measured: Measured) -> dict[str, Any]:
    mean, spread = measured.mean_and_spread
    return {"accuracy": measured.folds, "mean": mean, "std": spread}


def _baseline(measured: Measured, folds: bool) -> dict[str, Any]:
    scores = measured.scores
    named = {
        "top1": scores.top1,
        "top5": scores.top5,
        "mean_class": scores.mean_class,
        "recall_at_5": measured.recall_at_5,
    }
    shares = {name: asdict(share) if share else None for name, share in named.items()}
    return {
        **shares,
        "chosen": [dict(answer.chosen) for answer in measured.answers],
        **({"folds": _folds(measured)} if folds else {}),
    }


def table(comparison: Comparison, dataset: Dataset, result: dict[str, Any]) -> str:
    """The encoder beside its baselines, its classes, its worst mistakes, and what was measured."""
    measured = comparison.kinds[TRAINED]
    ahead = result["anticipation_s"] is not None
    names = {
        TRAINED: result["encoder"] + (f", step {result['step']}" if result["step"] is not None else ""),
        ROLLOUT: "with roll-out",
    }
    folds = len(dataset.trials) > 1
    head = f"{result['eval_mode']} {result['label']}"
    recall = f"{'class-mean recall@5':24}" if ahead else ""
    spread_over = "folds, mean ± std" if folds else ""
    lines = [f"{head:24}{'top-1 [95 %]':24}{recall}{'top-5':8}{'mean class':12}{spread_over}".rstrip()]
    for kind, one in comparison.kinds.items():
        mean, spread = one.mean_and_spread
        top5 = f"{one.scores.top5.value:.3f}" if one.scores.top5 else "-"
        recall = f"{_told(one.recall_at_5) if one.recall_at_5 else '-':24}" if ahead else ""
        row = (
            f"{names.get(kind, kind):24}{_told(one.scores.top1):24}{recall}{top5:8}{one.scores.mean_class.value:<12.3f}"
        )
        lines.append((row + (f"{mean:.3f} ± {spread:.3f}" if folds else "")).rstrip())
    chance = comparison.chance
    recall = f"{_number(result['chance_recall_at_5'])}" if ahead else ""
    lines.append(f"{'chance':24}{_told(Share(chance.accuracy, chance.low, chance.high)):24}{recall}".rstrip())
    if len(measured.scores.per_class) <= _MOST_CLASSES:
        lines += ["", f"{'class':24}{'clips':8}{'recall':8}{'precision':8}".rstrip()]
        lines += [
            f"{one.name[:22]:24}{one.num:<8}{_number(one.recall):8}{_number(one.precision):8}".rstrip()
            for one in measured.scores.per_class
        ]
    worst = measured.scores.worst[:_MOST_MISTAKES]
    lines += ["", "most confident mistakes:"] if worst else []
    lines += [
        f"  {dataset.source.uri(one.clip_id)}: {one.truth}, taken for {one.predicted} ({one.confidence:.2f})"
        for one in worst
    ]
    lines += ["", f"chosen on selection: {_chosen(result['chosen'])}"]
    lines.append(
        f"{measured.scores.num_clips} clips measured, {len(comparison.failures)} unreadable; intervals over "
        f"{_units(measured)}; {result['views']['test']}"
    )
    lines += [_anticipation(result)] if ahead else []
    lines += [f"unreadable: {line}" for line in result["unreadable"][:_MOST_MISTAKES]]
    pooled = "" if result["pool"] in (None, "mean") else f"pool {result['pool']}, "
    lines.append(f"{pooled}data {result['data_hash'][:12]}, weights {result['weights_hash'][:12]}")
    return "\n".join(lines)


def write_pictures(stem: Path, dataset: Dataset, comparison: Comparison, batch: int) -> list[str]:
    """STEM_confusion.png and STEM_worst.png; returns their paths."""
    scores = comparison.kinds[TRAINED].scores
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}_{name}.png") for name in ("confusion", "worst")]
    pictures.confusion_picture(paths[0], scores, stem.name)
    if not scores.worst:
        paths[1].unlink(missing_ok=True)
        return [str(paths[0])]
    ids = np.array(sorted(mistake.clip_id for mistake in scores.worst))
    pictures.worst_picture(
        paths[1], scores.worst, pictures.middle_frames(dataset.source.loader(ids, Views(), batch)), stem.name
    )
    return [str(path) for path in paths]


def _chance_recall(measured: Measured) -> float | None:
    """Class-mean recall at 5 of always answering the same 5 of the classes that have clips."""
    present = sum(one.num > 0 for one in measured.scores.per_class)
    return min(1.0, TOP / present) if measured.recall_at_5 else None


def _anticipation(result: dict[str, Any]) -> str:
    said = f"clips end {result['anticipation_s']:g} s before the action"
    if result["rollout"] == "none":
        return f"{said}; no roll-out"
    slots = result["time_slots"]
    who = "row `with roll-out`" if result["rollout"] == "both" else "all rows of the encoder"
    return (
        f"{said}; roll-out of {slots['predicted']} time slots after {slots['observed']}, trained on "
        f"{slots['trained']}: {who}"
    )


def _told(share: Share) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _chosen(chosen: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, (int, float)) else f"{name}: {_chosen(value)}"
        for name, value in chosen.items()
    )


def _units(measured: Measured) -> str:
    return f"{measured.scores.num_groups} groups" if measured.scores.num_groups else "clips"
