from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from vjepa import config
from vjepa.objectives import sigreg, targets, vicreg
from vjepa.objectives.prediction import DISTANCES, prediction_loss
from vjepa.objectives.views import embedding_terms, view_invariance

pytestmark = pytest.mark.fast


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def huber(error: float, delta: float) -> float:
    return error**2 / 2 if error < delta else delta * (error - delta / 2)


# Of one number: predicted, wanted. huber_delta is .7.
DISTANCE_TWINS: dict[str, Callable[[float, float], float]] = {
    "l1": lambda a, b: abs(a - b),
    "mse": lambda a, b: (a - b) ** 2,
    "smooth_l1": lambda a, b: huber(abs(a - b), 1.0),
    "huber": lambda a, b: huber(abs(a - b), 0.7),
}


def mean_of(twin: Callable[[float, float], float], first: Tensor, second: Tensor) -> Tensor:
    """By explicit loops; the numbers stay tensors, so that it has a gradient."""
    pairs = list(zip(first.flatten(), second.flatten(), strict=True))
    return sum(twin(a, b) for a, b in pairs) / len(pairs)


def variance_twin(embeddings: Tensor) -> Tensor:
    terms = []
    for view in embeddings:
        for feature in view.T:
            spread = sum((one - sum(feature) / len(feature)) ** 2 for one in feature) / (len(feature) - 1)
            terms.append(torch.clamp(1 - (spread + 1e-4) ** 0.5, min=0))
    return sum(terms) / len(terms)


def covariance_twin(embeddings: Tensor) -> Tensor:
    total = 0.0
    for view in embeddings:
        means = [sum(feature) / len(feature) for feature in view.T]
        for i in range(view.shape[1]):
            for j in range(view.shape[1]):
                if i != j:
                    total = (
                        total
                        + (sum((clip[i] - means[i]) * (clip[j] - means[j]) for clip in view) / (len(view) - 1)) ** 2
                        / view.shape[1]
                    )
    return total / len(embeddings)


def view_invariance_twin(embeddings: Tensor) -> Tensor:
    num_views, num_clips, width = embeddings.shape
    total = 0.0
    for clip in range(num_clips):
        mean = sum(embeddings[view, clip] for view in range(num_views)) / num_views
        total = total + sum(
            ((embeddings[view, clip, i] - mean[i]) ** 2) for view in range(num_views) for i in range(width)
        )
    return total / (num_views * num_clips * width)


def sigreg_twin(embeddings: Tensor, directions: Tensor) -> Tensor:
    """The integral in closed form: that of cos(t x) exp(-t^2 / 2) is sqrt(2 pi) exp(-x^2 / 2)."""
    statistics = []
    for view in embeddings:
        for direction in directions:
            x = [clip @ direction for clip in view]
            pairs = sum(torch.exp(-((a - b) ** 2) / 2) for a in x for b in x) / len(x) ** 2
            single = sum(torch.exp(-(a**2) / 4) for a in x) / len(x)
            statistics.append(len(x) * math.sqrt(2 * math.pi) * (pairs - math.sqrt(2) * single + 1 / math.sqrt(3)))
    return sum(statistics) / len(statistics)


DIRECTIONS = sigreg.directions(0, 0, 3, 4).double()
# Terms of embeddings [V, B, D], and their twins.
EMBEDDING_TERMS = {
    "variance": (vicreg.variance, variance_twin),
    "covariance": (vicreg.covariance, covariance_twin),
    "view_invariance": (view_invariance, view_invariance_twin),
    "sigreg": (
        lambda embeddings: sigreg.sigreg(embeddings, DIRECTIONS, knots=65),
        lambda embeddings: sigreg_twin(embeddings, DIRECTIONS),
    ),
}


def same_value_and_gradient(term: Callable[[Tensor], Tensor], twin: Callable[[Tensor], Tensor], at: Tensor) -> None:
    ours, theirs = (at.clone().requires_grad_() for _ in range(2))
    value, expected = term(ours), twin(theirs)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-9)  # SIGReg leaves out what lies beyond t = 5
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert torch.autograd.gradcheck(term, at.clone().requires_grad_())


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_and_their_gradients_against_loops(name: str) -> None:
    predictions, wanted, weights = drawn(2, 3, 4), drawn(2, 3, 4, seed=1), drawn(2, 3, seed=2).abs()
    same_value_and_gradient(
        lambda p: prediction_loss(name, p, wanted, huber_delta=0.7),
        lambda p: mean_of(DISTANCE_TWINS[name], p, wanted),
        predictions,
    )
    weighted = prediction_loss(name, predictions, wanted, weights, 0.7)
    tokens = [
        weights[b, k] * mean_of(DISTANCE_TWINS[name], predictions[b, k], wanted[b, k])
        for b in range(2)
        for k in range(3)
    ]
    torch.testing.assert_close(weighted, sum(tokens) / len(tokens))
    assert prediction_loss(name, wanted.bfloat16(), wanted.bfloat16()).dtype == torch.float32


def test_vicreg_invariance_against_a_loop() -> None:
    wanted = drawn(2, 3, 4, seed=1)
    same_value_and_gradient(
        lambda p: vicreg.invariance(p, wanted), lambda p: mean_of(DISTANCE_TWINS["mse"], p, wanted), drawn(2, 3, 4)
    )


@pytest.mark.parametrize("name", EMBEDDING_TERMS)
def test_terms_of_embeddings_and_their_gradients_against_loops(name: str) -> None:
    term, twin = EMBEDDING_TERMS[name]
    same_value_and_gradient(term, twin, 0.8 * drawn(2, 5, 4) + 0.3)
    assert term(drawn(2, 5, 4).bfloat16()).dtype == torch.float32


def test_variance_is_a_hinge_at_one() -> None:
    features = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    assert vicreg.variance(3 * features).item() == 0
    assert vicreg.variance(0.25 * features).item() == pytest.approx(0.75, abs=0.02)
    assert vicreg.variance(torch.ones(16, 8)).item() == pytest.approx(0.99, abs=0.001)  # collapsed: 1 - sqrt(1e-4)


def test_sigreg_is_small_for_gaussian_samples_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    lines, gaussian = sigreg.directions(0, 0, 32, 8), torch.randn(1, 2000, 8, generator=rng)

    def value(embeddings: Tensor) -> float:
        return sigreg.sigreg(embeddings, lines, 17).item()

    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))  # whatever the number of clips
    for num_clips in (20, 200):
        assert value(torch.randn(60, num_clips, 8, generator=rng)) == pytest.approx(expected, rel=0.1)
    assert value(torch.zeros(1, 2000, 8)) == pytest.approx(
        2000 * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3)), rel=1e-3
    )
    axes = torch.eye(8)  # along them alone a cube is told from a Gaussian well: sums of many are Gaussian again
    others = {
        "a point": gaussian * 0.01,
        "a line": gaussian[..., :1].expand(-1, -1, 8),
        "too wide": 2 * gaussian,
        "off centre": gaussian + 1,
    }
    for name, embeddings in others.items():
        assert value(embeddings) > 50 * expected, name
    assert sigreg.sigreg(gaussian.sign(), axes, 17) > 50 * expected  # mean 0 and variance 1, but two-valued


def test_directions_are_a_function_of_seed_and_step() -> None:
    one = sigreg.directions(1, 5, 16, 8)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(16))
    assert one.dtype == torch.float32 and torch.equal(one, sigreg.directions(1, 5, 16, 8))
    assert not torch.equal(one, sigreg.directions(1, 6, 16, 8)) and not torch.equal(one, sigreg.directions(2, 5, 16, 8))


@pytest.mark.parametrize(("taps", "frames"), [(2, 2), (1, 2), (1, 1)])
def test_pixels_are_normalised_colour_by_colour(taps: int, frames: int) -> None:
    """Patches of 2 x 2 px; a single frame stands for as many as a clip has."""
    pixels = np.random.default_rng(0).normal(2, 3, (2, 5, 3, taps, 4))
    found = (
        targets.normalised_pixels(torch.from_numpy(pixels.reshape(2, 5, -1)), 3, taps, frames)
        .numpy()
        .reshape(2, 5, 3, frames, 4)
    )
    for place in np.ndindex(2, 5, 3):
        colour = np.repeat(pixels[place], frames // taps, axis=0)
        np.testing.assert_allclose(found[place], (colour - colour.mean()) / np.sqrt(colour.var() + 1e-5), rtol=1e-6)


@pytest.mark.fast
@pytest.mark.parametrize("agree", [0.0, 0.05])
def test_views_that_have_to_agree_are_spread_by_their_mean(agree: float) -> None:
    """Differences of masks alone do not count as differences of clips: clips of one mean have no deviation."""
    apart = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    objective = config.Objective(view_invariance=agree)
    terms = embedding_terms(objective, torch.cat([apart, -apart]), None)
    assert terms["variance"].item() == pytest.approx(0.99 if agree else vicreg.variance(apart).item(), abs=1e-3)
    torch.testing.assert_close(terms["covariance"], vicreg.covariance(apart))
