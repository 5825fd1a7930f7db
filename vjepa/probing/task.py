"""What a label is to a probe: one class of a clip, a number, or any of many classes.

A `Task` is one small object that says what is learned, by which losses, what outputs mean, what is measured, and what
chance is. All else (features, heads, choices, folds, baselines, files) is the same for every task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from vjepa.models.attentive_pool import Link
from vjepa.probing.attentive import Loss
from vjepa.probing.bootstrap import Share
from vjepa.probing.linear import LinearModel
from vjepa.probing.metrics import Floats, Texts
from vjepa.probing.scores import Scores
from vjepa.probing.scores_multilabel import MultilabelScores
from vjepa.probing.scores_numbers import NumberScores
from vjepa.probing.sweep import Merit

Kind = Literal["classify", "regress", "multilabel"]
Head = Literal["logistic", "ridge"]
Groups = Sequence[str | None] | None
Scored = Scores | NumberScores | MultilabelScores


@dataclass(frozen=True)
class Targets:
    """Hold what n clips teach.

    names: [C], of the answers. values: float64 [n, C], 1 for the class of a clip or for each that it has, or its
    number. centre, spread: attentive heads learn (values - centre) / spread.
    """

    names: Texts
    values: csr_array
    centre: float = 0.0
    spread: float = 1.0

    def scaled(self) -> Floats:
        """Give (values - centre) / spread, dense."""
        values: Floats = (self.values.toarray() - self.centre) / self.spread
        return values


class Task(Protocol):
    """Say what a label is.

    balanced: every class counts as much, whatever its clips.
    measure: name of what probes are compared by, and `score` gives first; criterion: of what settings are chosen by.
    heads: losses of a linear probe, the default first. starts: of an attentive head from ridge regression, factors and
    shifts of its outputs.
    """

    @property
    def kind(self) -> Kind: ...

    @property
    def balanced(self) -> bool: ...

    @property
    def measure(self) -> str: ...

    @property
    def criterion(self) -> str: ...

    @property
    def heads(self) -> tuple[Head, ...]: ...

    @property
    def starts(self) -> Sequence[tuple[float, float]]: ...

    def check(self, labels: Texts, what: str, learned: bool) -> None:
        """Raise UserError where `labels` [n] cannot be learned from, or measured. what: names them in the message."""
        ...

    def targets(self, labels: Texts) -> Targets:
        """Turn the labels of train [n] into targets."""
        ...

    def weights(self, targets: Targets) -> Floats | None:
        """Say how much errors count: [n, 1] of clips, [n, C] of each answer; None: all the same."""
        ...

    def link(self, head: Head) -> Link:
        """Name what turns outputs of a head into answers; attentive heads are like `heads[0]`."""
        ...

    def of_votes(self, votes: Floats, total: Floats, targets: Targets) -> Floats:
        """Turn sums of weight x target [N, C] and of weights [N, 1] over neighbours into answers [N, C]."""
        ...

    def sizes(self, targets: Targets) -> np.ndarray:
        """Count the clips that `draw` draws from: int64 [C] of each class, or [1] of all."""
        ...

    def draw(self, targets: Targets, num: int, rng: np.random.Generator) -> np.ndarray:
        """Draw `num` clips that have each class, or over the range of numbers; all where there are fewer.

        int64 [n], ascending places among the clips of `targets`. A larger draw holds a smaller one of the same `rng`.
        """
        ...

    def fit(self, head: Head, features: Floats, targets: Targets) -> dict[float, LinearModel]:
        """Fit a linear model to `features` [n, D] for each setting, C or alpha."""
        ...

    def lesson(self, targets: Targets) -> tuple[Tensor, Loss]:
        """Say what an attentive head learns: a tensor [n] or [n, C], and the loss on rows of it."""
        ...

    def judge(self, parts: Iterable[tuple[Texts, Floats]], names: Texts) -> list[Merit]:
        """Say how good H models are, by `criterion`, then by how sure they are.

        parts: labels [B] and answers [H, B, C], of all clips in order.
        """
        ...

    def likelihood(self, answers: Floats, names: Texts, labels: Texts) -> float:
        """Say how probable `labels` [n] are by answers [n, C], up to a constant."""
        ...

    def value(self, answers: Floats, names: Texts, labels: Texts) -> float:
        """Compute `measure` of answers [n, C]; NaN where it is not defined."""
        ...

    def half(self, answers: Floats, names: Texts, labels: Texts) -> float:
        """Compute half the 95 % interval of `value`, over clips."""
        ...

    def score(self, answers: Floats, names: Texts, labels: Texts, clip_ids: np.ndarray, groups: Groups) -> Scored:
        """Measure answers [n, C]."""
        ...

    def chance(self, trials: Sequence[tuple[Texts, Texts]], groups: Groups) -> dict[str, Share | None]:
        """Measure the best constant answer: by the labels of train, for those of test, of each trial."""
        ...


def sizes_of_classes(targets: Targets) -> np.ndarray:
    """Count the clips that have each class: int64 [C]."""
    sizes: np.ndarray = np.diff(targets.values.tocsc().indptr)
    return sizes


def draw_of_classes(targets: Targets, num: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `num` clips that have each class; see `Task.draw`."""
    columns = targets.values.tocsc()
    members = np.split(columns.indices, columns.indptr[1:-1])
    drawn: np.ndarray = np.unique(np.concatenate([rng.permutation(np.sort(own))[:num] for own in members]))
    return drawn
