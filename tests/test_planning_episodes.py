"""Episodes: environments, a step of the model in them, and the four policies on a model that knows the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vjepa import config, plan
from vjepa.data.tracks import TrackInfo
from vjepa.errors import UserError
from vjepa.models.backbone import make_encoder
from vjepa.planning import evidence, pictures
from vjepa.planning.environments import RoomsEnvironment
from vjepa.planning.episodes import POLICIES, block_bounds, environment_actions, run_episode
from vjepa.planning.planner import WorldPlanner
from vjepa.planning.running import make_environment
from vjepa.world_model import WorldModel


class _KnowsRooms(nn.Module):
    """Predict where the dot of the rooms goes: latents [B, 1, 1, 1, 2] are its place over 10."""

    def go_on(self, latents: Tensor, actions: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        world = RoomsEnvironment(0).world
        place = 10 * latents[:, 0, 0, 0].double().numpy()
        for _ in range(5):
            place = world.move(place, actions[:, 0].double().numpy() / 5)
        return torch.from_numpy(place / 10).float()[:, None, None, None], None


def knowing(wanted: config.Planning) -> WorldPlanner:
    settings = config.WorldConfig.model_validate(
        {
            "data": {"train": "x", "num_frames": 3, "frame_step": 5, "actions": "sum", "crop_px": 64, "fit": "squash"},
            "world": {"model_path": "x", "goal_width": 0, "normalise": False},
            "optim": {"total_steps": 1, "lr": 1e-3},
        }
    )
    model = config.Model.model_validate({"patch_px": 16, "encoder": {"width": 24, "depth": 1, "heads": 2}})
    actions = TrackInfo(("right", "down"), ("px", "px"), {}, (0.0, 0.0), (6.0, 6.0), 9)
    made = WorldModel(settings, make_encoder(model), actions, None)
    made.predictor = _KnowsRooms()  # type: ignore[assignment]
    environment = RoomsEnvironment(0)
    planner = WorldPlanner(made, wanted, 0, block_bounds(environment, settings.data, made.action_mean))

    def place_of(frames: Tensor) -> Tensor:
        red = (frames[0].float() - frames[2].float()).clamp(min=0)
        x = (red.sum(1) * torch.arange(64)).sum(1) / red.sum((1, 2))
        y = (red.sum(2) * torch.arange(64)).sum(1) / red.sum((1, 2))
        return torch.stack([x, y], dim=1)[:, None, None] / 10

    planner.encode = place_of  # type: ignore[method-assign]
    return planner


def test_a_true_model_leads_to_the_other_room_and_chance_does_not() -> None:
    wanted = config.Planning(horizon=8, samples=128, rounds=8, elites=12, energy_of="least", noise_exponent=0.5)
    planner, environment = knowing(wanted), RoomsEnvironment(0)
    rows = {
        policy: evidence.row_of([run_episode(environment, planner, policy, number, wanted) for number in range(8)])
        for policy in POLICIES
    }
    assert rows["oracle"]["at_end"]["value"] == 1
    assert rows["planned"]["at_end"]["value"] >= 0.75
    assert rows["random"]["at_end"]["value"] <= 0.25 and rows["shuffled"]["at_end"]["value"] <= 0.25
    text = evidence.table(rows)
    assert len(text.splitlines()) == 5 and "oracle" in text


@pytest.mark.fast
def test_tasks_lie_in_different_rooms_and_are_functions_of_their_number() -> None:
    environment = RoomsEnvironment(3)
    for number in range(6):
        task = environment.begin(number)
        start = environment.state
        again = RoomsEnvironment(3).begin(number)
        assert np.array_equal(task.start, again.start) and np.array_equal(task.goal, again.goal)
        assert environment.world.room(start) != environment.world.room(task.aim)
        assert not environment.reached(task)
    assert not np.array_equal(task.start, environment.begin(0).start)


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["sum", "concat"])
def test_an_action_of_the_model_is_as_many_of_the_environment(kind: str) -> None:
    data = config.Data.model_validate({"train": "x", "frame_step": 5, "actions": kind})
    environment = RoomsEnvironment(0)
    bounds = block_bounds(environment, data, torch.zeros(1))
    size = 2 if kind == "sum" else 10
    assert bounds.high.shape == (size,)
    done = environment_actions(bounds.high, data)
    np.testing.assert_allclose(done, np.tile(environment.high, (5, 1)), rtol=1e-6)
    drawn = torch.randn(size)
    found = environment_actions(drawn, data)
    assert found.shape == (5, 2)
    np.testing.assert_allclose(found.sum(0) if kind == "sum" else found.ravel(), drawn.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.fast
def test_a_film_shows_the_goal_and_marks_success(tmp_path: Path) -> None:
    wanted = config.Planning(budget_steps=50)
    episode = run_episode(RoomsEnvironment(0), knowing(wanted), "oracle", 0, wanted)
    assert len(episode.pictures) == 51 and episode.steps is not None and episode.reached[-1]
    film = pictures.film(episode)
    assert film.shape == (51, 256, 512, 3)
    assert (film[:, 0, 0] == (60, 200, 90)).all(axis=1).tolist() == episode.reached.tolist()
    written = pictures.save_episodes(tmp_path, [episode])
    assert [path.suffix for path in written] == [".png", ".mp4"] and all(path.stat().st_size for path in written)


@pytest.mark.fast
def test_what_cannot_be_planned_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plan.environment: mazes is unknown; give rooms, gym:NAME or offline"):
        make_environment(config.Planning(environment="mazes"), 0)
    with pytest.raises(UserError, match=r"Gymnasium|plan\.radius"):
        make_environment(config.Planning(environment="gym:Pendulum-v1"), 0)
    with pytest.raises(UserError, match="no such run folder or file"):
        plan.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"data\.crop_px=3: only plan\.key=value"):
        plan.main([str(tmp_path), "data.crop_px=3"])
