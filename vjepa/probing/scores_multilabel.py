"""Score answers of clips with many labels: average precision of each class, and its mean with an interval.

A clip that is drawn twice is two clips of one answer, which lifts average precision a little: intervals lean upwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from vjepa.errors import UserError
from vjepa.probing import bootstrap
from vjepa.probing.bootstrap import Share, count_units
from vjepa.probing.metrics import Floats
from vjepa.probing.scores import NUM_WORST, Mistake

SEPARATOR: Final = "|"


@dataclass(frozen=True)
class ClassPrecision:
    """Score one class, which `num` clips have. ap: average precision, None where no clip has it."""

    name: str
    num: int
    ap: float | None


@dataclass(frozen=True)
class MultilabelScores:
    """Hold all that `score` measures.

    map: mean over the classes that some clip has. per_class: those that were learned, then those that only the truth
    has, sorted. worst: the most confident answers of a class that the clip does not have, where it is more than
    `probability`, that of the least probable of its own classes (.5 where it has none).
    num_groups: what the interval was resampled over; None: over clips.
    """

    map: Share
    per_class: tuple[ClassPrecision, ...]
    worst: tuple[Mistake, ...]
    num_clips: int
    num_groups: int | None

    @property
    def measures(self) -> dict[str, Share | None]:
        """Give every measure by its name, the one that stands for the probe first."""
        return {"map": self.map}

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, ready for JSON."""
        return {
            "map": asdict(self.map),
            "num_clips": self.num_clips,
            "num_groups": self.num_groups,
            "per_class": [asdict(one) for one in self.per_class],
            "worst": [asdict(one) for one in self.worst],
        }


def score(
    answers: Floats,
    names: Sequence[str],
    truth: Sequence[frozenset[str]],
    clip_ids: Sequence[int] | np.ndarray,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
) -> MultilabelScores:
    """Score `answers` [N, C] for the classes `names` [C] where each clip has the classes `truth` [N]; N >= 1.

    A class that is not in `names`, for no training clip had it, is answered 0 everywhere. Raises UserError for answers
    that are not finite, and where no clip has any class.
    """
    if not np.isfinite(answers).all():
        raise UserError("answers hold NaN or infinity; the head has diverged, lower its learning rate")
    classes, has = table(names, truth)
    if not has.any():
        raise UserError("none of the clips that are measured has a class; give others")
    answers = np.pad(answers, ((0, 0), (0, len(classes) - len(names))))
    units = bootstrap.several_units(groups, len(truth))
    share = bootstrap.measure(lambda weights: _mean_precision(answers, has, weights), len(truth), units, seed)["map"]
    if share is None:
        raise ValueError("a class has clips, and no precision")
    precisions = average_precisions(answers, has)
    per_class = tuple(
        ClassPrecision(name, int(num), None if np.isnan(ap) else float(ap))
        for name, num, ap in zip(classes, has.sum(0), precisions, strict=True)
    )
    worst = _worst(answers, classes, has, np.asarray(clip_ids))
    return MultilabelScores(share, per_class, worst, len(truth), count_units(units))


def table(names: Sequence[str], truth: Sequence[frozenset[str]]) -> tuple[tuple[str, ...], np.ndarray]:
    """List `names`, then the other classes of `truth`, sorted; and which clip has which: bool [N, C]."""
    known = [str(name) for name in names]
    classes = (*known, *sorted(set().union(*truth) - set(known)))
    place = {name: number for number, name in enumerate(classes)}
    has = np.zeros((len(truth), len(classes)), dtype=bool)
    for row, own in enumerate(truth):
        has[row, [place[name] for name in own]] = True
    return classes, has


def average_precisions(answers: Floats, has: np.ndarray) -> Floats:
    """Compute the average precision of each class, [N, C] -> [C], as scikit-learn does; NaN where no clip has it."""
    weights = np.ones((1, len(has)))
    return np.array([_average_precision(answers[:, c], has[:, c], weights)[0] for c in range(has.shape[1])])


def _mean_precision(answers: Floats, has: np.ndarray, weights: Floats) -> Mapping[str, Floats]:
    """Average over the classes that some clip has: weights [R, N] -> [R]."""
    total, num = np.zeros(len(weights)), np.zeros(len(weights))
    weights = weights.astype(np.float32)  # counts, exact and twice as fast
    for c in np.flatnonzero(has.any(0)):
        found = _average_precision(answers[:, c], has[:, c], weights)
        total, num = total + np.nan_to_num(found), num + np.isfinite(found)
    return {"map": np.divide(total, num, out=np.full(len(num), np.nan), where=num > 0)}


def _average_precision(answers: Floats, has: np.ndarray, weights: Floats) -> Floats:
    """Sum precision times the gain in recall over the distinct answers of one class, the largest first: [N] -> [R].

    weights: [R, N], how often each clip counts. NaN where no clip with the class does.
    """
    order = np.argsort(-answers, kind="stable")
    sorted_answers, places = answers[order], np.flatnonzero(has[order])
    # of each run of equal answers that holds a clip with the class: its last clip, and the last of those with the class
    last = np.unique(np.searchsorted(-sorted_answers, -sorted_answers[places], side="right")) - 1
    own = np.cumsum(weights[:, order[places]], axis=1, dtype=np.float64)
    right = own[:, np.searchsorted(places, last, side="right") - 1]
    precision = right / np.maximum(np.cumsum(weights[:, order], axis=1)[:, last], 1)
    gain, total = np.diff(right, axis=1, prepend=0), right[:, -1:].sum(1)
    found: Floats = np.divide((precision * gain).sum(1), total, out=np.full(len(right), np.nan), where=total > 0)
    return found


def _worst(answers: Floats, classes: Sequence[str], has: np.ndarray, clip_ids: np.ndarray) -> tuple[Mistake, ...]:
    wrong = np.where(has, -np.inf, answers)
    predicted = wrong.argmax(1)
    confidence = wrong[np.arange(len(wrong)), predicted]
    own = np.where(has.any(1), np.where(has, answers, np.inf).min(1), 0.5)
    wrongly = np.flatnonzero(confidence > own)
    chosen = wrongly[np.argsort(-confidence[wrongly], kind="stable")][:NUM_WORST]
    return tuple(
        Mistake(
            clip_id=int(clip_ids[i]),
            truth=SEPARATOR.join(name for name, true in zip(classes, has[i], strict=True) if true) or SEPARATOR,
            predicted=classes[predicted[i]],
            probability=float(own[i]),
            confidence=float(confidence[i]),
        )
        for i in chosen
    )
