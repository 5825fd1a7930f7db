"""Linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from vjepa.probing.metrics import Classes, Floats
from vjepa.probing.sweep import Probed, choose

C_CHOICES = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
MAX_ITERATIONS = 1000


def prepare(train: Floats, *others: Floats) -> list[Floats]:
    """What `probe` works on: each [., D] standardised by all clips of `train` [N, D], in at most N coordinates; once serves every label."""
    prepared = standardise(train, *others)
    return rotate(*prepared) if train.shape[1] > train.shape[0] else prepared


def probe(train: Floats, train_classes: Classes, selection: Floats, selection_classes: Classes, val: Floats) -> Probed:
    """Classify `val` [Nv, D] by a linear model of `train` [N, D]; the strength C of its L2 penalty is chosen on `selection` [Ns, D].

    Features are as `prepare` gives them: a clip has length of about 1, so that one grid of C serves every width. A class
    that the training clips lack is never predicted, so its clips count as wrong.
    """
    models = {c: _fit(train, train_classes, c) for c in C_CHOICES}
    c = choose({c: model.predict(selection) for c, model in models.items()}, selection_classes)
    return Probed(c, models[c].predict(val))


def standardise(train: Floats, *others: Floats) -> list[Floats]:
    """Each [., D] with mean 0 and standard deviation 1 / sqrt(D) over `train`; a dimension that is constant there becomes 0.

    Divided by sqrt(D), a clip has length of about 1 at every width.
    """
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    constant = std <= 1e-6 * np.abs(mean)
    scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, std)) / np.sqrt(train.shape[1])
    return [(features - mean) * scale for features in (train, *others)]


def rotate(train: Floats, *others: Floats) -> list[Floats]:
    """Each [., D] -> [., r]: coordinates along the r <= N right singular vectors of `train` [N, D], meant for D > N.

    The weights of an L2-regularised linear model lie in the span of its training rows, so this leaves its predictions as
    they were and makes the fit D / N times cheaper. The SVD is taken through the N x N Gram matrix, in float64.
    """
    # one thread: on a busy machine two that wait for each other took three times as long as one
    with threadpool_limits(1):
        gram = train @ train.T
        values, left = np.linalg.eigh(gram)
        products = [features @ train.T for features in others]
    keep = values > values[-1] * len(train) * np.finfo(np.float64).eps
    if not keep.any():  # all clips are equal
        return [np.zeros((len(features), 1)) for features in (train, *others)]
    axes = left[:, keep] / np.sqrt(values[keep])
    return [left[:, keep] * np.sqrt(values[keep]), *(product @ axes for product in products)]


def _fit(features: Floats, classes: Classes, c: float) -> LogisticRegression:
    # one thread: the products are so small that BLAS threads wait for each other, up to 60 times slower on a busy machine
    with threadpool_limits(1), warnings.catch_warnings():
        # a fit that stops at MAX_ITERATIONS is one more candidate, a little more regularised than its C says
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=c, max_iter=MAX_ITERATIONS).fit(features, classes)
