"""Score one set of predictions: accuracies with their intervals, every class, the confusions, the worst mistakes.

Intervals are 95 % percentile bootstrap (Efron 1979): over clips, or over whole groups where clips of one group (a
scene, a person) resemble each other, for then there is only as much evidence as there are groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from scipy.sparse import csr_array

from vjepa.counter_rng import generator
from vjepa.errors import UserError
from vjepa.probing.metrics import Floats, wilson_interval

NUM_RESAMPLES: Final = 2000
NUM_WORST: Final = 25
TOP: Final = 5


@dataclass(frozen=True)
class Share:
    """Hold a share with its 95 % interval; all in 0..1, low <= value <= high."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassScore:
    """Score one class, which `num` clips are of.

    recall: None where there are none; precision: None where it was never answered.
    """

    name: str
    num: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class Mistake:
    """Name a clip that was taken for another class.

    probability: that of the true class; confidence: that of the answer.
    """

    clip_id: int
    truth: str
    predicted: str
    probability: float
    confidence: float


@dataclass(frozen=True)
class Scores:
    """Hold all that `score` measures.

    top1: share of clips whose most probable class is right. top5: of clips whose class is among the five most probable;
    None up to 5 classes.
    mean_class: recall, averaged over the classes that have clips.
    names: [C] the classes that were learned, then those that only the truth has, sorted; rows and columns of
    `confusion`, order of `per_class`.
    confusion: int64 [C, C], clips of class (row) that were taken for class (column).
    worst: the most confident mistakes, at most NUM_WORST, most confident first.
    num_groups: what the intervals were resampled over; None: over clips.
    """

    top1: Share
    top5: Share | None
    mean_class: Share
    names: tuple[str, ...]
    per_class: tuple[ClassScore, ...]
    confusion: np.ndarray
    worst: tuple[Mistake, ...]
    num_clips: int
    num_groups: int | None

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, ready for JSON."""
        return {
            "top1": asdict(self.top1),
            "top5": asdict(self.top5) if self.top5 else None,
            "mean_class": asdict(self.mean_class),
            "num_clips": self.num_clips,
            "num_groups": self.num_groups,
            "names": list(self.names),
            "per_class": [asdict(one) for one in self.per_class],
            "confusion": self.confusion.tolist(),
            "worst": [asdict(one) for one in self.worst],
        }


def score(
    probabilities: Floats,
    names: Sequence[str],
    truth: Sequence[str],
    clip_ids: Sequence[int] | np.ndarray,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
) -> Scores:
    """Score `probabilities` [N, C] for the classes `names` [C] where `truth` [N] is right; N >= 1.

    Of equal probabilities the first class is the answer. A true class that is not in `names`, for no training clip had
    it, counts as a mistake wherever it occurs. groups: one per clip; a clip whose group is None is on its own. Raises
    UserError for probabilities that are no numbers, ValueError for shapes that do not fit.
    """
    classes, ids, rank = _rank_truth(probabilities, names, truth)
    if len(clip_ids) != len(ids):
        raise ValueError(f"{len(clip_ids)} clip ids for {len(ids)} clips")
    units = _unit_numbers(groups, len(ids))
    top1, mean_class = _shares(rank < 1, ids, units, seed)
    predicted = probabilities.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (ids, predicted), 1)
    return Scores(
        top1=top1,
        top5=_shares(rank < TOP, ids, units, seed)[0] if len(names) > TOP else None,
        mean_class=mean_class,
        names=classes,
        per_class=_per_class(classes, confusion),
        confusion=confusion,
        worst=_worst(probabilities, classes, ids, predicted, np.asarray(clip_ids)),
        num_clips=len(ids),
        num_groups=int(units.max()) + 1 if units is not None else None,
    )


def class_mean_recall(
    probabilities: Floats,
    names: Sequence[str],
    truth: Sequence[str],
    k: int = TOP,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
) -> Share:
    """Average the recall at k over the classes that have clips; the other arguments are those of `score`.

    It is the measure of action anticipation (EPIC-Kitchens-100: k = 5).
    """
    _, ids, rank = _rank_truth(probabilities, names, truth)
    return _shares(rank < k, ids, _unit_numbers(groups, len(ids)), seed)[1]


def share_right(right: np.ndarray, groups: Sequence[str | None] | None = None, seed: int = 0) -> Share:
    """Give the share of clips that are `right`, bool [N], with the interval that `score` would give it."""
    return _shares(right, np.zeros(len(right), dtype=np.int64), _unit_numbers(groups, len(right)), seed)[0]


def _rank_truth(
    probabilities: Floats, names: Sequence[str], truth: Sequence[str]
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """List all classes; place each clip's class among them, and count those answered before it, both int64 [N]."""
    if probabilities.shape != (len(truth), len(names)) or not len(truth):
        raise ValueError(f"probabilities {probabilities.shape} of {len(truth)} clips and {len(names)} classes")
    if not np.isfinite(probabilities).all():
        raise UserError("probabilities hold NaN or infinity; the head has diverged, lower its learning rate")
    known = [str(name) for name in names]
    classes = (*known, *sorted({str(name) for name in truth} - set(known)))
    place = {name: number for number, name in enumerate(classes)}
    ids = np.array([place[str(name)] for name in truth], dtype=np.int64)
    learned = ids < len(known)
    own = np.take_along_axis(probabilities, np.where(learned, ids, 0)[:, None], axis=1)
    before = (probabilities > own) | ((probabilities == own) & (np.arange(len(known)) < ids[:, None]))
    return classes, ids, np.where(learned, before.sum(1), len(classes))


def _unit_numbers(groups: Sequence[str | None] | None, num_clips: int) -> np.ndarray | None:
    """Give each group a number from 0, without a gap: int64 [N]; a clip without a group is one of its own."""
    if groups is None:
        return None
    if len(groups) != num_clips:
        raise ValueError(f"{len(groups)} groups for {num_clips} clips")
    keys = [("row", str(i)) if group is None else ("group", str(group)) for i, group in enumerate(groups)]
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _shares(hits: np.ndarray, ids: np.ndarray, units: np.ndarray | None, seed: int) -> tuple[Share, Share]:
    """Give the share of `hits` [N], and its mean over the classes `ids` [N] that have clips."""
    cells = 2 * ids + hits
    num_cells = 2 * (int(ids.max()) + 1)
    overall, mean = _two_shares(np.bincount(cells, minlength=num_cells)[None])
    many_overall, many_mean = _two_shares(_resample(cells, num_cells, units, seed))
    num_units = len(ids) if units is None else int(units.max()) + 1
    return _interval(overall[0], many_overall, num_units), _interval(mean[0], many_mean, num_units)


def _two_shares(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn misses and hits of every class [R, 2 C] into share of hits [R], and its mean over classes with clips [R]."""
    hits, total = counts[:, 1::2], counts[:, 0::2] + counts[:, 1::2]
    present = total > 0
    recalls = np.divide(hits, total, out=np.zeros(hits.shape), where=present)
    return hits.sum(1) / total.sum(1), recalls.sum(1) / present.sum(1)


def _resample(cells: np.ndarray, num_cells: int, units: np.ndarray | None, seed: int) -> np.ndarray:
    """Count how often each cell occurs in each resample: int [NUM_RESAMPLES, num_cells].

    cells: [N], that of each clip.
    """
    rng = generator(seed, "bootstrap", 0)
    if units is None:  # only counts matter, and those of N draws from N clips are multinomial: no clip need be drawn
        return rng.multinomial(len(cells), np.bincount(cells, minlength=num_cells) / len(cells), size=NUM_RESAMPLES)
    num_units = int(units.max()) + 1
    clips = csr_array((np.ones(len(cells), dtype=np.int64), (cells, units)), shape=(num_cells, num_units))
    drawn = np.stack(
        [np.bincount(rng.integers(num_units, size=num_units), minlength=num_units) for _ in range(NUM_RESAMPLES)],
        axis=1,
    )
    counts: np.ndarray = (clips @ drawn).T
    return counts


def _interval(value: float, resampled: np.ndarray, num_units: int) -> Share:
    # all right, all wrong, or one group: the bootstrap sees no spread, where Wilson's interval still does
    if np.ptp(resampled) < 1e-12:
        low, high = wilson_interval(value * num_units, num_units)
    else:
        low, high = np.quantile(resampled, (0.025, 0.975))
    return Share(float(value), float(min(low, value)), float(max(high, value)))


def _per_class(classes: Sequence[str], confusion: np.ndarray) -> tuple[ClassScore, ...]:
    right, clips, answers = np.diag(confusion).tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist()
    return tuple(
        ClassScore(name, num, hits / num if num else None, hits / answered if answered else None)
        for name, hits, num, answered in zip(classes, right, clips, answers, strict=True)
    )


def _worst(
    probabilities: Floats, classes: Sequence[str], ids: np.ndarray, predicted: np.ndarray, clip_ids: np.ndarray
) -> tuple[Mistake, ...]:
    wrong = np.flatnonzero(predicted != ids)
    confidence = probabilities[wrong, predicted[wrong]]
    chosen = wrong[np.argsort(-confidence, kind="stable")][:NUM_WORST]
    return tuple(
        Mistake(
            clip_id=int(clip_ids[i]),
            truth=classes[ids[i]],
            predicted=classes[predicted[i]],
            probability=float(probabilities[i, ids[i]]) if ids[i] < probabilities.shape[1] else 0.0,
            confidence=float(probabilities[i, predicted[i]]),
        )
        for i in chosen
    )
