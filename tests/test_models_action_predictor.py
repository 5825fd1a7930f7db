"""The predictor of world models against a plain twin, written from the shapes and formulas of V-JEPA 2-AC."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from vjepa import config
from vjepa.models.action_predictor import ActionPredictor

WIDTH, HEADS, DEPTH, LATENT = 48, 2, 3, 20
GRIDS = [(1, 1), (2, 2), (2, 3), (4, 4)]


def make(states: int = 7, extrinsics: int = 0, **shape: object) -> ActionPredictor:
    torch.manual_seed(0)
    settings = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "rope": "vjepa2", "rope_grid": 4, **shape}
    predictor = ActionPredictor(config.WorldPredictor(**settings), LATENT, 7, states, extrinsics)
    for parameter in predictor.parameters():  # biases too, and norms that are not 1
        torch.nn.init.normal_(parameter, std=0.2)
    return predictor


def drawn(num_steps: int, grid: tuple[int, int], extrinsics: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    torch.manual_seed(1)
    latents = layer_norm(torch.randn(2, num_steps, *grid, LATENT), (LATENT,))
    rest = [torch.randn(2, num_steps, size) for size in (7, 7, 6)]
    return latents, rest[0], rest[1], rest[2] if extrinsics else None


def turn(features: Tensor, places: Tensor) -> Tensor:
    """Turn features [K, n] of one axis as the published code does: sine and cosine of a pair have two frequencies."""
    num = features.shape[1]
    omega = torch.tensor([1 / 10000 ** (i / (num / 2)) for i in range(num // 2)])
    angles = torch.cat([places[:, None] * omega, places[:, None] * omega], dim=1)
    swapped = torch.stack([-features[:, 1::2], features[:, 0::2]], dim=-1).flatten(1)
    return features * angles.cos() + swapped * angles.sin()


def places_of(num_steps: int, conditions: int, grid: tuple[int, int], square: int) -> Tensor:
    """List step, row and column of every token, [K, 3]; rows and columns of conditions are 0, which turns nothing."""
    places: list[tuple[float, float, float]] = []
    for step in range(num_steps):
        places += [(step, 0, 0)] * conditions
        places += [
            (step, row * square / grid[0], column * square / grid[1])
            for row in range(grid[0])
            for column in range(grid[1])
        ]
    return torch.tensor(places, dtype=torch.float32)


def turned(head: Tensor, places: Tensor) -> Tensor:
    """Turn a third of the features of a head [K, d] by step, by row and by column; what is left stays."""
    share = 2 * (head.shape[1] // 3 // 2)
    axes = [turn(head[:, axis * share : (axis + 1) * share], places[:, axis]) for axis in range(3)]
    return torch.cat([*axes, head[:, 3 * share :]], dim=1)


def twin(
    weights: dict[str, Tensor], latents: Tensor, actions: Tensor, states: Tensor | None, extrinsics: Tensor | None
) -> Tensor:
    """Predict one sequence, [T, h, w, D] -> [T, h w, D], token by token and head by head."""

    def layer(name: str, tokens: Tensor) -> Tensor:
        return linear(tokens, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, tokens: Tensor) -> Tensor:
        return layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    num_steps, *grid = latents.shape[:3]
    steps, conditions = [], 0
    for k in range(num_steps):
        given = [("action", actions), ("state", states), ("extrinsics", extrinsics)]
        heads = [layer(f"{name}_encoder", values[k]) for name, values in given if values is not None]
        conditions = len(heads)
        steps.append(torch.stack([*heads, *layer("predictor_embed", latents[k].flatten(0, 1))]))
    x, per_step = torch.cat(steps), len(steps[0])
    places = places_of(num_steps, conditions, (grid[0], grid[1]), 4)
    for block in (f"predictor_blocks.{number}" for number in range(DEPTH)):
        q, k, v = layer(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).chunk(3, dim=-1)
        mixed = []
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            scores = turned(q[:, part], places) @ turned(k[:, part], places).T / math.sqrt(WIDTH // HEADS)
            for i in range(len(x)):
                scores[i, (i // per_step + 1) * per_step :] = -math.inf
            mixed.append(scores.softmax(-1) @ v[:, part])
        x = x + layer(f"{block}.attn.proj", torch.cat(mixed, dim=-1))
        x = x + layer(f"{block}.mlp.fc2", gelu(layer(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
    outputs = layer("predictor_proj", norm("predictor_norm", x)).unflatten(0, (num_steps, per_step))
    return layer_norm(outputs[:, conditions:], (LATENT,), eps=1e-5)


@pytest.mark.parametrize("extrinsics", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_steps", [2, 5, 8])
def test_outputs_and_gradients_are_those_of_the_twin(num_steps: int, grid: tuple[int, int], extrinsics: bool) -> None:
    predictor = make(extrinsics=6 if extrinsics else 0)
    latents, actions, states, poses = drawn(num_steps, grid, extrinsics)
    weights = {name: value.detach().clone().requires_grad_() for name, value in predictor.named_parameters()}
    expected = torch.stack(
        [twin(weights, latents[b], actions[b], states[b], None if poses is None else poses[b]) for b in range(2)]
    )
    found = predictor(latents, actions, states, poses).flatten(2, 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    probe = torch.randn_like(found) / found.numel()
    (found * probe).sum().backward()
    (expected * probe).sum().backward()
    for name, parameter in predictor.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.fast
@pytest.mark.parametrize("states", [0, 7])
def test_an_action_changes_nothing_before_its_step(states: int) -> None:
    predictor = make(states=states)
    latents, actions, values, _ = drawn(5, (2, 2), extrinsics=False)
    given = values if states else None
    before = predictor(latents, actions, given)
    changed = actions.clone()
    changed[:, 3] += 1
    after = predictor(latents, changed, given)
    torch.testing.assert_close(after[:, :3], before[:, :3], atol=0, rtol=0)
    assert ((after - before).abs().amax(dim=(0, 2, 3, 4)) > 1e-3).tolist() == [False, False, False, True, True]


@pytest.mark.fast
@pytest.mark.parametrize("cuts", [(1, 1, 1, 1, 1), (3, 2), (1, 4), (2, 1, 2)])
def test_going_on_from_the_past_is_predicting_the_whole(cuts: tuple[int, ...]) -> None:
    predictor = make(extrinsics=6)
    given = drawn(5, (2, 3), extrinsics=True)
    whole, past, first, parts = predictor(*given), None, 0, []
    for cut in cuts:
        now = [None if values is None else values[:, first : first + cut] for values in given]
        found, past = predictor.go_on(*now, past=past)
        parts.append(found)
        first += cut
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.fast
def test_a_token_that_is_not_there_is_refused() -> None:
    latents, actions, states, _ = drawn(2, (2, 2), extrinsics=False)
    with pytest.raises(ValueError, match="state: this predictor needs it"):
        make()(latents, actions)
    with pytest.raises(ValueError, match="state: this predictor has no such token"):
        make(states=0)(latents, actions, states)


@pytest.mark.fast
def test_recomputing_changes_no_gradient() -> None:
    found = []
    for recompute in ("none", "block"):
        predictor = make(recompute=recompute)
        predictor(*drawn(3, (2, 2), extrinsics=False)).square().sum().backward()
        found.append({name: parameter.grad for name, parameter in predictor.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)
