"""A label that is any of many classes of a clip, `run|jump`: mean average precision, each class against the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from vjepa.errors import UserError
from vjepa.models.attentive_pool import Link
from vjepa.probing import linear, scores_multilabel
from vjepa.probing.attentive import Loss, binary_cross_entropy
from vjepa.probing.bootstrap import Share
from vjepa.probing.metrics import Floats, Texts
from vjepa.probing.scores_multilabel import SEPARATOR, MultilabelScores
from vjepa.probing.sweep import Merit
from vjepa.probing.task import Groups, Head, Kind, Targets, draw_of_classes, sizes_of_classes
from vjepa.probing.task_classify import LEAST, SHARPNESS


@dataclass(frozen=True)
class Multilabel:
    """Tell which of many classes a clip has; a `Task`.

    balanced: of every class, clips that have it count as much together as those that lack it.
    """

    balanced: bool = False
    kind: ClassVar[Kind] = "multilabel"
    measure: ClassVar[str] = "mAP"
    criterion: ClassVar[str] = "mAP"
    heads: ClassVar[tuple[Head, ...]] = ("logistic", "ridge")
    # ridge regression gives about 0 to 1, where logits change their sign in the middle
    starts: ClassVar[Sequence[tuple[float, float]]] = tuple((factor, -factor / 2) for factor in SHARPNESS)

    def check(self, labels: Texts, what: str, learned: bool) -> None:
        names, has = scores_multilabel.table((), sets(labels))
        shares = has.mean(0)
        if not names or (learned and not ((shares > 0) & (shares < 1)).any()):
            found = f"every clip has {SEPARATOR.join(names)!r}" if names else "no clip has a class"
            raise UserError(f"{what}: {found}; a probe needs a class that some clips have and others lack")

    def targets(self, labels: Texts) -> Targets:
        names, has = scores_multilabel.table((), sets(labels))
        return Targets(np.array(names), csr_array(has.astype(np.float64)))

    def weights(self, targets: Targets) -> Floats | None:
        if not self.balanced:
            return None
        lacks, own = self._weights(targets)
        weights: Floats = np.where(targets.values.toarray() > 0, own, lacks)
        return weights

    def _weights(self, targets: Targets) -> Floats:
        """Weigh clips that lack and have each class as scikit-learn's `balanced` does, [2, C]."""
        num, own = len(targets.scaled()), targets.values.sum(0)
        weights: Floats = num / (2 * np.maximum(np.stack([num - own, own]), 1))
        return weights

    def link(self, head: Head) -> Link:
        return "sigmoid" if head == "logistic" else "clip"

    def of_votes(self, votes: Floats, total: Floats, targets: Targets) -> Floats:
        lacks, own = self._weights(targets) if self.balanced else np.ones((2, votes.shape[1]))
        shares: Floats = own * votes / (own * votes + lacks * (total - votes))
        return shares

    def sizes(self, targets: Targets) -> np.ndarray:
        return sizes_of_classes(targets)

    def draw(self, targets: Targets, num: int, rng: np.random.Generator) -> np.ndarray:
        return draw_of_classes(targets, num, rng)

    def fit(self, head: Head, features: Floats, targets: Targets) -> dict[float, linear.LinearModel]:
        logistic = head == "logistic"
        how, choices = (linear.fit_each, linear.C_CHOICES) if logistic else (linear.fit_ridge, linear.ALPHA_CHOICES)
        models = how(features, targets.values.toarray(), choices, self.weights(targets))
        return dict(zip(choices, models, strict=True))

    def lesson(self, targets: Targets) -> tuple[Tensor, Loss]:
        weights = torch.from_numpy(self._weights(targets)).float() if self.balanced else None
        return torch.from_numpy(targets.values.toarray()).float(), partial(binary_cross_entropy, weights=weights)

    def judge(self, parts: Iterable[tuple[Texts, Floats]], names: Texts) -> list[Merit]:
        """Compute mAP, then the likelihood; answers that diverged have neither."""
        labels, answers = zip(*parts, strict=True)
        joined, shares = np.concatenate(labels), np.concatenate(answers, 1)
        finite = np.isfinite(shares).all((1, 2))
        merits = [(self.value(one, names, joined), self.likelihood(one, names, joined)) for one in shares[finite]]
        left = iter(merits)
        return [next(left) if good else (-np.inf, -np.inf) for good in finite]

    def likelihood(self, answers: Floats, names: Texts, labels: Texts) -> float:
        has = scores_multilabel.table(names.tolist(), sets(labels))[1][:, : len(names)]
        sure = np.where(has, answers, 1 - answers)
        return float(np.log(np.maximum(sure, LEAST)).mean())

    def value(self, answers: Floats, names: Texts, labels: Texts) -> float:
        classes, has = scores_multilabel.table(names.tolist(), sets(labels))
        wide = np.pad(answers, ((0, 0), (0, len(classes) - len(names))))
        precisions = scores_multilabel.average_precisions(wide, has)
        return float(np.nanmean(precisions)) if has.any() else float("nan")

    def half(self, answers: Floats, names: Texts, labels: Texts) -> float:
        share = self.score(answers, names, labels, np.arange(len(labels)), None).map
        return (share.high - share.low) / 2

    def score(
        self, answers: Floats, names: Texts, labels: Texts, clip_ids: np.ndarray, groups: Groups
    ) -> MultilabelScores:
        return scores_multilabel.score(answers, names.tolist(), sets(labels), clip_ids, groups)

    def chance(self, trials: Sequence[tuple[Texts, Texts]], groups: Groups) -> dict[str, Share | None]:
        """Score the same answer for every clip: the average precision of a class is its share of the clips."""
        labels = np.concatenate([labels for _, labels in trials])
        names = np.array(scores_multilabel.table((), sets(labels))[0])
        even = np.zeros((len(labels), len(names)))
        return dict(self.score(even, names, labels, np.arange(len(labels)), groups).measures)


def sets(labels: Texts) -> list[frozenset[str]]:
    """Read cells `a|b` as sets of classes, spaces around them no part; `|` alone is none."""
    return [frozenset(name.strip() for name in text.split(SEPARATOR)) - {""} for text in labels.tolist()]
