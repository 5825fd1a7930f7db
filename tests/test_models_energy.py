"""The energy transformer against autograd, and its energy, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa import config
from vjepa.models.encoder import patchify
from vjepa.models.energy import Energy, EnergyNorm, EnergyTransformer

SIZE = (4, 16, 24)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network(**encoder: float) -> EnergyTransformer:
    shape = {"width": 24, "depth": 12, "heads": 3, **encoder}
    return EnergyTransformer(
        config.Model(backbone="energy", positions="sincos", patch_px=4, encoder=config.EncoderSettings(**shape))
    ).requires_grad_(False)


def plain_energy(energy: Energy, normed: Tensor) -> Tensor:
    """Sums of the paper, written out, of one clip [K, D]."""
    heads, width = energy.heads, normed.shape[1] // energy.heads
    total = normed.new_zeros(())
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        keys, queries = normed @ energy.key.weight[rows].T, normed @ energy.query.weight[rows].T
        beta = 1 / width**0.5
        for query in queries:
            total -= torch.log(sum(torch.exp(beta * key @ query) for key in keys)) / beta
    for token in normed:
        for memory in energy.memory.weight:
            total -= max(memory @ token, torch.tensor(0.0)) ** 2 / 2
    return total


def test_energy_is_the_sum_of_the_paper() -> None:
    energy, normed = Energy(12, heads=2, memories=5).double(), torch.randn(2, 4, 12, dtype=torch.float64)
    torch.testing.assert_close(energy(normed), torch.stack([plain_energy(energy, clip) for clip in normed]))


def test_the_gradient_in_closed_form_is_that_of_autograd() -> None:
    energy, normed = (
        Energy(12, heads=3, memories=20).double(),
        torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True),
    )
    (expected,) = torch.autograd.grad(energy(normed).sum(), normed)
    torch.testing.assert_close(energy.gradient(normed), expected)
    assert all(
        torch.autograd.gradcheck(function, normed) for function in (energy, energy.gradient)
    )  # what training differentiates


def test_the_norm_is_the_gradient_of_a_convex_lagrangian() -> None:
    norm = EnergyNorm(6).double()
    nn.init.normal_(norm.delta)
    nn.init.constant_(norm.log_gamma, -0.7)
    tokens = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def lagrangian(x: Tensor) -> Tensor:
        return 6 * norm.log_gamma.exp() * (x.var(correction=0) + 1e-6).sqrt() + norm.delta @ x

    (expected,) = torch.autograd.grad(lagrangian(tokens), tokens)
    torch.testing.assert_close(norm(tokens), expected)
    curvature = torch.linalg.eigvalsh(torch.autograd.functional.hessian(lagrangian, tokens))
    sigma = (tokens.var(correction=0) + 1e-6).sqrt()
    assert curvature.min() > -1e-12 and curvature.max() <= norm.log_gamma.exp() / sigma + 1e-12


@pytest.mark.parametrize("size", [SIZE, (1, 16, 24), (2, 4, 4)])
def test_energy_falls_at_every_step_of_the_default_length(size: tuple[int, int, int]) -> None:
    encoder = network()
    ids = None if size[1] == 4 else torch.stack([torch.randperm(24)[:9] for _ in range(3)])
    tokens = encoder._embed(patchify(torch.randn(3, 3, *size), encoder.model), ids)
    energies = torch.stack([encoder.energy(encoder.norm(state)) for state in (tokens, *encoder.descend(tokens))])
    assert len(energies) == 13 and bool((energies.diff(dim=0) < 0).all())


def spectral(energy: Energy) -> Tensor:
    """c of the module's docstring, but for its factor 1 + K."""
    keys, queries = (layer.weight.unflatten(0, (energy.heads, -1)) for layer in (energy.key, energy.query))
    return torch.linalg.matrix_norm(keys.transpose(1, 2) @ queries, ord=2).sum()


def descent(num_tokens: int, scale: float, step: float | None) -> list[float]:
    """The energy along 40 steps, with attention weights of deviation `scale` whose keys are opposed to queries, which
    is what long steps overshoot at.

    step: alpha; None: the longest that the proof allows, alpha <= 2 s / (gamma c), s the least deviation on the way, on
    which alpha has a say.
    """
    energy, norm = Energy(12, heads=2, memories=8).double(), EnergyNorm(12).double()
    for weight, deviation in ((energy.query.weight, scale), (energy.memory.weight, 0.3), (norm.delta, 0.3)):
        nn.init.normal_(weight, std=deviation)
    energy.key.weight.data = -energy.query.weight.data
    nn.init.constant_(norm.log_gamma, 0.4)
    tokens, energies = torch.randn(1, num_tokens, 12, dtype=torch.float64), []
    for _ in range(40):
        energies.append(energy(norm(tokens)).item())
        down, alpha = energy.gradient(norm(tokens)), step or 10.0
        while step is None and alpha > 2 * least_deviation(tokens, alpha * down) / (
            norm.log_gamma.exp() * spectral(energy) * (1 + num_tokens)
        ):
            alpha *= 0.8
        tokens = tokens - alpha * down
    return energies


@pytest.mark.parametrize("num_tokens", [1, 6])
@pytest.mark.parametrize("scale", [0.02, 0.3, 3.0])
def test_energy_falls_at_every_step_that_is_short_enough_by_the_proof(num_tokens: int, scale: float) -> None:
    energies = torch.tensor(descent(num_tokens, scale, None), dtype=torch.float64)
    assert bool((energies.diff() < 0).all()) and energies[-1] < energies[0] - 1e-6


def test_a_step_that_is_too_long_raises_the_energy() -> None:
    energies = torch.tensor(descent(1, 3.0, 0.1), dtype=torch.float64)
    assert bool((energies.diff() > 0).any())


def least_deviation(tokens: Tensor, way: Tensor) -> Tensor:
    """The least sqrt(variance + eps) of a token between x and x - way, whose variance is a parabola."""
    tokens, way = (values - values.mean(-1, keepdim=True) for values in (tokens, way))
    place = ((tokens * way).sum(-1) / way.square().sum(-1)).clamp(0, 1)
    return ((tokens - place[..., None] * way).square().mean(-1) + 1e-6).sqrt().min()


def test_features_are_the_normed_tokens_of_their_step() -> None:
    encoder, video = network(depth=3), torch.randn(2, 3, *SIZE)
    first, last = encoder.intermediate(video, [0, -1])
    torch.testing.assert_close(last, encoder(video))
    shorter = network(depth=1)
    shorter.load_state_dict(encoder.state_dict())  # the weights are the same at every step
    torch.testing.assert_close(shorter(video), first)
    torch.testing.assert_close(first, functional.layer_norm(first, first.shape[-1:]), atol=1e-4, rtol=0)
