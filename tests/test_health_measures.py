"""Measures of representations against plain twins and at their ends."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from vjepa.health import measures
from vjepa.objectives.prediction import DISTANCES, prediction_loss

pytestmark = pytest.mark.fast


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def entropy_twin(values: list[float]) -> float:
    shares = [value / sum(values) for value in values if value > 1e-9 * sum(values)]
    return math.exp(-sum(share * math.log(share) for share in shares))


def lidar_twin(views: np.ndarray, delta: float) -> float:
    """In all D directions, by loops and a matrix root."""
    num, each, width = views.shape
    centre = views.reshape(-1, width).mean(0)
    between, within = np.zeros((width, width)), delta * np.eye(width)
    for clip in views:
        mean = clip.mean(0)
        between += np.outer(mean - centre, mean - centre) / num
        for view in clip:
            within += np.outer(view - mean, view - mean) / (num * each)
    root = np.linalg.inv(np.real(sqrtm(within)))
    return entropy_twin(list(np.linalg.eigvalsh(root @ between @ root)))


def cosine_twin(features: Tensor) -> float:
    pairs = [(a, b) for a in range(len(features)) for b in range(len(features)) if a != b]
    cosines = [float(features[a] @ features[b] / features[a].norm() / features[b].norm()) for a, b in pairs]
    return sum(cosines) / len(cosines)


def position_twin(tokens: Tensor) -> float:
    num, places, width = tokens.shape
    between = total = 0.0
    for d in range(width):
        mean = sum(float(tokens[i, p, d]) for i in range(num) for p in range(places)) / num / places
        for p in range(places):
            between += num * (sum(float(tokens[i, p, d]) for i in range(num)) / num - mean) ** 2
            total += sum((float(tokens[i, p, d]) - mean) ** 2 for i in range(num))
    return between / total


@pytest.mark.parametrize("rank", [1, 4, 32])
def test_effective_rank_of_gaussian_features_is_close_to_their_rank(rank: int) -> None:
    axes = torch.linalg.qr(drawn(48, rank, seed=1))[0].T  # all directions are used alike
    assert measures.effective_rank(drawn(2000, rank) @ axes + 5) == pytest.approx(rank, rel=0.02)


def test_effective_rank_is_that_of_the_singular_values() -> None:
    features = drawn(9, 5).cumsum(1) + 3
    values = np.linalg.svd((features - features.mean(0)).numpy().astype(float), compute_uv=False)
    assert measures.effective_rank(features) == pytest.approx(entropy_twin(list(values)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shape", [(6, 3, 5), (5, 4, 30)])  # more views than features, and fewer
def test_lidar_is_that_of_the_scatter_matrices(shape: tuple[int, int, int], scale: float) -> None:
    views = scale * (drawn(shape[0], 1, shape[2], seed=1) + 0.3 * drawn(*shape) + 2)
    assert measures.lidar(views) == pytest.approx(lidar_twin(views.double().numpy(), 1e-4), rel=1e-5)


def test_lidar_counts_what_tells_clips_apart_and_not_what_tells_views_apart() -> None:
    """Rank counts both; of a direction that only views differ in LiDAR knows nothing."""
    clips, noise = torch.zeros(64, 8, 20), torch.zeros(64, 8, 20)
    clips[:, :, :4] = drawn(64, 1, 4)
    noise[:, :, 4:] = drawn(64, 8, 16, seed=1)
    assert measures.lidar(clips + 0.05 * noise) == pytest.approx(4, rel=0.1)
    assert measures.effective_rank((clips + noise).flatten(0, 1)) > 12


@pytest.mark.parametrize("kind", ["equal", "zero", "equal up to rounding"])
def test_what_does_not_vary_has_no_rank(kind: str) -> None:
    features = {"equal": torch.ones(20, 8) * 3.3, "zero": torch.zeros(20, 8)}.get(kind)
    features = 100 + 1e-6 * drawn(20, 8) if features is None else features
    assert measures.effective_rank(features) == 0 and measures.lidar(features.view(5, 4, 8)) == 0
    assert measures.feature_std(features) == pytest.approx(0, abs=1e-6)


def test_directions_of_features_are_measured_whatever_their_length() -> None:
    features = drawn(500, 64)
    assert measures.feature_std(features) == pytest.approx(1, abs=0.02)
    assert measures.feature_std(features * drawn(500, 1, seed=1).abs()) == pytest.approx(1, abs=0.02)
    few = drawn(7, 5) + 1
    assert measures.mean_cosine(few) == pytest.approx(cosine_twin(few), rel=1e-5)
    assert abs(measures.mean_cosine(features)) < 0.01 and measures.mean_cosine(few[:1].expand(4, 5)) == pytest.approx(1)


@pytest.mark.parametrize("by_place", [False, True])
@pytest.mark.parametrize("loss", DISTANCES)
def test_no_constant_has_a_smaller_loss_than_the_best(loss: str, by_place: bool) -> None:
    tokens = drawn(9, 4, 3).exp()  # skewed: mean and median differ
    best = measures.best_constant(tokens, loss, 0.3, by_place)
    least = measures.spread(tokens, loss, 0.3, by_place)
    rows = {tuple(best[i, p].tolist()) for i in range(9) for p in range(4)}
    assert best.shape == tokens.shape and len(rows) == (4 if by_place else 1)
    assert least == pytest.approx(float(prediction_loss(loss, best, tokens, huber_delta=0.3)))
    for change in (-0.1, -0.01, 0.01, 0.1):
        for d in range(3):
            other = best + change * torch.eye(3)[d]
            assert float(prediction_loss(loss, other, tokens, huber_delta=0.3)) >= least - 1e-6


def test_skill_is_what_a_constant_does_not_reach() -> None:
    assert measures.skill(0.25, 1.0) == 0.75 and measures.skill(1.0, 1.0) == 0 and measures.skill(0.0, 0.0) == 0


def test_position_share_is_an_analysis_of_variance() -> None:
    tokens = drawn(5, 4, 3) + 2 * drawn(1, 4, 3, seed=1) + 7
    assert measures.position_share(tokens) == pytest.approx(position_twin(tokens), rel=1e-4)
    assert measures.position_share(drawn(1, 4, 3).expand(5, 4, 3)) == pytest.approx(1, abs=1e-5)
    assert measures.position_share(drawn(5, 1, 3).expand(5, 4, 3)) == pytest.approx(0, abs=1e-5)
    assert measures.position_share(torch.ones(5, 4, 3)) == 0


def test_an_interval_is_about_that_of_the_mean_where_the_measure_is_one() -> None:
    found = [measures.half_interval(lambda x: float(x.mean()), drawn(64, 1, seed=seed)) for seed in range(40)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(1.96 / 8, rel=0.15)


def test_encoders_are_apart_by_a_share_of_their_weights() -> None:
    target = nn.Linear(3, 2)
    context = copy.deepcopy(target)
    assert measures.encoder_distance(context, target) == 0
    with torch.no_grad():
        for parameter in context.parameters():
            parameter.mul_(1.5)
    assert measures.encoder_distance(context, target) == pytest.approx(0.5)


def test_half_of_an_average_is_gone_after_its_half_life() -> None:
    assert 0.99 ** measures.ema_half_life(0.99) == pytest.approx(0.5)
    assert measures.ema_half_life(0.0) == 0 and measures.ema_half_life(1.0) == math.inf
