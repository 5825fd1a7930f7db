"""CEM and MPPI against loops over plain numbers, on the same noise."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from vjepa import config
from vjepa.planning.search import Belief, Bounds, Found, candidates, cem, coloured, mppi, search

HORIZON, SIZE = 3, 2
BOUNDS = Bounds(torch.tensor([-1.0, -0.2]), torch.tensor([1.0, 0.3]))
TARGET = torch.tensor([[0.5, 0.1], [-0.4, 0.2], [0.9, -0.1]])


def distance(actions: Tensor) -> Tensor:
    return (actions - TARGET).square().sum(dim=(1, 2))


def start() -> Belief:
    return Belief(torch.zeros(HORIZON, SIZE), torch.tensor([0.8, 0.2]).expand(HORIZON, SIZE))


def looked_for(wanted: config.Planning, seed: int = 0, number: int = 0) -> Found:
    return search(distance, start(), BOUNDS, wanted, seed, number)


@pytest.mark.fast
@pytest.mark.parametrize("momentum", [0.0, 0.15])
@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_a_round_is_that_of_a_loop(method: str, momentum: float) -> None:
    torch.manual_seed(0)
    wanted = config.Planning(
        method=method, samples=32, elites=5, mean_momentum=momentum, std_momentum=momentum, temperature=0.3
    )
    noise, belief = torch.randn(32, HORIZON, SIZE, dtype=torch.float64), start()
    belief = Belief(belief.mean.double(), belief.std.double())
    actions = candidates(belief, noise, Bounds(BOUNDS.low.double(), BOUNDS.high.double()))
    found = {"cem": cem, "mppi": mppi}[method](belief, actions, distance(actions), wanted)

    tried = []
    for s in range(32):
        sequence = []
        for h in range(HORIZON):
            for a in range(SIZE):
                value = float(belief.mean[h, a]) + (float(belief.std[h, a] * noise[s, h, a]) if s else 0.0)
                sequence.append(min(max(value, float(BOUNDS.low[a])), float(BOUNDS.high[a])))
        tried.append(sequence)
    goal = TARGET.double().flatten().tolist()
    costs = [sum((x - g) ** 2 for x, g in zip(sequence, goal, strict=True)) for sequence in tried]
    for place in range(HORIZON * SIZE):
        values = [sequence[place] for sequence in tried]
        if method == "cem":
            best = [values[s] for s in sorted(range(32), key=lambda s: costs[s])[:5]]
            mean, std = statistics.mean(best), statistics.stdev(best)
        else:
            spread = statistics.stdev(costs)
            weights = [math.exp(-(cost - min(costs)) / spread / 0.3) for cost in costs]
            mean = sum(w * x for w, x in zip(weights, values, strict=True)) / sum(weights)
            std = math.sqrt(sum(w * (x - mean) ** 2 for w, x in zip(weights, values, strict=True)) / sum(weights))
        h, a = divmod(place, SIZE)
        kept = momentum * float(belief.mean[h, a]), momentum * float(belief.std[h, a])
        assert float(found.mean[h, a]) == pytest.approx((1 - momentum) * mean + kept[0], abs=1e-6)
        assert float(found.std[h, a]) == pytest.approx((1 - momentum) * std + kept[1], abs=1e-6)


@pytest.mark.fast
@pytest.mark.parametrize("method", ["cem", "mppi"])
def test_a_search_finds_the_least_cost_within_the_bounds(method: str) -> None:
    found = looked_for(config.Planning(method=method, samples=256, rounds=12, elites=20, temperature=0.05))
    torch.testing.assert_close(found.actions, TARGET, atol=0.05, rtol=0)
    assert found.cost == pytest.approx(float(distance(found.actions[None])[0]), abs=1e-6)
    assert ((found.actions >= BOUNDS.low) & (found.actions <= BOUNDS.high)).all()
    assert found.costs[-1] < found.costs[0]


@pytest.mark.fast
def test_a_search_is_a_function_of_seed_and_number() -> None:
    wanted = config.Planning(samples=16, rounds=2, elites=4)
    first = looked_for(wanted)
    assert torch.equal(first.actions, looked_for(wanted).actions)
    assert not torch.equal(first.actions, looked_for(wanted, seed=1).actions)
    assert not torch.equal(first.actions, looked_for(wanted, number=1).actions)


@pytest.mark.fast
def test_a_plan_goes_on_one_step_later() -> None:
    first, later = start(), Belief(TARGET, torch.zeros(HORIZON, SIZE)).shifted(start())
    assert torch.equal(later.mean[:-1], TARGET[1:])
    assert torch.equal(later.mean[-1], first.mean[-1])
    assert torch.equal(later.std, first.std)


@pytest.mark.fast
def test_the_best_that_was_tried_is_kept() -> None:
    """Where the mean of the elites is worse than any of them, as between two ways round a wall."""

    def forked(actions: Tensor) -> Tensor:
        return (actions[:, 0, 0].abs() - 0.8).abs()

    wanted = config.Planning(samples=64, rounds=1, elites=32)
    best = search(forked, start(), BOUNDS, wanted, 0, 0)
    mean = search(forked, start(), BOUNDS, wanted.model_copy(update={"keep_best": False}), 0, 0)
    assert best.cost < 0.1 < mean.cost


@pytest.mark.fast
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("horizon", [1, 2, 5, 8])
def test_noise_has_the_power_that_is_asked_for(horizon: int, exponent: float) -> None:
    """By what becomes of each single draw: each step has variance 1, and power falls as 1 / frequency ** exponent."""
    draws = torch.eye(horizon, dtype=torch.float64)[:, :, None].expand(-1, -1, 2)
    found = coloured(draws, exponent)
    torch.testing.assert_close(found.square().sum(dim=0), torch.ones(horizon, 2, dtype=torch.float64))
    for step in range(horizon):  # all frequencies from the sums of cosines and sines
        at = torch.arange(horizon, dtype=torch.float64)
        powers = []
        for k in range(horizon):
            angle = 2 * math.pi * k * at / horizon
            powers.append(float((found[step, :, 0] @ angle.cos()) ** 2 + (found[step, :, 0] @ angle.sin()) ** 2))
        for k in range(1, horizon // 2 + 1):
            assert powers[k] / powers[1] == pytest.approx(k**-exponent)
        assert horizon == 1 or powers[0] == pytest.approx(powers[1])
