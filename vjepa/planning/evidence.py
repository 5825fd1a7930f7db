"""What planning came to: rows of a table with 95 % intervals, and what could be known before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV

from data_prep.first_run.worlds.rooms import Rooms
from vjepa.counter_rng import generator
from vjepa.planning.episodes import Episode
from vjepa.planning.planner import WorldPlanner
from vjepa.probing.metrics import wilson_interval

_PLACES = 1500  # of the dot, of which a linear map learns two thirds
_TOLD = {
    "planned": "planned",
    "random": "random",
    "shuffled": "energies shuffled",
    "oracle": "oracle",
}


def row_of(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Sum up the episodes of one policy: shares with intervals, median steps to success, seconds an action."""
    at_end, ever = (
        sum(map(bool, found)) for found in zip(*((e.reached[-1], e.reached.any()) for e in episodes), strict=True)
    )
    steps = [episode.steps for episode in episodes if episode.steps is not None]
    seconds = [one for episode in episodes for one in episode.seconds]
    return {
        "episodes": len(episodes),
        "at_end": _share(at_end, len(episodes)),
        "ever": _share(ever, len(episodes)),
        "median_steps": float(np.median(steps)) if steps else None,
        "seconds_an_action": float(np.mean(seconds)) if seconds else None,
    }


def _share(num: int, total: int) -> dict[str, float]:
    low, high = wilson_interval(num, total)
    return {"value": num / total, "low": low, "high": high}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the rows of `row_of`, one a line."""
    lines = [f"{'':20s}{'success at the end':24s}{'ever':24s}{'steps to it':>12s}{'s an action':>13s}"]
    for name, row in rows.items():
        steps = "-" if row["median_steps"] is None else f"{row['median_steps']:.0f}"
        seconds = "-" if name in ("random", "oracle") else f"{row['seconds_an_action']:.3f}"
        shares = "".join(f"{_written(row[kind]):24s}" for kind in ("at_end", "ever"))
        lines.append(f"{_TOLD.get(name, name):20s}{shares}{steps:>12s}{seconds:>13s}")
    return "\n".join(lines)


def _written(share: Mapping[str, float]) -> str:
    return f"{100 * share['value']:.0f} % [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"


def known_before(planner: WorldPlanner, seed: int) -> dict[str, float]:
    """Measure in `Rooms`, before any planning, what planning rests on.

    place_r2: of a linear map from latents to the place of the dot, on places it has not seen. energy_rank: Spearman's
    correlation of the energy of two places and the length of the way between them.
    """
    world, rng = Rooms(), generator(seed, "episodes", 1 << 33)
    places = np.stack([world.place(rng) for _ in range(_PLACES)])
    pictures = torch.from_numpy(world.draw(places)).permute(3, 0, 1, 2)
    with torch.inference_mode():
        latents = torch.cat([planner.encode(part) for part in torch.split(pictures, 100, dim=1)])
        half = _PLACES // 2
        energies = [planner.energy(a[None, None], b[None]) for a, b in zip(latents[:half], latents[half:], strict=True)]
    ways = [world.path_length(*pair) for pair in zip(places[:half], places[half:], strict=True)]
    features, learned = latents.flatten(1).cpu().numpy(), 2 * _PLACES // 3
    probe = RidgeCV(np.logspace(-4, 4, 9)).fit(features[:learned], places[:learned])
    return {
        "place_r2": float(probe.score(features[learned:], places[learned:])),
        "energy_rank": float(spearmanr(torch.cat(energies).cpu().numpy(), ways)[0]),
    }
