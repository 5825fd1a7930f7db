"""A world model that plans: frames and a goal image -> actions, by search in its own roll-outs."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor

from vjepa import config
from vjepa.data.poses import composed
from vjepa.errors import UserError
from vjepa.models.action_predictor import Past
from vjepa.planning.search import Belief, Bounds, Cost, Found, search
from vjepa.world_model import WorldModel


class WorldPlanner:
    """Plan with a frozen world model. Frames and goals are uint8, actions are those of a step of the model."""

    def __init__(self, model: WorldModel, wanted: config.Planning, seed: int = 0, bounds: Bounds | None = None) -> None:
        """Take a trained model. bounds: of actions, [A] each; None: those of the settings, else of the index."""
        self.model, self.wanted, self.seed = model.requires_grad_(False).eval(), wanted, seed
        self.bounds = self._of_settings() or bounds or self._of_index()

    def plan(
        self,
        frames: Tensor,
        goal: Tensor,
        state: Tensor | None = None,
        past_actions: Tensor | None = None,
        number: int = 0,
    ) -> tuple[Tensor, float]:
        """Find actions, fp32 [H, A], that lead from the last of `frames` to `goal`, and their energy.

        frames: uint8 [C, T, S, S], as data.crop_px says, one step of the model apart; the last is now. goal: uint8
        [C, S, S], or [G, C, S, S]: sub-goals, each to be reached in its part of the horizon. state: [S], or [T, S],
        of a model that reads states. past_actions: [T - 1, A], what led from each frame to the next. number: of the
        search; the same number gives the same plan.
        """
        self._check(frames, goal, state, past_actions)
        with torch.inference_mode():
            goals = goal if goal.ndim == 4 else goal[None]
            now, goals = self.encode(frames), self.encode(rearrange(goals, "g c y x -> c g y x"))
            found = self.search(now, goals, state, past_actions, number)
        return found.actions.cpu(), found.cost

    def encode(self, frames: Tensor) -> Tensor:
        """Encode uint8 frames [C, T, S, S] -> latents [T, h, w, D]."""
        device = self.model.action_mean.device
        return self.model.latents_of(self.model.features(frames[None].to(device)))[0]

    def search(
        self,
        now: Tensor,
        goals: Tensor,
        state: Tensor | None = None,
        past_actions: Tensor | None = None,
        number: int = 0,
        last: Belief | None = None,
        shuffled: bool = False,
    ) -> Found:
        """Search from latents [T, h, w, D] to goals [G, h, w, D].

        last: the belief of the step before, which `plan.start: shifted` goes on from. shuffled: a control, in which
        each sequence gets the energy of another.
        """
        states = state[None] if state is not None and state.ndim == 1 else state
        cost = self.cost(now, goals, states, past_actions)
        if self.wanted.method == "inverse" and not shuffled:
            actions = self.answers(now, goals, states, past_actions)
            energies = cost(actions[None])
            return Found(actions, float(energies[0]), self._first(actions), ())
        first = self._start(now, goals, states, past_actions, last, shuffled)
        wanted = self.wanted
        if wanted.method == "inverse":  # a control has to search
            wanted = wanted.model_copy(update={"method": "cem"})
        return search(_shuffled(cost) if shuffled else cost, first, self.bounds, wanted, self.seed, number)

    def cost(self, now: Tensor, goals: Tensor, states: Tensor | None, past_actions: Tensor | None) -> Cost:
        """Make the function from actions [S, H, A] to energies [S]; what all sequences share is computed once."""
        past = self._shown(now, states, past_actions)

        def of_chunk(actions: Tensor) -> Tensor:
            return self.energy(self.roll_out(now[-1], past, actions, None if states is None else states[-1]), goals)

        return lambda actions: torch.cat([of_chunk(chunk) for chunk in torch.split(actions, self.wanted.chunk)])

    def roll_out(self, now: Tensor, past: Past | None, actions: Tensor, state: Tensor | None = None) -> Tensor:
        """Predict the frames that sequences of actions [S, H, A] lead to from latents [h, w, D]: [S, H, h, w, D].

        Keys and values of earlier steps are kept. States go on as the actions say.
        """
        num, horizon = actions.shape[:2]
        past = past.expand(num) if past else None
        latents = repeat(now, "h w d -> s 1 h w d", s=num)
        states = None if state is None else state.expand(num, -1)
        rolled = []
        for k in range(horizon):
            action = self.model.scaled(actions[:, k : k + 1])
            shown = None if states is None else self.model.placed(states)[:, None]
            latents, past = self.model.predictor.go_on(latents, action, shown, past=past)
            rolled.append(latents)
            if states is not None and self.model.states is not None:
                states = composed(states, actions[:, k], self.model.states.rotations)
        return torch.cat(rolled, dim=1)

    def energy(self, rolled: Tensor, goals: Tensor) -> Tensor:
        """Compare predicted frames [S, H, h, w, D] with goals [G, h, w, D]: [S].

        Each goal has its part of the horizon, at the end of which, or in all of which, it counts.
        """
        horizon, num_goals = rolled.shape[1], len(goals)
        part = torch.arange(horizon, device=rolled.device) * num_goals // horizon
        difference = rolled - goals[part]
        sizes = difference.abs() if self.wanted.energy == "l1" else difference.square()
        energies = sizes.flatten(2).mean(dim=2)
        if self.wanted.energy_of == "last":
            ends = torch.cat([part[1:] != part[:-1], part.new_ones(1, dtype=torch.bool)])
            energies = energies[:, ends]
        elif self.wanted.energy_of == "least":
            parts = torch.split(energies, part.bincount(minlength=num_goals).tolist(), dim=1)
            energies = torch.cat([one.cummin(dim=1).values for one in parts], dim=1)
        return energies.sum(dim=1)

    def answers(
        self, now: Tensor, goals: Tensor, states: Tensor | None = None, past_actions: Tensor | None = None
    ) -> Tensor:
        """Ask the inverse model for each action in turn, on what the one before it leads to: [H, A]."""
        model, horizon = self.model, self.wanted.horizon
        if model.goal_model is None:
            raise UserError("plan.method: this model has no inverse model (world.goal_width: 0); plan with cem or mppi")
        past, latents, actions = self._shown(now, states, past_actions), now[-1], list[Tensor]()
        state = None if states is None else states[-1]
        for k in range(horizon):
            answer = model.goal_model(latents, goals[k * len(goals) // horizon])
            action = self.bounds.cut(answer * model.action_std + model.action_mean)
            shown = None if state is None else model.placed(state)[None, None]
            found, past = model.predictor.go_on(latents[None, None], model.scaled(action)[None, None], shown, past=past)
            latents = found[0, 0]
            actions.append(action)
            if state is not None and model.states is not None:
                state = composed(state, action, model.states.rotations)
        return torch.stack(actions)

    def _shown(self, now: Tensor, states: Tensor | None, past_actions: Tensor | None) -> Past | None:
        """Give the past of the frames before the last, which do not depend on what is planned."""
        if len(now) == 1 or past_actions is None:
            return None
        shown = None if states is None else self.model.placed(states[:-1])[None]
        return self.model.predictor.go_on(now[None, :-1], self.model.scaled(past_actions)[None], shown)[1]

    def _start(
        self,
        now: Tensor,
        goals: Tensor,
        states: Tensor | None,
        past_actions: Tensor | None,
        last: Belief | None,
        shuffled: bool,
    ) -> Belief:
        nothing = self.bounds.cut(torch.zeros_like(self.bounds.low)).expand(self.wanted.horizon, -1)
        first = self._first(nothing)
        if self.wanted.start == "inverse" and not shuffled:
            return self._first(self.answers(now, goals, states, past_actions))
        return last.shifted(first) if last is not None and self.wanted.start == "shifted" else first

    def _first(self, mean: Tensor) -> Belief:
        std = self.wanted.std * (self.bounds.high - self.bounds.low) / 2
        return Belief(mean, std.expand_as(mean).clone())

    def _of_settings(self) -> Bounds | None:
        wanted, like = self.wanted, self.model.action_mean
        if wanted.low is None or wanted.high is None:
            return None
        for name, values in (("low", wanted.low), ("high", wanted.high)):
            if len(values) != self.model.actions.size:
                raise UserError(f"plan.{name}: {len(values)} numbers, while an action has {self.model.actions.size}")
        return Bounds(like.new_tensor(wanted.low), like.new_tensor(wanted.high))

    def _of_index(self) -> Bounds:
        mean, std = (self.model.action_mean.new_tensor(values) for values in self._moments)
        return Bounds(mean - 2 * std, mean + 2 * std)

    @property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.model.actions.mean, self.model.actions.std

    def _check(self, frames: Tensor, goal: Tensor, state: Tensor | None, past_actions: Tensor | None) -> None:
        """Raise UserError where what is given to `plan` does not fit."""
        num_channels, size = self.model.settings.data.channels.num, self.model.settings.data.crop_size
        wanted = (num_channels, *size)
        for name, image, shape in (
            ("frames", frames, (frames.shape[0], *frames.shape[2:])),
            ("goal", goal, goal.shape[-3:]),
        ):
            if tuple(shape) != wanted or image.dtype != torch.uint8:
                raise UserError(
                    f"{name}: is {image.dtype} of {tuple(image.shape)}; give uint8 of {wanted} for each frame"
                )
        if (self.model.states is None) != (state is None):
            raise UserError(f"state: this model {'reads none' if state is not None else 'reads one; give it'}")
        if frames.shape[1] > 1 and (past_actions is None or len(past_actions) != frames.shape[1] - 1):
            raise UserError(f"past_actions: {frames.shape[1]} frames have an action between each two; give them")


def _shuffled(cost: Cost) -> Cost:
    """Give each sequence the energy of another one."""
    return lambda actions: cost(actions).roll(1)
