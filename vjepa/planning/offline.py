"""Planning judged on clips alone: how near the planned action comes to the true one, and where energy is least.

The goal is a frame of a clip of data.val, `plan.horizon` steps ahead of its start, or as far as the clip reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vjepa import command, config
from vjepa.counter_rng import generator
from vjepa.data.joined_index import open_index
from vjepa.data.loader import eval_loader
from vjepa.errors import UserError
from vjepa.planning import pictures
from vjepa.planning.planner import WorldPlanner

_GRID: Final = 21  # values of each of two dimensions of a map of the energy
_MAPS: Final = 4
_DECODED: Final = 8  # clips at a time


def measure(planner: WorldPlanner, settings: config.WorldConfig, folder: Path, shown: bool) -> dict[str, Any]:
    """Plan on up to `plan.episodes` clips of data.val, and draw maps of the energy around the true first action.

    Returns `errors`: kind -> mean absolute error of the first action, one number a dimension: planned, the inverse
    model's, the mean action of the index, and a random one; and `rank`, the mean share of random actions whose energy
    is below that of the true one (0: the energy is least at the truth; .5: it knows nothing).
    Raises UserError without data.val.
    """
    if settings.data.val is None:
        raise UserError("plan.environment: offline needs clips to plan on; set data.val for the run")
    errors: dict[str, list[Tensor]] = {}
    ranks, number = list[float](), 0
    with command.progress_bar(shown=shown, total=settings.plan.episodes, unit="clip", desc="plan") as bar:
        for features, actions, states in _clips(planner, settings):
            with torch.inference_mode():
                found, rank = _plan(planner, features, actions, states, number)
                if number < _MAPS and planner.model.actions.size > 1:
                    _map(planner, features, actions, states, folder / f"energy_{number}.png")
            for kind, action in found.items():
                errors.setdefault(kind, []).append((action - actions[0]).abs())
            ranks.append(rank)
            number += 1
            bar.update()
    means = {kind: torch.stack(found).mean(dim=0).tolist() for kind, found in errors.items()}
    return {"clips": number, "names": planner.model.actions.names, "errors": means, "rank": float(np.mean(ranks))}


def table(found: Mapping[str, Any]) -> str:
    """Write the errors of actions, a kind a line."""
    lines = [f"mean error of the first action on {found['clips']} clips"]
    lines.append(f"{'':20s}" + "".join(f"{name[:11]:>12s}" for name in found["names"]))
    lines += [f"{kind:20s}" + "".join(f"{error:12.4f}" for error in errors) for kind, errors in found["errors"].items()]
    lines.append(f"random actions of less energy than the true one: {100 * found['rank']:.0f} % (blind: 50 %)")
    return "\n".join(lines)


def _clips(planner: WorldPlanner, settings: config.WorldConfig) -> Any:
    """Go through features [T, h, w, D], actions [T - 1, A] and states of single clips, in their own units."""
    model, data = planner.model, settings.data
    index = open_index(data.val.paths)  # type: ignore[union-attr]
    rows = index.select(data.val.where)[: settings.plan.episodes]  # type: ignore[union-attr]
    for batch in eval_loader(index, rows, data, _DECODED, data.workers):
        if batch.actions is None:
            continue
        for i in range(len(batch.video)):
            one = replace(batch, video=batch.video[i : i + 1], actions=None, states=None)
            states = (
                None if model.states is None or batch.states is None else batch.states[i].to(model.action_mean.device)
            )
            with torch.inference_mode():
                latents = model.latents_of(model.features(one.video.to(model.action_mean.device)))[0]
            yield latents, batch.actions[i].to(model.action_mean.device), states


def _plan(
    planner: WorldPlanner, latents: Tensor, actions: Tensor, states: Tensor | None, number: int
) -> tuple[dict[str, Tensor], float]:
    """Plan from the first frame of a clip to its last, and rank the true actions among random ones."""
    model, bounds = planner.model, planner.bounds
    now, goal, start = latents[:1], latents[_reach(planner, latents)][None], None if states is None else states[:1]
    found = {"planned": planner.search(now, goal, start, None, number).actions[0]}
    if model.goal_model is not None:
        found["inverse model"] = planner.answers(now, goal, start)[0]
    rng = generator(planner.seed, "episodes", (1 << 34) + number)
    drawn = torch.from_numpy(
        rng.random((planner.wanted.samples, _reach(planner, latents), bounds.low.numel()), np.float32)
    )
    random = bounds.low + drawn.to(bounds.low) * (bounds.high - bounds.low)
    found["mean action"] = bounds.low.new_tensor(model.actions.mean)
    found["random"] = random[0, 0]
    energies = planner.cost(now, goal, start, None)(torch.cat([actions[None, : random.shape[1]], random]))
    return found, float((energies[1:] < energies[0]).float().mean())


def _reach(planner: WorldPlanner, latents: Tensor) -> int:
    return min(planner.wanted.horizon, len(latents) - 1)


def _map(planner: WorldPlanner, latents: Tensor, actions: Tensor, states: Tensor | None, path: Path) -> None:
    """Draw the energy over the first two dimensions of the first action, the other numbers being the true ones."""
    bounds, reach = planner.bounds, _reach(planner, latents)
    axes = [torch.linspace(float(bounds.low[i]), float(bounds.high[i]), _GRID) for i in (0, 1)]
    grid = torch.cartesian_prod(*axes).to(bounds.low)
    tried = actions[None, :reach].repeat(len(grid), 1, 1)
    tried[:, 0, :2] = grid
    start = None if states is None else states[:1]
    energies = planner.cost(latents[:1], latents[reach][None], start, None)(tried)
    names = planner.model.actions.names[:2]
    square = energies.reshape(_GRID, _GRID).cpu().numpy()
    pictures.energy_map(path, square, [axis.numpy() for axis in axes], names, actions[0, :2].cpu().numpy())
