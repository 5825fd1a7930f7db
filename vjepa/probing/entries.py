"""What a comparison says, as plain values: an entry of summary.json or of probe.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from vjepa.probing.comparison import ROLLOUT, TRAINED, Comparison, ProbeResult
from vjepa.probing.protocol import ProbeMethod
from vjepa.probing.scores import TOP


def to_dict(comparison: Comparison, method: ProbeMethod, uri: Callable[[int], str]) -> dict[str, Any]:
    """Make an entry, ready for JSON. accuracy, low, high: top-1 of the encoder with its 95 % interval.

    uri: says where a clip is, for the worst mistakes.
    """
    trained, rollout = comparison.kinds[TRAINED], comparison.kinds.get(ROLLOUT)
    chosen = {name: dict(one.chosen) for name, one in zip(trained.folds, trained.fitted, strict=True)}
    scores = trained.scores.to_dict()
    for mistake in scores["worst"]:
        mistake["uri"] = uri(mistake["clip_id"])
    top1, chance = trained.scores.top1, comparison.chance
    return {
        "accuracy": top1.value,
        "low": top1.low,
        "high": top1.high,
        "chance": {"accuracy": chance.value, "low": chance.low, "high": chance.high},
        "chosen": chosen if len(chosen) > 1 else next(iter(chosen.values())),
        "selection": [one.selection for one in trained.fitted],
        "folds": _folds(trained),
        "recall_at_5": asdict(trained.recall_at_5) if trained.recall_at_5 else None,
        "chance_recall_at_5": _chance_recall(trained),
        "baselines": {name: _baseline(one) for name, one in comparison.kinds.items() if name not in (TRAINED, ROLLOUT)},
        "with_rollout": _baseline(rollout) if rollout else None,
        "scores": scores,
        "method": {
            "head": method.head,
            "batch_norm": method.batch_norm,
            "depth": method.depth,
            "max_steps": method.grid.max_steps,
            "seed": method.grid.seed,
        },
        "num_clips": comparison.num_clips,
    }


def unreadable(lines: Iterable[str]) -> dict[str, Any]:
    """Say which clips were left out, a line each."""
    told = list(lines)
    return {"num_unreadable": len(told), "unreadable": told}


def _baseline(result: ProbeResult) -> dict[str, Any]:
    scores = result.scores
    named = {
        "top1": scores.top1,
        "top5": scores.top5,
        "mean_class": scores.mean_class,
        "recall_at_5": result.recall_at_5,
    }
    shares = {name: asdict(share) if share else None for name, share in named.items()}
    folds = _folds(result)
    return {**shares, "chosen": [dict(one.chosen) for one in result.fitted], **({"folds": folds} if folds else {})}


def _folds(result: ProbeResult) -> dict[str, Any] | None:
    """Give the accuracy of each fold, mean and deviation; None where there are no folds."""
    if len(result.folds) == 1:
        return None
    mean, spread = result.mean_and_spread
    return {"accuracy": result.folds, "mean": mean, "std": spread}


def _chance_recall(result: ProbeResult) -> float | None:
    """Compute class-mean recall at 5 of always answering the same 5 of the classes that have clips."""
    present = sum(one.num > 0 for one in result.scores.per_class)
    return min(1.0, TOP / present) if result.recall_at_5 else None
