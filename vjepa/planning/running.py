"""Plan in the world model of a run, in an environment or on clips, and write down what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from vjepa import command, config, files
from vjepa.errors import UserError
from vjepa.interop import world
from vjepa.interop.world import ReadWorld
from vjepa.planning import evidence, offline, pictures
from vjepa.planning.environments import Environment, GymEnvironment, RoomsEnvironment
from vjepa.planning.episodes import POLICIES, Episode, block_bounds, run_episode
from vjepa.planning.planner import WorldPlanner
from vjepa.run_folder import RunFolder
from vjepa.world_model import WorldModel

_GYM: Final = "gym:"


def make_environment(wanted: config.Planning, seed: int) -> Environment:
    """Make the environment that the settings name. Raises UserError for another name."""
    if wanted.environment == "rooms":
        return RoomsEnvironment(seed, wanted.radius)
    if wanted.environment.startswith(_GYM):
        name = wanted.environment.removeprefix(_GYM)
        return GymEnvironment(name, seed, wanted.goal_steps, wanted.radius, wanted.options)
    raise UserError(f"plan.environment: {wanted.environment} is unknown; give rooms, gym:NAME or offline")


def load_planner(path: Path, overrides: Sequence[str] = (), encoder: str | None = None) -> WorldPlanner:
    """Read a world model, as `interop.world.read` does, to plan with."""
    found = world.read(path, overrides, encoder)
    return WorldPlanner(found.model, found.settings.plan, found.settings.run.seed)


def plan_in(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the world model at `path` and plan with it; what is found lies in plans/ of its run, or beside its file."""
    return plan_run(world.read(path, overrides), path if path.is_dir() else path.parent)


def plan_run(read: ReadWorld, path: Path, shown: bool = True) -> dict[str, Any]:
    """Plan as the settings of what was read say; write plans/ into the folder `path`, and return plans.json."""
    model, settings = read.model, read.settings
    wanted, seed = settings.plan, settings.run.seed
    found: dict[str, Any] = {"step": read.step, "plan": wanted.model_dump(mode="json")}
    folder = RunFolder(path).plans / wanted.environment.replace(":", "_").replace("/", "_")
    if wanted.environment == "offline":
        found |= offline.measure(WorldPlanner(model, wanted, seed), settings, folder, shown)
        print(offline.table(found))
    else:
        found |= _in_environment(model, settings, folder, shown)
    files.write_json(folder / "plans.json", found)
    print(f"{folder}: plans.json, pictures and films")
    return found


def _in_environment(model: WorldModel, settings: config.WorldConfig, folder: Path, shown: bool) -> dict[str, Any]:
    """Do every task by every policy, print the table, and draw some episodes."""
    wanted, seed = settings.plan, settings.run.seed
    environment = make_environment(wanted, seed)
    planner = WorldPlanner(model, wanted, seed, block_bounds(environment, settings.data, model.action_mean))
    if model.states is not None:
        raise UserError("world.state: environments are planned in by pictures alone; plan offline, or train without it")
    if len(planner.bounds.low) != model.actions.size:
        raise UserError(
            f"plan.environment: {wanted.environment} has actions of {len(planner.bounds.low)} numbers a step of the "
            f"model, which knows {model.actions.size} ({', '.join(model.actions.names)})"
        )
    before = evidence.known_before(planner, seed) if wanted.environment == "rooms" else {}
    if before:
        print("before planning: " + ", ".join(f"{name} {value:.3f}" for name, value in before.items()), flush=True)
    episodes: Mapping[str, list[Episode]] = {policy: [] for policy in POLICIES}
    with command.progress_bar(shown=shown, total=wanted.episodes * len(POLICIES), unit="episode", desc="plan") as bar:
        for number in range(wanted.episodes):
            for policy in POLICIES:
                episodes[policy].append(run_episode(environment, planner, policy, number, wanted))
                bar.update()
    rows = {policy: evidence.row_of(done) for policy, done in episodes.items()}
    print(evidence.table(rows))
    pictures.save_episodes(folder, episodes["planned"][: wanted.films])
    return {
        "before": before,
        "rows": rows,
        "bounds": {name: one.tolist() for name, one in asdict(planner.bounds).items()},
    }
