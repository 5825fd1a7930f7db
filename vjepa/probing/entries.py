"""What a comparison says, as plain values: an entry of summary.json or of probe.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

from vjepa.probing.bootstrap import Share
from vjepa.probing.comparison import ROLLOUT, TRAINED, Comparison, ProbeResult
from vjepa.probing.protocol import ProbeMethod
from vjepa.probing.scores import TOP


def to_dict(comparison: Comparison, method: ProbeMethod, uri: Callable[[int], str]) -> dict[str, Any]:
    """Make an entry, ready for JSON.

    `measure` names what stands for the probe: accuracy, R2 or mAP. Under that name stands that of the encoder, low and
    high are its 95 % interval. uri: says where a clip is, for the worst mistakes.
    """
    trained, rollout, measure = comparison.kinds[TRAINED], comparison.kinds.get(ROLLOUT), method.task.measure
    chosen = {name: dict(one.chosen) for name, one in zip(trained.folds, trained.fitted, strict=True)}
    scores = trained.scores.to_dict()
    for mistake in scores["worst"]:
        mistake["uri"] = uri(mistake["clip_id"])
    baselines = {name: one for name, one in comparison.kinds.items() if name not in (TRAINED, ROLLOUT)}
    return {
        "task": method.task.kind,
        "measure": measure,
        **_first(trained.scores.measures, measure),
        "chance": {**_first(comparison.chance, measure), **_all_but_first(comparison.chance)},
        "chosen": chosen if len(chosen) > 1 else next(iter(chosen.values())),
        "selection": [one.selection for one in trained.fitted],
        "folds": _folds(trained, measure),
        "few_labels": _few_labels(trained),
        "recall_at_5": _plain(trained.scores.measures.get("recall_at_5")),
        "chance_recall_at_5": _chance_recall(scores) if trained.scores.measures.get("recall_at_5") else None,
        "baselines": {name: _baseline(one, measure) for name, one in baselines.items()},
        "with_rollout": _baseline(rollout, measure) if rollout else None,
        "scores": scores,
        "method": {
            "head": method.loss,
            "class_weights": "balanced" if method.task.balanced else "none",
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


def _plain(share: Share | None) -> dict[str, float] | None:
    return asdict(share) if share else None


def _first(measures: Mapping[str, Share | None], name: str) -> dict[str, float | None]:
    """Give the first of `measures` under `name`, beside the ends of its interval."""
    share = next(iter(measures.values()))
    return (
        {name: share.value, "low": share.low, "high": share.high} if share else {name: None, "low": None, "high": None}
    )


def _all_but_first(measures: Mapping[str, Share | None]) -> dict[str, Any]:
    return {name: _plain(share) for name, share in list(measures.items())[1:]}


def _baseline(result: ProbeResult, measure: str) -> dict[str, Any]:
    shares = {name: _plain(share) for name, share in result.scores.measures.items()}
    folds, few = _folds(result, measure), _few_labels(result)
    chosen = [dict(one.chosen) for one in result.fitted]
    return {
        **shares,
        "chosen": chosen,
        **({"folds": folds} if folds else {}),
        **({"few_labels": few} if few else {}),
    }


def _folds(result: ProbeResult, measure: str) -> dict[str, Any] | None:
    """Give the measure of each fold, mean and deviation; None where there are no folds, or it is not defined."""
    if len(result.folds) == 1:
        return None
    mean, spread = result.mean_and_spread
    found = {name: value if isfinite(value) else None for name, value in result.folds.items()}
    return {measure: found, "mean": mean if isfinite(mean) else None, "std": spread}


def _few_labels(result: ProbeResult) -> dict[str, Any] | None:
    """Give mean, deviation and interval over the draws, by the clips that were asked for; None where none were."""
    found = {}
    for num, one in result.few.items():
        mean, std = one.mean_and_spread
        low, high = one.interval or (None, None)
        told = {"mean": mean, "std": std, "low": low, "high": high, "draws": list(one.draws)}
        found[str(num)] = {**told, "num_clips": one.num_clips, "short_classes": one.short}
    return found or None


def _chance_recall(scores: Mapping[str, Any]) -> float:
    """Compute class-mean recall at 5 of always answering the same 5 of the classes that have clips."""
    present = sum(one["num"] > 0 for one in scores["per_class"])
    return float(min(1.0, TOP / present))
