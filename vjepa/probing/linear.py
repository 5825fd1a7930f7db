"""Linear probes on frozen features: logistic regression, of one class a clip or of many, and ridge regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from threadpoolctl import threadpool_limits

from vjepa.models.attentive_pool import Link
from vjepa.probing.metrics import Floats

ALPHA_CHOICES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
NUMBER_ALPHA_CHOICES = (*ALPHA_CHOICES, 1e3, 1e4)  # a number may hang on the features so weakly
C_CHOICES = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
MAX_ITERATIONS = 1000
# a fit ends where a step lowers the loss by less than this share of it; the loss is then within a few 1e-6 of the least
# (measured)
TOLERANCE = 1e-7


@dataclass(frozen=True)
class LinearModel:
    """Give K scores that are linear in the features, one for each class, or one number.

    weights [D, K]; bias [K]. loss: on the training clips, its penalty included.
    """

    weights: Floats
    bias: Floats
    loss: float

    def scores(self, features: Floats) -> Floats:
        """Score features: [N, D] -> [N, K]."""
        scores: Floats = features @ self.weights + self.bias
        return scores


def prepare(train: Floats, *others: Floats, batch_norm: bool = True) -> list[Floats]:
    """Scale by the clips of `train` [N, D] and turn to its axes; each [., D] becomes [., r], what `fit` works on.

    With batch norm by `standardise`, else by `scale`.
    """
    return rotate(*(standardise if batch_norm else scale)(train, *others))


def of_raw(model: LinearModel, prepared: Floats, train: Floats, batch_norm: bool = True) -> LinearModel:
    """Turn `model`, fitted to `prepared` [N, r], into one of the features that these were made of, `train` [N, D].

    It gives every clip the same scores.
    Its weights lie in the span of the training rows, whose coordinates in `prepared` are orthogonal (see `rotate`).
    """
    ends = np.zeros((1, train.shape[1])), np.ones((1, train.shape[1]))
    rows, zero, one = (standardise if batch_norm else scale)(train, *ends)
    length = np.maximum((prepared**2).sum(0), np.finfo(np.float64).tiny)
    weights = rows.T @ (prepared @ (model.weights / length[:, None]))
    return LinearModel((one - zero).T * weights, model.bias + (zero @ weights)[0], model.loss)


def standardise(train: Floats, *others: Floats) -> list[Floats]:
    """Give each [., D] mean 0 and standard deviation 1 / sqrt(D) over `train`; what is constant there becomes 0.

    Divided by sqrt(D), a clip has length of about 1, so that one grid of C serves every width.
    """
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    constant = std <= 1e-6 * np.abs(mean)
    scale = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, std)) / np.sqrt(train.shape[1])
    return [(features - mean) * scale for features in (train, *others)]


def scale(train: Floats, *others: Floats) -> list[Floats]:
    """Multiply each [., D] by one number, which gives the clips of `train` a mean square length of 1."""
    factor = 1 / max(float(np.sqrt(np.mean(np.sum(np.square(train, dtype=np.float64), 1)))), np.finfo(np.float64).tiny)
    return [np.asarray(features, dtype=np.float64) * factor for features in (train, *others)]


def rotate(train: Floats, *others: Floats) -> list[Floats]:
    """Turn each [., D] to coordinates along the right singular vectors of `train` [N, D]: [., r], r <= min(N, D).

    The weights of an L2-regularised linear model lie in the span of its training rows, so this leaves its predictions
    as they were; it makes a fit D / N times cheaper where D > N, and its curvature nearly diagonal, which `fit` relies
    on. The SVD is taken through the smaller Gram matrix, in float64.
    """
    wide = train.shape[1] > train.shape[0]
    # one thread: on a busy machine two that wait for each other took three times as long as one
    with threadpool_limits(1):
        values, vectors = np.linalg.eigh(train @ train.T if wide else train.T @ train)
        keep = values > values[-1] * len(train) * np.finfo(np.float64).eps
        if not keep.any():  # all clips are equal
            return [np.zeros((len(features), 1)) for features in (train, *others)]
        values, vectors = values[keep], vectors[:, keep]
        if not wide:
            return [features @ vectors for features in (train, *others)]
        return [vectors * np.sqrt(values), *(features @ train.T @ (vectors / np.sqrt(values)) for features in others)]


def fit(features: Floats, truth: Floats, choices: Sequence[float], weights: Floats | None = None) -> list[LinearModel]:
    """Fit multinomial logistic regression to `features` [N, D] for each C of `choices`, which ascend.

    truth: [N, K], 1 for the class of a clip. weights: [N, 1], how much clips count; None: all 1.
    Minimises sum(cross-entropy) + |weights|^2 / (2 C), bias free: the loss of scikit-learn's LogisticRegression, which
    for two classes has one vector of weights, their difference.
    """

    def cross_entropy(scores: Floats) -> tuple[float, Floats]:
        log_p = log_softmax(scores)
        return -float(_weighted(log_p * truth, weights).sum()), np.exp(log_p)

    num = truth.shape[1]
    curvature = (1 - 1 / num) / num  # of the cross-entropy in a logit: the mean of p (1 - p)
    penalties = [(2 if num == 2 else 1) / c for c in choices]
    return _descend(features, truth, penalties, cross_entropy, curvature, weights)


def fit_each(
    features: Floats, truth: Floats, choices: Sequence[float], weights: Floats | None = None
) -> list[LinearModel]:
    """Fit logistic regression of each class against the rest to `features` [N, D] for each C of `choices`.

    truth: [N, K], 1 for every class that a clip has. weights: [N, K]; None: all 1. The loss is the sum over the classes
    of that of scikit-learn's LogisticRegression.
    """

    def cross_entropy(scores: Floats) -> tuple[float, Floats]:
        return float(_weighted(np.logaddexp(0, scores) - truth * scores, weights).sum()), expit(scores)

    return _descend(features, truth, [1 / c for c in choices], cross_entropy, 0.25, weights)


def _descend(
    features: Floats,
    truth: Floats,
    penalties: Sequence[float],
    cross_entropy: Callable[[Floats], tuple[float, Floats]],
    curvature: float,
    sample_weights: Floats | None,
) -> list[LinearModel]:
    """Minimise a cross-entropy + penalty |weights|^2 / 2 for each of `penalties`; each fit starts from the one before.

    cross_entropy: scores [N, K] -> its sum, and probabilities [N, K]; curvature: of it, in a score, at the start.
    L-BFGS runs on weights / scale, where scale^2 is about the inverse curvature, diagonal for features along their axes
    (`rotate`). With that it needs a tenth of the iterations; without, at large C, it stops (scikit-learn at its default
    tolerance) far from the least loss.
    """
    num_clips, num = truth.shape
    energy, total = (features**2).sum(0)[:, None], np.full((1, 1), float(num_clips))
    if sample_weights is not None:
        energy, total = (features**2).T @ sample_weights, sample_weights.sum(0, keepdims=True)
    weights, bias = np.zeros((features.shape[1], num)), np.zeros(num)
    models = []
    for penalty in penalties:
        scale = np.vstack([1 / np.sqrt(curvature * energy + penalty), 1 / np.sqrt(curvature * total)])

        def loss(scaled: Floats, scale: Floats = scale, penalty: float = penalty) -> tuple[float, Floats]:
            both = scaled.reshape(-1, num) * scale
            weights, bias = both[:-1], both[-1]
            value, p = cross_entropy(features @ weights + bias)
            error = _weighted(p - truth, sample_weights)
            gradient = np.vstack([features.T @ error + penalty * weights, error.sum(0)]) * scale
            return float(penalty / 2 * (weights**2).sum() + value), gradient.ravel()

        # one thread: the products are so small that BLAS threads wait for each other, up to 60 times slower on a busy
        # machine
        with threadpool_limits(1):
            start = (np.vstack([weights, bias]) / scale).ravel()
            # a fit that stops at MAX_ITERATIONS is one more candidate, a little more regularised than its C says
            found = minimize(
                loss,
                start,
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": MAX_ITERATIONS, "ftol": TOLERANCE, "gtol": 1e-10},
            )
            both = found.x.reshape(-1, num) * scale
            weights, bias = both[:-1], both[-1]
            p = cross_entropy(features @ weights + bias)[1]
        curvature = max(float((p * (1 - p)).mean()), np.finfo(np.float64).eps)
        models.append(LinearModel(weights, bias, float(found.fun)))
    return models


def fit_ridge(
    features: Floats, targets: Floats, choices: Sequence[float], weights: Floats | None = None
) -> list[LinearModel]:
    """Fit ridge regression of `features` [N, D] to `targets` [N, K] for each alpha of `choices`.

    Minimises |features weights + bias - targets|^2 + alpha |weights|^2, bias free: the loss of scikit-learn's Ridge.
    weights: how much each square counts, [N, 1] or [N, K]; None: all 1. One decomposition serves every alpha, and every
    target whose weights are the same. Where targets are 1 for the class of a clip and 0 for the others, the outputs of
    a clip sum to 1 and estimate the probability of each class.
    """
    if weights is not None and weights.shape[1] > 1:
        columns = ((targets[:, [k]], weights[:, [k]]) for k in range(targets.shape[1]))
        apart = [fit_ridge(features, target, choices, weight) for target, weight in columns]
        return [_side_by_side(models) for models in zip(*apart, strict=True)]
    share = None if weights is None else weights[:, 0]
    mean, centre = np.average(features, 0, share), np.average(targets, 0, share)
    root = 1.0 if weights is None else np.sqrt(weights)
    with threadpool_limits(1):
        left, values, right = np.linalg.svd(root * (features - mean), full_matrices=False)
        models = []
        for alpha in choices:
            slopes = right.T @ ((values / (values**2 + alpha))[:, None] * (left.T @ (root * (targets - centre))))
            bias = centre - mean @ slopes
            error = root * (features @ slopes + bias - targets)
            models.append(LinearModel(slopes, bias, float((error**2).sum() + alpha * (slopes**2).sum())))
    return models


def _side_by_side(models: Sequence[LinearModel]) -> LinearModel:
    weights, bias = (np.concatenate([getattr(one, name) for one in models], -1) for name in ("weights", "bias"))
    return LinearModel(weights, bias, sum(one.loss for one in models))


def _weighted(values: Floats, weights: Floats | None) -> Floats:
    return values if weights is None else weights * values


def softmax(scores: Floats) -> Floats:
    """Turn scores [N, K] into probabilities [N, K]."""
    probabilities: Floats = np.exp(log_softmax(scores))
    return probabilities


def log_softmax(scores: Floats) -> Floats:
    """Turn scores [N, K] into logarithms of probabilities [N, K]."""
    shifted = scores - scores.max(1, keepdims=True)
    logs: Floats = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logs


def as_shares(scores: Floats) -> Floats:
    """Clip outputs of ridge regression [N, K], which sum to 1, to probabilities [N, K]; the largest stays so."""
    positive = np.maximum(scores, 0)
    shares: Floats = positive / positive.sum(1, keepdims=True)
    return shares


def clipped(scores: Floats) -> Floats:
    """Clip outputs of ridge regression to single classes [N, K] to probabilities."""
    shares: Floats = scores.clip(0, 1)
    return shares


# what scores become answers by; those of `models.attentive_pool`, in the precision of the fits
LINKS: Final[dict[Link, Callable[[Floats], Floats]]] = {
    "softmax": softmax,
    "shares": as_shares,
    "sigmoid": expit,
    "clip": clipped,
    "identity": np.asarray,
}
