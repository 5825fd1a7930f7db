"""Episodes: look, plan, act, look again, for each task and each policy; and what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from vjepa import config
from vjepa.counter_rng import generator
from vjepa.planning.environments import Environment, Errand, fitted
from vjepa.planning.planner import WorldPlanner
from vjepa.planning.search import Belief, Bounds

Policy = Literal["planned", "random", "shuffled", "oracle"]
POLICIES: Final[tuple[Policy, ...]] = ("planned", "random", "shuffled", "oracle")
_MOST_PLANS: Final = 1 << 16  # of an episode, in the number of a search


@dataclass(frozen=True)
class Episode:
    """Hold what became of a task.

    reached: bool [n + 1], whether the goal is reached at the start and after each step of the environment. pictures:
    uint8 [n + 1, H, W, 3], and the goal's. places: states, [n + 1, S]. seconds: of each plan.
    """

    task: Errand
    reached: np.ndarray
    states: np.ndarray
    pictures: list[np.ndarray] = field(repr=False)
    seconds: tuple[float, ...] = ()

    @property
    def steps(self) -> int | None:
        """Count the steps to the goal; None where it was never reached."""
        return int(self.reached.argmax()) if self.reached.any() else None


def block_bounds(environment: Environment, data: config.Data, like: Tensor) -> Bounds:
    """Give the bounds of a step of the model, which is `data.frame_step` steps of the environment, [A]."""
    num = data.frame_step or 1
    low, high = (
        (np.tile(one, num) if data.actions == "concat" else one * num) for one in (environment.low, environment.high)
    )
    return Bounds(like.new_tensor(low), like.new_tensor(high))


def environment_actions(action: Tensor, data: config.Data) -> np.ndarray:
    """Cut an action of the model [A] into those of the environment, [frame_step, A']: equal shares of a sum."""
    num = data.frame_step or 1
    values = action.cpu().numpy().astype(np.float64)
    return values.reshape(num, -1) if data.actions == "concat" else np.tile(values / num, (num, 1))


def run_episode(
    environment: Environment, planner: WorldPlanner, policy: Policy, number: int, wanted: config.Planning
) -> Episode:
    """Do task `number` by a policy, for `wanted.budget_steps` steps of the environment."""
    task = environment.begin(number)
    act = _actor(environment, planner, policy, number)
    pictures, reached, states, seconds = [task.start], [environment.reached(task)], [environment.state], list[float]()
    while len(pictures) <= wanted.budget_steps:
        began = time.perf_counter()
        block = act(pictures, task)
        seconds.append(time.perf_counter() - began)
        for action in block[: wanted.budget_steps + 1 - len(pictures)]:
            doing = environment.expert(len(pictures) - 1) if policy == "oracle" else action
            pictures.append(environment.step(doing))
            reached.append(environment.reached(task))
            states.append(environment.state)
    return Episode(task, np.array(reached), np.stack(states), pictures, tuple(seconds))


Act = Callable[[Sequence[np.ndarray], Errand], np.ndarray]  # pictures so far -> the next actions [n, A]


def _actor(environment: Environment, planner: WorldPlanner, policy: Policy, number: int) -> Act:
    """Make the policy of one episode."""
    data, bounds = planner.model.settings.data, planner.bounds
    if policy == "oracle":
        return lambda pictures, task: np.zeros((data.frame_step or 1, len(environment.low)))
    if policy == "random":
        rng = generator(planner.seed, "episodes", (1 << 32) + number)

        def draw(pictures: Sequence[np.ndarray], task: Errand) -> np.ndarray:
            low, high = bounds.low.cpu().numpy(), bounds.high.cpu().numpy()
            return environment_actions(torch.from_numpy(rng.uniform(low, high)), data)

        return draw
    return _Planned(planner, policy == "shuffled", number)


class _Planned:
    """Plan anew before each step of the model, from the frames and actions of the last steps."""

    def __init__(self, planner: WorldPlanner, shuffled: bool, number: int) -> None:
        self.planner, self.shuffled, self.number = planner, shuffled, number
        self.belief: Belief | None = None
        self.done: list[Tensor] = []
        self.seen: list[Tensor] = []
        self.goal: Tensor | None = None

    def __call__(self, pictures: Sequence[np.ndarray], task: Errand) -> np.ndarray:
        planner, context = self.planner, self.planner.wanted.context
        with torch.inference_mode():
            if self.goal is None:
                self.goal = self._encode(task.goal)
            self.seen = [*self.seen, self._encode(pictures[-1])][-context:]
            past = torch.stack(self.done[1 - len(self.seen) :]) if len(self.seen) > 1 else None
            search = self.number * _MOST_PLANS + len(self.done)
            now = torch.cat(self.seen)
            found = planner.search(now, self.goal, None, past, search, self.belief, self.shuffled)
        self.belief, action = found.belief, found.actions[0]
        self.done.append(action)
        return environment_actions(action, planner.model.settings.data)

    def _encode(self, picture: np.ndarray) -> Tensor:
        """Encode a picture, uint8 [H, W, 3] -> latents [1, h, w, D]."""
        picture = fitted(picture, self.planner.model.settings.data.crop_size)
        return self.planner.encode(torch.from_numpy(picture.copy()).permute(2, 0, 1)[:, None])
