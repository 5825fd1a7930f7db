"""A label that is a number: R2, by ridge regression."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from vjepa.errors import UserError
from vjepa.models.attentive_pool import Link
from vjepa.probing import linear, scores_numbers
from vjepa.probing.attentive import Loss, squared_error
from vjepa.probing.bootstrap import Share, several_units
from vjepa.probing.metrics import Floats, Texts
from vjepa.probing.scores_numbers import NumberScores
from vjepa.probing.sweep import Merit
from vjepa.probing.task import Groups, Head, Kind, Targets

_GOLDEN: Final = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Regress:
    """Predict numbers; a `Task`."""

    balanced: ClassVar[bool] = False
    kind: ClassVar[Kind] = "regress"
    measure: ClassVar[str] = "R2"
    criterion: ClassVar[str] = "R2"
    heads: ClassVar[tuple[Head, ...]] = ("ridge",)
    starts: ClassVar[Sequence[tuple[float, float]]] = ((1.0, 0.0),)

    def check(self, labels: Texts, what: str, learned: bool) -> None:
        """Refuse texts, NaN and infinity, and a column that is constant, whether it is learned or measured."""
        bad = [text for text in labels.tolist() if not np.isfinite(as_number(text))]
        if bad:
            raise UserError(
                f"{what}: {len(bad)} of {len(labels)} values are no finite number, such as {bad[0]!r}; correct them, "
                "or leave these cells empty"
            )
        if np.ptp(numbers(labels)) == 0:
            raise UserError(
                f"{what}: every value is {labels[0]}; numbers are learned and measured by their differences, so give "
                "clips of other values"
            )

    def targets(self, labels: Texts) -> Targets:
        values = numbers(labels)
        spread = float(values.std()) or 1.0
        return Targets(np.array(["number"]), csr_array(values[:, None]), float(values.mean()), spread)

    def weights(self, targets: Targets) -> Floats | None:
        return None

    def link(self, head: Head) -> Link:
        return "identity"

    def of_votes(self, votes: Floats, total: Floats, targets: Targets) -> Floats:
        """Average the neighbours, each by its weight."""
        means: Floats = votes / total
        return means

    def sizes(self, targets: Targets) -> np.ndarray:
        return np.array([targets.values.shape[0]])

    def draw(self, targets: Targets, num: int, rng: np.random.Generator) -> np.ndarray:
        """Draw clips evenly in the order of their numbers: turns of the golden ratio from a start that is drawn."""
        order = np.argsort(targets.values.toarray()[:, 0], kind="stable")
        turns = (rng.random() + _GOLDEN * np.arange(4 * len(order))) % 1  # so many leave out none
        ranks, first = np.unique((turns * len(order)).astype(np.int64), return_index=True)
        return np.sort(order[ranks[np.argsort(first)[:num]]])

    def fit(self, head: Head, features: Floats, targets: Targets) -> dict[float, linear.LinearModel]:
        choices = linear.NUMBER_ALPHA_CHOICES
        return dict(zip(choices, linear.fit_ridge(features, targets.values.toarray(), choices), strict=True))

    def lesson(self, targets: Targets) -> tuple[Tensor, Loss]:
        return torch.from_numpy(targets.scaled()).float(), squared_error

    def judge(self, parts: Iterable[tuple[Texts, Floats]], names: Texts) -> list[Merit]:
        """Compute R2; of answers that diverged it is -inf."""
        labels, answers = zip(*parts, strict=True)
        truth, predicted = numbers(np.concatenate(labels)), np.concatenate(answers, 1)[..., 0].astype(np.float64)
        found = [scores_numbers.r2(one, truth) for one in predicted]
        return [(value if np.isfinite(value) else -np.inf, 0.0) for value in found]

    def likelihood(self, answers: Floats, names: Texts, labels: Texts) -> float:
        return -float(((answers[:, 0] - numbers(labels)) ** 2).sum())

    def value(self, answers: Floats, names: Texts, labels: Texts) -> float:
        return scores_numbers.r2(answers[:, 0], numbers(labels))

    def half(self, answers: Floats, names: Texts, labels: Texts) -> float:
        share = self.score(answers, names, labels, np.arange(len(labels)), None).r2
        return (share.high - share.low) / 2 if share else 0.0

    def score(self, answers: Floats, names: Texts, labels: Texts, clip_ids: np.ndarray, groups: Groups) -> NumberScores:
        return scores_numbers.score(answers[:, 0].astype(np.float64), numbers(labels), clip_ids, groups)

    def chance(self, trials: Sequence[tuple[Texts, Texts]], groups: Groups) -> dict[str, Share | None]:
        """Score always answering the mean of train, which ranks nothing."""
        truth = [numbers(labels) for _, labels in trials]
        means = [np.full(len(one), numbers(learned).mean()) for one, (learned, _) in zip(truth, trials, strict=True)]
        joined, answers = np.concatenate(truth), np.concatenate(means)
        found = scores_numbers.measures(answers, joined, several_units(groups, len(joined)), seed=0)
        return {**found, "spearman": None}


def numbers(labels: Texts) -> Floats:
    """Read labels [n] as numbers: float64 [n]."""
    return np.array([as_number(text) for text in labels.tolist()])


def as_number(text: str) -> float:
    """Read one label; NaN where it is no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
