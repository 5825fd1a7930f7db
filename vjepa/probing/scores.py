"""Score answers that are classes: accuracies with their intervals, every class, the confusions, the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from scipy.sparse import csr_array

from vjepa.errors import UserError
from vjepa.probing.bootstrap import Share, count_units, interval_of_share, resample, unit_numbers
from vjepa.probing.metrics import Floats

NUM_WORST: Final = 25
TOP: Final = 5
_AT_ONCE: Final = 1 << 22  # classes times resamples, 8 bytes each


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

    @property
    def words(self) -> tuple[tuple[str, str, float | None], ...]:
        """Say what was true and what was answered: word, name and probability of each."""
        return ("true", self.truth, self.probability), ("said", self.predicted, self.confidence)


@dataclass(frozen=True)
class Scores:
    """Hold all that `score` measures.

    top1: share of clips whose most probable class is right. top5: of clips whose class is among the five most probable;
    None up to 5 classes.
    mean_class: recall, averaged over the classes that have clips: balanced accuracy.
    macro_f1: F1 = 2 right / (clips + answers), averaged over the classes that have clips or were answered.
    recall_at_5: the share that top5 is, averaged over the classes that have clips: the measure of action anticipation.
    names: [C] the classes that were learned, then those that only the truth has, sorted; rows and columns of
    `confusion`, order of `per_class`.
    confusion: int64 [C, C], clips of class (row) that were taken for class (column).
    worst: the most confident mistakes, at most NUM_WORST, most confident first.
    num_groups: what the intervals were resampled over; None: over clips.
    """

    top1: Share
    top5: Share | None
    mean_class: Share
    macro_f1: Share
    recall_at_5: Share | None
    names: tuple[str, ...]
    per_class: tuple[ClassScore, ...]
    confusion: np.ndarray
    worst: tuple[Mistake, ...]
    num_clips: int
    num_groups: int | None

    @property
    def measures(self) -> dict[str, Share | None]:
        """Give every measure by its name, the one that stands for the probe first."""
        names = ("top1", "top5", "mean_class", "macro_f1", "recall_at_5")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, ready for JSON."""
        told = {name: asdict(share) if share else None for name, share in self.measures.items()}
        del told["recall_at_5"]  # an entry has it beside its scores
        return {
            **told,
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
    units = unit_numbers(groups, len(ids))
    top1, mean_class = _shares(rank < 1, ids, units, seed)
    top5, recall_at_5 = _shares(rank < TOP, ids, units, seed) if len(names) > TOP else (None, None)
    predicted = probabilities.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (ids, predicted), 1)
    return Scores(
        top1=top1,
        top5=top5,
        mean_class=mean_class,
        macro_f1=_macro_f1(ids, predicted, len(classes), units, seed),
        recall_at_5=recall_at_5,
        names=classes,
        per_class=_per_class(classes, confusion),
        confusion=confusion,
        worst=_worst(probabilities, classes, ids, predicted, np.asarray(clip_ids)),
        num_clips=len(ids),
        num_groups=count_units(units),
    )


def share_right(right: np.ndarray, groups: Sequence[str | None] | None = None, seed: int = 0) -> Share:
    """Give the share of clips that are `right`, bool [N], with the interval that `score` would give it."""
    return _shares(right, np.zeros(len(right), dtype=np.int64), unit_numbers(groups, len(right)), seed)[0]


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


def _shares(hits: np.ndarray, ids: np.ndarray, units: np.ndarray | None, seed: int) -> tuple[Share, Share]:
    """Give the share of `hits` [N], and its mean over the classes `ids` [N] that have clips."""
    cells = 2 * ids + hits
    num_cells = 2 * (int(ids.max()) + 1)
    overall, mean = _two_shares(np.bincount(cells, minlength=num_cells)[None])
    many_overall, many_mean = _two_shares(resample(cells, num_cells, units, seed))
    num_units = len(ids) if units is None else int(units.max()) + 1
    return interval_of_share(overall[0], many_overall, num_units), interval_of_share(mean[0], many_mean, num_units)


def _two_shares(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn misses and hits of every class [R, 2 C] into share of hits [R], and its mean over classes with clips [R]."""
    hits, total = counts[:, 1::2], counts[:, 0::2] + counts[:, 1::2]
    present = total > 0
    recalls = np.divide(hits, total, out=np.zeros(hits.shape), where=present)
    return hits.sum(1) / total.sum(1), recalls.sum(1) / present.sum(1)


def _macro_f1(ids: np.ndarray, predicted: np.ndarray, num: int, units: np.ndarray | None, seed: int) -> Share:
    """Average F1 over the classes of `ids` and `predicted`, both [N] of `num` classes; as scikit-learn does."""
    pairs, cells = np.unique(num * ids + predicted, return_inverse=True)
    true, said = np.divmod(pairs, num)
    columns, ones = np.arange(len(pairs)), np.ones(len(pairs))
    to_class = csr_array((np.r_[ones, ones], (np.r_[columns, columns], np.r_[true, said])), shape=(len(pairs), num))
    hits = csr_array((2.0 * (true == said), (columns, true)), shape=(len(pairs), num))

    def macro(counts: np.ndarray) -> np.ndarray:
        total, right = counts @ to_class, counts @ hits
        scores = np.divide(right, total, out=np.zeros(total.shape), where=total > 0)
        mean: np.ndarray = scores.sum(1) / (total > 0).sum(1)
        return mean

    drawn = resample(cells, len(pairs), units, seed)
    size = max(1, _AT_ONCE // num)
    many = np.concatenate([macro(drawn[start : start + size]) for start in range(0, len(drawn), size)])
    value = float(macro(np.bincount(cells)[None])[0])
    return interval_of_share(value, many, len(ids) if units is None else int(units.max()) + 1)


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
