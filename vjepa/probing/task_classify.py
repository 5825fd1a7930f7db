"""A label that is one class of a clip: accuracy, by softmax over the classes of train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from vjepa.errors import UserError
from vjepa.models.attentive_pool import Link
from vjepa.probing import linear
from vjepa.probing.attentive import Loss, cross_entropy
from vjepa.probing.bootstrap import Share
from vjepa.probing.metrics import Floats, Texts, wilson_interval
from vjepa.probing.scores import Scores, score, share_right
from vjepa.probing.sweep import Merit
from vjepa.probing.task import Groups, Head, Kind, Targets, draw_of_classes, sizes_of_classes

# what outputs of ridge regression, about 0 to 1, are multiplied by to be logits
SHARPNESS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
LEAST: Final = 1e-9  # probability whose logarithm is taken


@dataclass(frozen=True)
class Classify:
    """Tell classes apart; a `Task`.

    balanced: every class counts as much, whatever its clips: in the loss, in votes, and in what is chosen.
    """

    balanced: bool = False
    kind: ClassVar[Kind] = "classify"
    measure: ClassVar[str] = "accuracy"
    heads: ClassVar[tuple[Head, ...]] = ("logistic", "ridge")
    starts: ClassVar[Sequence[tuple[float, float]]] = tuple((factor, 0.0) for factor in SHARPNESS)

    @property
    def criterion(self) -> str:
        return "mean_class" if self.balanced else "accuracy"

    def check(self, labels: Texts, what: str, learned: bool) -> None:
        if learned and len(np.unique(labels)) < 2:
            raise UserError(
                f"{what}: every clip is {str(labels[0])!r}; a probe needs two classes or more, so give clips of "
                "others, or another label"
            )

    def targets(self, labels: Texts) -> Targets:
        names, ids = np.unique(labels, return_inverse=True)
        one_hot = csr_array((np.ones(len(ids)), ids, np.arange(len(ids) + 1)), shape=(len(ids), len(names)))
        return Targets(names, one_hot)

    def weights(self, targets: Targets) -> Floats | None:
        of_class = self._weights(targets)
        return None if of_class is None else of_class[targets.values.indices][:, None]

    def _weights(self, targets: Targets) -> Floats | None:
        """Weigh classes as scikit-learn's `balanced` does, [C]: clips / (classes x clips of the class)."""
        if not self.balanced:
            return None
        num, num_classes = targets.values.shape
        weights: Floats = num / (num_classes * np.bincount(targets.values.indices))
        return weights

    def link(self, head: Head) -> Link:
        return "softmax" if head == "logistic" else "shares"

    def of_votes(self, votes: Floats, total: Floats, targets: Targets) -> Floats:
        of_class = self._weights(targets)
        votes = votes if of_class is None else votes * of_class
        shares: Floats = votes / votes.sum(1, keepdims=True)
        return shares

    def sizes(self, targets: Targets) -> np.ndarray:
        return sizes_of_classes(targets)

    def draw(self, targets: Targets, num: int, rng: np.random.Generator) -> np.ndarray:
        return draw_of_classes(targets, num, rng)

    def fit(self, head: Head, features: Floats, targets: Targets) -> dict[float, linear.LinearModel]:
        how, choices = (
            (linear.fit, linear.C_CHOICES) if head == "logistic" else (linear.fit_ridge, linear.ALPHA_CHOICES)
        )
        models = how(features, targets.values.toarray(), choices, self.weights(targets))
        return dict(zip(choices, models, strict=True))

    def lesson(self, targets: Targets) -> tuple[Tensor, Loss]:
        of_class = self._weights(targets)
        weights = None if of_class is None else torch.from_numpy(of_class).float()
        return torch.from_numpy(targets.values.indices).long(), partial(cross_entropy, weights=weights)

    def judge(self, parts: Iterable[tuple[Texts, Floats]], names: Texts) -> list[Merit]:
        """Count right answers, and average the probability of the true class; answers that diverged count as wrong."""
        right, sure, truth = list[np.ndarray](), np.zeros(1), list[Texts]()
        for labels, shares in parts:
            finite = np.isfinite(shares.sum(-1))
            right.append((names[shares.argmax(-1)] == labels) & finite)
            sure = sure + np.where((labels[:, None] == names) & finite[..., None], shares, 0.0).sum((1, 2))
            truth.append(labels)
        hits, classes = np.concatenate(right, 1), np.concatenate(truth)
        values = _mean_class(hits, classes) if self.balanced else hits.mean(1)
        return list(zip(values.tolist(), (sure / len(classes)).tolist(), strict=True))

    def likelihood(self, answers: Floats, names: Texts, labels: Texts) -> float:
        sure = np.where(labels[:, None] == names, answers, 0).sum(1)
        return float(np.log(np.maximum(sure, LEAST)).sum())

    def value(self, answers: Floats, names: Texts, labels: Texts) -> float:
        return float(np.mean(names[answers.argmax(1)] == labels))

    def half(self, answers: Floats, names: Texts, labels: Texts) -> float:
        low, high = wilson_interval(self.value(answers, names, labels) * len(labels), len(labels))
        return (high - low) / 2

    def score(self, answers: Floats, names: Texts, labels: Texts, clip_ids: np.ndarray, groups: Groups) -> Scores:
        return score(answers, names.tolist(), labels.tolist(), clip_ids, groups)

    def chance(self, trials: Sequence[tuple[Texts, Texts]], groups: Groups) -> dict[str, Share | None]:
        """Score always answering the most frequent class of train, the first by name where several are.

        Where classes count alike, any class is as good.
        """
        right = []
        for learned, labels in trials:
            names, counts = np.unique(learned, return_counts=True)
            right.append(labels == names[counts.argmax()])
        return {"top1": share_right(np.concatenate(right), groups)}


def _mean_class(hits: np.ndarray, classes: Texts) -> Floats:
    """Average the share of `hits` [H, n] over `classes` [n]: [H]."""
    shares: Floats = np.mean([hits[:, classes == name].mean(1) for name in np.unique(classes)], 0)
    return shares
