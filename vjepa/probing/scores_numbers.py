"""Score answers that are numbers: R2, RMSE, MAE, rank correlation, each with its interval, and the worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from vjepa.errors import UserError
from vjepa.probing import bootstrap
from vjepa.probing.bootstrap import Share, count_units
from vjepa.probing.metrics import Floats

NUM_WORST: Final = 25


@dataclass(frozen=True)
class Miss:
    """Name a clip whose number was missed."""

    clip_id: int
    truth: float
    predicted: float

    @property
    def words(self) -> tuple[tuple[str, str, float | None], ...]:
        """Say what was true and what was answered."""
        return ("true", f"{self.truth:g}", None), ("said", f"{self.predicted:.4g}", None)


@dataclass(frozen=True)
class NumberScores:
    """Hold all that `score` measures; RMSE and MAE in the unit of the label.

    r2: 1 - squared error / squared distance to the mean; None where all numbers are equal.
    spearman: correlation of the ranks, equal numbers with their mean rank; None where numbers or answers are all equal.
    truth, predicted: [N]. worst: the largest errors, at most NUM_WORST, largest first.
    num_groups: what the intervals were resampled over; None: over clips.
    """

    r2: Share | None
    rmse: Share
    mae: Share
    spearman: Share | None
    truth: Floats
    predicted: Floats
    worst: tuple[Miss, ...]
    num_clips: int
    num_groups: int | None

    @property
    def measures(self) -> dict[str, Share | None]:
        """Give every measure by its name, the one that stands for the probe first."""
        return {name: getattr(self, name) for name in ("r2", "rmse", "mae", "spearman")}

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, ready for JSON."""
        return {
            **{name: asdict(share) if share else None for name, share in self.measures.items()},
            "num_clips": self.num_clips,
            "num_groups": self.num_groups,
            "worst": [asdict(one) for one in self.worst],
        }


def score(
    predicted: Floats,
    truth: Floats,
    clip_ids: Sequence[int] | np.ndarray,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
) -> NumberScores:
    """Score the numbers `predicted` [N] where `truth` [N] is right; N >= 1.

    groups: one per clip; a clip whose group is None is on its own. Raises UserError for answers that are not finite.
    """
    if not np.isfinite(predicted).all():
        raise UserError("answers hold NaN or infinity; the head has diverged, lower its learning rate")
    units = bootstrap.several_units(groups, len(truth))
    found = measures(predicted, truth, units, seed)
    rmse, mae = found["rmse"], found["mae"]
    if rmse is None or mae is None:
        raise ValueError("labels hold NaN or infinity")
    worst = np.argsort(-np.abs(predicted - truth), kind="stable")[:NUM_WORST]
    misses = tuple(Miss(int(clip_ids[i]), float(truth[i]), float(predicted[i])) for i in worst)
    return NumberScores(
        found["r2"], rmse, mae, found["spearman"], truth, predicted, misses, len(truth), count_units(units)
    )


def measures(predicted: Floats, truth: Floats, units: np.ndarray | None, seed: int) -> dict[str, Share | None]:
    """Compute r2, rmse, mae and spearman of [N] with intervals over `units` (see `bootstrap.several_units`)."""
    error = predicted - truth
    centred = truth - truth.mean()
    rank_truth, rank_predicted = _Ranks(truth), _Ranks(predicted)

    def statistic(weights: Floats) -> Mapping[str, Floats]:
        num, squares = weights.sum(1), weights @ error**2
        total = weights @ centred**2 - (weights @ centred) ** 2 / num
        ranks = rank_truth(weights), rank_predicted(weights)
        return {
            "r2": 1 - _divide(squares, total, centred @ centred),
            "rmse": np.sqrt(squares / num),
            "mae": weights @ np.abs(error) / num,
            "spearman": _correlate(*ranks, weights),
        }

    return bootstrap.measure(statistic, len(truth), units, seed)


def r2(predicted: Floats, truth: Floats) -> float:
    """Compute R2 of [N]; NaN where all of `truth` are equal."""
    total = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((predicted - truth) ** 2).sum()) / total if np.ptp(truth) else float("nan")


class _Ranks:
    """Rank numbers [N] in many resamples, equal ones by the mean of their places."""

    def __init__(self, values: Floats) -> None:
        distinct, self.place = np.unique(values, return_inverse=True)
        self.order = np.argsort(self.place, kind="stable")
        self.starts = np.searchsorted(self.place[self.order], np.arange(len(distinct)))

    def __call__(self, weights: Floats) -> Floats:
        """Weights [R, N] -> ranks [R, N]; 1 is the least, a clip drawn twice takes two places."""
        counts = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        ranks: Floats = (np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, self.place]
        return ranks


def _correlate(one: Floats, other: Floats, weights: Floats) -> Floats:
    """Correlate [R, N] with [R, N] by Pearson, each clip with its weight: [R]; NaN where one of them is constant."""
    num = weights.sum(1, keepdims=True)
    one, other = (x - (weights * x).sum(1, keepdims=True) / num for x in (one, other))
    both, *alone = ((weights * x * y).sum(1) for x, y in ((one, other), (one, one), (other, other)))
    return _divide(both, np.sqrt(alone[0] * alone[1]), 1.0)


def _divide(values: Floats, by: Floats, scale: float) -> Floats:
    """Divide [R] by [R]; NaN where `by` is nothing beside `scale`."""
    quotient: Floats = np.divide(values, by, out=np.full(len(by), np.nan), where=by > 1e-12 * scale)
    return quotient
