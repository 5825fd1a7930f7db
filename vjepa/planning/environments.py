"""Environments to plan in: where a task starts, what its goal looks like, and what an action does to the picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image

from data_prep.first_run.worlds.rooms import Rooms
from vjepa.counter_rng import generator
from vjepa.errors import UserError

try:
    import gymnasium
except ImportError:  # an extra
    gymnasium = None

_HELD_STEPS: Final = 5  # for which a random action is held on the way to a goal
_STATES: Final = ("state", "proprio", "observation", "agent_pos")  # of observations that are dicts


@dataclass(frozen=True)
class Errand:
    """Hold one task of an environment. start, goal: pictures, uint8 [H, W, 3]. aim: the state of the goal, [S]."""

    start: np.ndarray
    goal: np.ndarray
    aim: np.ndarray


class Environment(ABC):
    """Take actions and give pictures. low, high: bounds of an action, [A]. radius: of success, in units of a state."""

    low: np.ndarray
    high: np.ndarray
    radius: float

    @abstractmethod
    def begin(self, number: int) -> Errand:
        """Begin task `number`, the same at each call."""

    @abstractmethod
    def step(self, action: np.ndarray) -> np.ndarray:
        """Do an action [A] and give the picture after it, uint8 [H, W, 3]."""

    @property
    @abstractmethod
    def state(self) -> np.ndarray:
        """Give the state, [S], which success is told by, and which no planner that reads pictures alone is shown."""

    @abstractmethod
    def expert(self, step: int) -> np.ndarray:
        """Give an action [A] that leads to the goal, by what the environment knows of itself: the oracle."""

    def reached(self, task: Errand) -> bool:
        """Tell whether the state lies within the radius of the goal's."""
        return bool(np.linalg.norm(self.state - task.aim) <= self.radius)


class RoomsEnvironment(Environment):
    """Lead the dot of `Rooms` to a place in the other room."""

    def __init__(self, seed: int, radius: float | None = None) -> None:
        """Draw tasks of `seed`. radius: px; None: .07 of the side."""
        self.world, self.seed = Rooms(), seed
        self.radius = 0.07 * self.world.side_px if radius is None else radius
        self.high = np.full(2, self.world.fastest_px)
        self.low = -self.high

    def begin(self, number: int) -> Errand:
        rng = generator(self.seed, "episodes", number)
        rooms = ("left", "right") if rng.random() < 0.5 else ("right", "left")
        self.place, self.aim = (self.world.place(rng, room) for room in rooms)
        start, goal = self.world.draw(np.stack([self.place, self.aim]))
        return Errand(start, goal, self.aim)

    def step(self, action: np.ndarray) -> np.ndarray:
        self.place = self.world.move(self.place, action)
        picture: np.ndarray = self.world.draw(self.place[None])[0]
        return picture

    @property
    def state(self) -> np.ndarray:
        return self.place

    def expert(self, step: int) -> np.ndarray:
        return self.world.way(self.place, self.aim)


class GymEnvironment(Environment):
    """Lead an environment of Gymnasium to where `goal_steps` random actions lead it; the oracle does them again."""

    def __init__(self, name: str, seed: int, goal_steps: int, radius: float | None, options: Mapping[str, Any]) -> None:
        """Make environment `name` with `options`. radius: in the units of its observation. Raises UserError."""
        if gymnasium is None:
            raise UserError(f"plan.environment: {name} needs Gymnasium; pip install 'video-jepa[plan]'")
        if radius is None:
            raise UserError("plan.radius: say how near to the goal counts as success, in units of the observation")
        try:
            self.environment = gymnasium.make(name, render_mode="rgb_array", **options)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise UserError(f"plan.environment: {name} cannot be made: {' '.join(str(error).split())}") from None
        space = self.environment.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
            raise UserError(
                f"plan.environment: {name} has actions {space}; a bounded Box of one dimension is planned in"
            )
        self.name, self.seed, self.goal_steps, self.radius = name, seed, goal_steps, radius
        self.low, self.high = space.low.astype(float), space.high.astype(float)

    def begin(self, number: int) -> Errand:
        rng = generator(self.seed, "episodes", number)
        reset = int(rng.integers(1 << 31))
        held = rng.uniform(self.low, self.high, (-(-self.goal_steps // _HELD_STEPS), len(self.low)))
        self.known = np.repeat(held, _HELD_STEPS, axis=0)[: self.goal_steps]
        self._reset(reset)
        for action in self.known:
            goal = self.step(action)
        aim = self.state
        return Errand(self._reset(reset), goal, aim)

    def step(self, action: np.ndarray) -> np.ndarray:
        dtype = self.environment.action_space.dtype
        self.observation = self.environment.step(action.astype(dtype))[0]
        return self._picture()

    @property
    def state(self) -> np.ndarray:
        found = self.observation
        if isinstance(found, Mapping):
            known = [name for name in _STATES if name in found]
            if not known:
                raise UserError(
                    f"plan.environment: {self.name} observes {', '.join(found)}, none of {', '.join(_STATES)}"
                )
            found = found[known[0]]
        return np.asarray(found, dtype=np.float64).ravel()

    def expert(self, step: int) -> np.ndarray:
        still: np.ndarray = self.known[step] if step < len(self.known) else np.clip(0 * self.low, self.low, self.high)
        return still

    def _reset(self, seed: int) -> np.ndarray:
        self.observation = self.environment.reset(seed=seed)[0]
        return self._picture()

    def _picture(self) -> np.ndarray:
        picture = self.environment.render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            raise UserError(f"plan.environment: {self.name} draws no pictures (render_mode rgb_array)")
        return np.ascontiguousarray(picture[..., :3])


def fitted(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a picture, uint8 [H, W, 3], to the size of the model's frames."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR))
