"""Measure representations: tensors in, numbers out. Nothing is random, nothing is remembered.

N clips, Q views of a clip, P places (tokens of a clip), D features:
features [N, D]     of one clip each: effective_rank, feature_std, mean_cosine
views [N, Q, D]     lidar
tokens [N, P, D]    best_constant, spread, position_share
any measure         half_interval(measure, features) says how far to trust it
two numbers         skill(loss, baseline), ema_half_life(decay)
two networks        encoder_distance(context, target)

Ranks that share clips gather them along N first: no measure is a mean over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.objectives.precision import at_least_fp32
from vjepa.objectives.prediction import prediction_loss

LIDAR_DELTA: Final = 1e-4
_HALVINGS: Final = 30  # of the interval that holds the best constant under a Huber distance


def effective_rank(features: Tensor) -> float:
    """Count the directions that features [N, D] use, by the entropy of the singular values of the centred features.

    RankMe (Garrido et al. 2023, eq. 1): exp of the entropy of the normalised singular values. Centred here, so that a
    mean shared by all clips counts for nothing. From 1 to min(N - 1, D), and 0 where all rows are equal up to rounding.
    """
    features = _exact(features)
    values = torch.linalg.svdvals(features - features.mean(dim=0))
    return _exp_entropy(values[values > _rounding(features)])


def feature_std(features: Tensor) -> float:
    """Compute the standard deviation over clips, mean over dimensions, of features [N, D] scaled to length sqrt(D).

    The collapse check of SimSiam (Chen & He 2021, section 4.1): 0 where every clip has the same feature, about 1 where
    features spread in all directions.
    """
    features = _unit(_exact(features)) * math.sqrt(features.shape[-1])
    return float(features.std(dim=0, correction=0).mean())


def mean_cosine(features: Tensor) -> float:
    """Average the cosine of the features [N, D], N >= 2, of two different clips: 1 where all point one way.

    With s the sum of the unit vectors, (|s|^2 - N) / (N (N - 1)); without the cosine of a clip with itself it is about
    0 for independent directions whatever N is.
    """
    num = len(features)
    total = _unit(_exact(features)).sum(dim=0).square().sum()
    return float((total - num) / (num * (num - 1)))


def lidar(views: Tensor, delta: float = LIDAR_DELTA) -> float:
    """Count the directions that tell clips apart better than the views of one: views [N, Q, D] -> effective rank.

    LiDAR (Thilak et al. 2024, arXiv 2312.04000): with the clip as class, the exponential of the entropy of the
    eigenvalues of Sw^-1/2 Sb Sw^-1/2; Sb is the covariance of the means of clips, Sw that of views around their mean,
    plus delta on its diagonal. From 1 to min(N - 1, D), and 0 where all clips have one mean up to rounding.

    It is computed in the at most N Q - 1 directions that the views span: in the others Sb is 0.
    """
    views = _exact(views)
    num, each = views.shape[:2]
    flat = (views - views.mean(dim=(0, 1))).flatten(0, 1)
    _, values, axes = torch.linalg.svd(flat, full_matrices=False)
    inside = (flat @ axes[values > _rounding(views)].T).unflatten(0, (num, each))
    means = inside.mean(dim=1)
    if not len(inside.flatten()) or means.norm() <= _rounding(views):
        return 0.0
    residuals = (inside - means.unsqueeze(1)).flatten(0, 1)
    between, within = means.T @ means / num, residuals.T @ residuals / (num * each)
    root = torch.linalg.cholesky(within + delta * torch.eye(len(within), dtype=within.dtype))
    # L^-1 Sb L^-T has the eigenvalues of Sw^-1/2 Sb Sw^-1/2: the two differ by a rotation
    half = torch.linalg.solve_triangular(root, between, upper=False)
    whitened = torch.linalg.solve_triangular(root, half.T, upper=False)
    values = torch.linalg.eigvalsh((whitened + whitened.T) / 2)
    return _exp_entropy(values[values > values.max() * torch.finfo(values.dtype).eps * len(values)])


def half_interval(measure: Callable[[Tensor], float], features: Tensor, num_groups: int = 8) -> float:
    """Estimate half the 95 % interval of `measure` over clips, the first axis of `features`.

    The jackknife that leaves out one of G groups at a time (Shao & Tu 1995, section 2.3): 1.96 times the root of
    (G - 1) / G times the sum of squared deviations. Group g has clips g, g + G, g + 2 G and so on.
    """
    num = min(num_groups, len(features))
    groups = torch.arange(len(features), device=features.device) % num
    values = torch.tensor([measure(features[groups != group]) for group in range(num)], dtype=torch.float64)
    return 1.96 * float((values.var(correction=0) * (len(values) - 1)).sqrt())


def best_constant(tokens: Tensor, loss: str, huber_delta: float = 1.0, by_place: bool = False) -> Tensor:
    """Find the prediction of tokens [N, P, D] with the least loss of those that know no clip: [N, P, D], expanded.

    It is one vector for all places or, `by_place`, one for each. loss, huber_delta: as in `prediction_loss`; the best
    is the mean for mse, the median for l1, and for Huber distances where the clipped errors sum to 0.
    """
    tokens = at_least_fp32(tokens)
    samples = tokens if by_place else tokens.flatten(0, 1)
    if loss == "mse":
        best = samples.mean(dim=0)
    elif loss == "l1":
        best = samples.median(dim=0).values
    else:
        best = _huber_centre(samples, huber_delta if loss == "huber" else 1.0)
    return best.expand_as(tokens)


def spread(tokens: Tensor, loss: str, huber_delta: float = 1.0, by_place: bool = False) -> float:
    """Compute the loss of `best_constant`, the arguments of which these are, on the tokens themselves.

    What a predictor reaches that has seen nothing; it goes to 0 with the differences of the targets, which a loss that
    falls does not tell from learning.
    """
    constant = best_constant(tokens, loss, huber_delta, by_place)
    return float(prediction_loss(loss, constant, tokens, huber_delta=huber_delta))


def skill(loss: float, baseline: float) -> float:
    """Compute 1 - loss / baseline, the loss of a constant: 1 for perfect predictions, 0 for none better than it.

    It is the skill score of weather forecasts (Murphy 1988, eq. 4). 0 where the baseline is 0: there is nothing to
    predict.
    """
    return 1 - loss / baseline if baseline > 0 else 0.0


def position_share(tokens: Tensor) -> float:
    """Compute which share of the variance of tokens [N, P, D] is between places: of their means over clips.

    One-way analysis of variance, summed over features: 1 where a token tells its place and nothing of its clip. 0 where
    nothing varies.
    """
    tokens = at_least_fp32(tokens)
    means = tokens.mean(dim=0)
    total = tokens.var(dim=(0, 1), correction=0).sum()
    return float(means.var(dim=0, correction=0).sum() / total) if total > 0 else 0.0


@torch.no_grad()
def encoder_distance(context: nn.Module, target: nn.Module) -> float:
    """Compute how far the weights of the context encoder are from those of the target encoder, as a share of the
    latter: |a - b| / |b| over all parameters.
    """
    pairs = list(zip(context.parameters(), target.parameters(), strict=True))
    apart, size = _norm([a - b for a, b in pairs]), _norm([b for _, b in pairs])
    return float(apart / size.clamp(min=torch.finfo(torch.float32).tiny))


def ema_half_life(decay: float) -> float:
    """Compute after how many steps half of a moving average has been replaced: ln(1/2) / ln(decay).

    0 for decay 0, infinity for decay 1.
    """
    return math.inf if decay == 1 else 0.0 if decay == 0 else math.log(0.5) / math.log(decay)


def _exact(features: Tensor) -> Tensor:
    """Copy to the host in fp64, which not every device has: small by then, and decompositions are exact there."""
    return features.detach().to("cpu", torch.float64)


def _rounding(features: Tensor) -> float:
    """Give the size of singular values that rounding features to fp32 may cause."""
    return float(features.norm()) * max(len(features), features.shape[-1]) * torch.finfo(torch.float32).eps


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features, dim=-1)


def _exp_entropy(values: Tensor) -> float:
    share = values / values.sum()
    return float((-(share * share.log()).sum()).exp()) if len(values) else 0.0


def _huber_centre(samples: Tensor, delta: float) -> Tensor:
    """Halve the interval [min, max] of [S, ...] to where the errors, clipped at delta, sum to 0."""
    low, high = samples.amin(dim=0), samples.amax(dim=0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_low = (samples - middle).clamp(-delta, delta).sum(dim=0) > 0
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return (low + high) / 2


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    squares = [tensor.float().square().sum() for tensor in tensors]
    return torch.stack(squares).sum().sqrt()
