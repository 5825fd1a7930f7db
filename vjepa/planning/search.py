"""Search for actions by sampling: CEM and MPPI, pure functions of a cost and of the noise.

A belief about the best actions is a normal distribution, independent in each of H steps and A dimensions. One round
draws S sequences from it, asks for their costs, and gives the next belief.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from vjepa import config
from vjepa.counter_rng import generator

Cost = Callable[[Tensor], Tensor]  # actions [S, H, A] -> costs [S]
_MOST_ROUNDS: Final = 1 << 12  # of a search, in the counter of its noise


@dataclass(frozen=True)
class Bounds:
    """Hold the least and the greatest value of each dimension of an action, [A] each."""

    low: Tensor
    high: Tensor

    def cut(self, actions: Tensor) -> Tensor:
        """Bring actions [..., A] within the bounds."""
        return torch.minimum(torch.maximum(actions, self.low), self.high)


@dataclass(frozen=True)
class Belief:
    """Hold mean and standard deviation of the actions, [H, A] each."""

    mean: Tensor
    std: Tensor

    def shifted(self, first: Belief) -> Belief:
        """Go on one step later: the first step is done, and the last one is believed what `first` believes of it."""
        return Belief(torch.cat([self.mean[1:], first.mean[-1:]]), first.std)


@dataclass(frozen=True)
class Found:
    """Hold the result of a search: the actions [H, A], their cost, the last belief, and the cost of each round."""

    actions: Tensor
    cost: float
    belief: Belief
    costs: tuple[float, ...]


def search(cost: Cost, first: Belief, bounds: Bounds, wanted: config.Planning, seed: int, number: int) -> Found:
    """Search from the belief `first`; the noise is a function of (seed, number), the number of the search.

    Returns the actions of the least cost among the mean of the last belief and all that were tried where
    `wanted.keep_best`, else that mean.
    """
    update = {"cem": cem, "mppi": mppi}[wanted.method]
    belief, costs = first, []
    best, best_cost = bounds.cut(first.mean), float("inf")
    for round_number in range(wanted.rounds):
        rng = generator(seed, "planner", number * _MOST_ROUNDS + round_number)
        white = torch.from_numpy(rng.standard_normal((wanted.samples, *first.mean.shape), dtype="float32"))
        noise = coloured(white.to(first.mean.device), wanted.noise_exponent)
        actions = candidates(belief, noise, bounds)
        found = cost(actions)
        least = int(found.argmin())
        if float(found[least]) < best_cost:
            best, best_cost = actions[least], float(found[least])
        belief = update(belief, actions, found, wanted)
        costs.append(float(found[least]))
    last = bounds.cut(belief.mean)
    last_cost = float(cost(last[None])[0])
    if wanted.keep_best and best_cost < last_cost:
        return Found(best, best_cost, belief, tuple(costs))
    return Found(last, last_cost, belief, tuple(costs))


def coloured(white: Tensor, exponent: float) -> Tensor:
    """Turn white noise [S, H, A] into noise of deviation 1 whose power falls as 1 / frequency ** exponent along H.

    Of iCEM (Pinneri et al. 2020, section 3.1), by Timmer and Koenig (1995): a sum of independent noises leads nowhere.
    """
    horizon = white.shape[1]
    if exponent == 0 or horizon == 1:
        return white
    frequencies = torch.fft.fftfreq(horizon, dtype=white.dtype, device=white.device).abs().clamp(min=1 / horizon)
    scales = frequencies ** (-exponent / 2)
    scales = scales / scales.square().mean().sqrt()
    found: Tensor = torch.fft.ifft(torch.fft.fft(white, dim=1) * scales[:, None], dim=1).real
    return found


def candidates(belief: Belief, noise: Tensor, bounds: Bounds) -> Tensor:
    """Draw sequences within the bounds by noise [S, H, A] of a standard normal; the first one is the mean itself."""
    actions = belief.mean + belief.std * noise
    actions[0] = belief.mean
    return bounds.cut(actions)


def cem(belief: Belief, actions: Tensor, costs: Tensor, wanted: config.Planning) -> Belief:
    """Move the belief to mean and deviation of the best `wanted.elites` (Rubinstein 1999).

    `wanted.mean_momentum` and `std_momentum` of the old ones stay.
    """
    elites = actions[costs.topk(min(wanted.elites, len(costs)), largest=False).indices]
    return _moved(belief, elites.mean(dim=0), elites.std(dim=0), wanted)


def mppi(belief: Belief, actions: Tensor, costs: Tensor, wanted: config.Planning) -> Belief:
    """Move the belief to mean and deviation of all sequences, weighted by exp(-cost / temperature).

    Costs count from the least one, in units of their deviation (Williams et al. 2017; TD-MPC's weighted deviation).
    """
    scaled = (costs - costs.min()) / costs.std().clamp(min=1e-12)
    weights = torch.softmax(-scaled / wanted.temperature, dim=0)[:, None, None]
    mean = (weights * actions).sum(dim=0)
    return _moved(belief, mean, (weights * (actions - mean).square()).sum(dim=0).sqrt(), wanted)


def _moved(belief: Belief, mean: Tensor, std: Tensor, wanted: config.Planning) -> Belief:
    """Mix mean and deviation [H, A] with those of the old belief."""
    return Belief(torch.lerp(mean, belief.mean, wanted.mean_momentum), torch.lerp(std, belief.std, wanted.std_momentum))
