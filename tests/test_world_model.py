"""The method of a world model: its losses against loops, what it sees, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from vjepa import config
from vjepa.data.tracks import TrackInfo
from vjepa.models.backbone import make_encoder
from vjepa.planning.planner import WorldPlanner
from vjepa.planning.search import Bounds
from vjepa.records import ClipBatch, LatentBatch
from vjepa.training.optim import make_optimizer
from vjepa.world_model import VectorHead, WorldModel

ACTIONS = TrackInfo(("x", "y"), ("m", "m"), {}, (1.0, -2.0), (2.0, 0.5), 10)
STATES = TrackInfo(("x", "y"), ("m", "m"), {}, (0.0, 1.0), (1.0, 2.0), 10)


def make(plan: dict[str, Any] | None = None, actions: str = "delta", **world: Any) -> WorldModel:
    torch.manual_seed(0)
    tree = {
        "data": {"train": "x", "num_frames": 5, "frame_step": 2, "crop_px": 16, "fit": "squash", "actions": actions},
        "world": {"model_path": "x", "predictor": {"width": 32, "depth": 2, "heads": 2}, "goal_width": 16, **world},
        "optim": {"total_steps": 10, "lr": 1e-3},
        "plan": plan or {},
    }
    shape = {"width": 24, "depth": 1, "heads": 2}
    model = config.Model.model_validate({"patch_px": 4, "encoder": shape, "predictor": shape})
    made = WorldModel(config.WorldConfig.model_validate(tree), make_encoder(model), ACTIONS, STATES)
    for parameter in made.predictor.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


def drawn(num: int = 3, steps: int = 5) -> LatentBatch:
    torch.manual_seed(1)
    features, actions, states = (
        torch.randn(num, steps, 4, 4, 24),
        torch.randn(num, steps - 1, 2),
        torch.randn(num, steps, 2),
    )
    return LatentBatch(features, actions, states, torch.arange(num))


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("rollout", [2, 3])
@pytest.mark.parametrize("shown", [1, 2])
@pytest.mark.parametrize("detach", [False, True])
def test_losses_and_gradients_are_those_of_sequences_predicted_whole(
    loss: str, rollout: int, shown: int, detach: bool
) -> None:
    """The roll-out with keys kept is that which predicts every sequence anew, as the published code does."""
    model = make(loss=loss, rollout_steps=rollout, rollout_detach=detach, state=True, goal_width=0)
    batch = drawn()
    features, actions, states = model.read(batch)
    latents = model.latents_of(features)
    found = model.losses(latents, actions, states, shown)
    (found["prediction"] + found["roll_out"]).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.predictor.named_parameters()}
    model.zero_grad()

    def distance(one: Tensor, other: Tensor) -> Tensor:
        return ((one - other).abs() if loss == "l1" else (one - other) ** 2).mean()

    h = layer_norm(batch.features, (24,))
    a = (batch.actions - torch.tensor([1.0, -2.0])) / torch.tensor([2.0, 0.5])
    s = (batch.states - torch.tensor([0.0, 1.0])) / torch.tensor([1.0, 2.0])
    z = model.predictor(h[:, :-1], a, s[:, :-1])
    rolled = [z[:, shown - 1]]
    while len(rolled) < rollout:
        fed = [one.detach() if detach else one for one in rolled]
        sequence = torch.cat([h[:, :shown], torch.stack(fed, dim=1)], dim=1)
        num = sequence.shape[1]
        rolled.append(model.predictor(sequence, a[:, :num], s[:, :num])[:, -1])
    prediction = distance(z, h[:, 1:])
    roll_out = distance(torch.stack(rolled, dim=1), h[:, shown : shown + rollout])
    torch.testing.assert_close(found["prediction"], prediction, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["roll_out"], roll_out, atol=1e-5, rtol=1e-5)
    (prediction + roll_out).backward()
    for name, parameter in model.predictor.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.fast
@pytest.mark.parametrize("latents", ["tokens", "grid", "vector"])
def test_latents_of_a_frame_do_not_depend_on_other_frames(latents: str) -> None:
    extra = {"inverse_weight": 1.0} if latents == "vector" else {}
    model = make(latents=latents, grid_side=2, **extra).eval()
    video = torch.randint(256, (2, 3, 5, 16, 16), dtype=torch.uint8)
    whole = model.latents_of(model.features(video))
    alone = model.latents_of(model.features(video[:, :, 2:3]))
    shape = {"tokens": (4, 4, 24), "grid": (2, 2, 24), "vector": (1, 1, 32)}[latents]
    assert whole.shape == (2, 5, *shape)
    torch.testing.assert_close(whole[:, 2:3], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.fast
def test_a_step_is_a_function_of_its_number() -> None:
    model, batch = make(rollout_steps=2), drawn()
    first, again, later = model.terms(batch, 3), model.terms(batch, 3), [model.terms(batch, n) for n in range(8)]
    assert torch.equal(first["loss"], again["loss"])
    assert len({terms["roll_out"].item() for terms in later}) > 1  # another number of true frames


@pytest.mark.fast
def test_what_the_head_of_vectors_reads_is_white_and_it_begins_with_what_varies_most() -> None:
    """Directions that hardly vary are no more than rounding: they stay small. bf16 does not round them either."""
    generator, stds = torch.Generator().manual_seed(0), torch.tensor([3.0, 1.0, 0.1, 0.02, 1e-5, 0.0])
    turned = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    features = torch.randn(4096, 6, generator=generator) * stds @ turned + 5
    head = VectorHead((1, 1, 6), 3, 2)
    before = head.embed.weight.clone()
    head.begin(features[:, None, None])
    white = head.whitening(features, torch.eye(6))
    found = white.T @ white / len(white)
    assert torch.allclose(found[:4, :4], torch.eye(4), atol=0.06)
    assert found[4:].abs().max() < 0.01 and white.mean(0).abs().max() < 1e-3
    shares = head.embed.weight / before
    assert torch.allclose(shares[0, :3], stds[:3] / 3, rtol=0.1) and (shares[:, 4:] < 0.005).all()
    vectors = head(features.reshape(512, 8, 1, 1, 6))
    assert vectors.shape == (512, 8, 1, 1, 3)
    torch.testing.assert_close(vectors.reshape(-1, 3), head.embed(white), atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(features.reshape(512, 8, 1, 1, 6)), vectors)


def test_a_vector_keeps_what_actions_change() -> None:
    """Frames of noise in which one direction moves with the action: the vector finds it and does not shrink."""
    model = make(latents="vector", vector_width=4, inverse_weight=1.0, actions="sum")
    optimizer = make_optimizer(model, config.Optim(total_steps=1, lr=3e-3))
    torch.manual_seed(2)
    ways = torch.randn(2, 4, 4, 24)
    model.begin(torch.float32, 150)
    for step in range(150):
        actions = torch.randn(32, 4, 2) * model.action_std + model.action_mean
        moved = torch.cat([torch.zeros(32, 1, 2), model.scaled(actions).cumsum(dim=1)], dim=1) / 2
        features = torch.einsum("btk,khwd->bthwd", moved, ways) + 0.1 * torch.randn(32, 5, 4, 4, 24)
        terms = model.terms(LatentBatch(features, actions, None, torch.arange(32)), step)
        terms["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert terms["inverse"].item() < 0.6  # of the variance of actions
    assert terms["prediction"].item() < 0.5  # of the spread of what is predicted
    assert float(model.eval().latents_of(features).std()) > 0.1


@pytest.mark.fast
def test_a_batch_without_actions_is_refused() -> None:
    with pytest.raises(ValueError, match="actions"):
        make().terms(ClipBatch(torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8), torch.zeros(1)), 0)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"latents": "vector"}, "inverse_weight"),
        ({"from_scratch": True}, "from_scratch"),
        ({"sigreg": 1.0}, "sigreg"),
        ({"rollout_steps": 9}, "num_frames"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make(**changes)


# Planning with it


BOUNDS = Bounds(torch.tensor([-3.0, -3.0]), torch.tensor([3.0, 3.0]))


@pytest.mark.fast
@pytest.mark.parametrize("context", [1, 3])
@pytest.mark.parametrize("state", [False, True])
def test_a_roll_out_with_keys_kept_is_that_without(context: int, state: bool) -> None:
    """States go on as the actions say, from the true one."""
    model = make(state=state)
    planner = WorldPlanner(model, config.Planning(horizon=4, chunk=3), bounds=BOUNDS)
    batch = drawn(1, context)
    latents, states = model.latents_of(batch.features)[0], batch.states[0] if state else None
    past_actions, actions = torch.randn(context - 1, 2), torch.randn(7, 4, 2)
    with torch.no_grad():
        past = planner._shown(latents, states, past_actions)
        rolled = planner.roll_out(latents[-1], past, actions, None if states is None else states[-1])
        for one in range(7):
            frames, done, stood = latents, past_actions, states
            for k in range(4):
                done = torch.cat([done, actions[one, k : k + 1]])
                placed = None if stood is None else model.placed(stood)[None]
                found = model.predictor(frames[None], model.scaled(done)[None], placed)[0, -1]
                torch.testing.assert_close(rolled[one, k], found, atol=1e-5, rtol=1e-5)
                frames = torch.cat([frames, found[None]])
                stood = None if stood is None else torch.cat([stood, stood[-1:] + actions[one, k]])


@pytest.mark.fast
def test_energies_are_those_of_loops() -> None:
    rolled, goals = torch.randn(3, 4, 2, 2, 5), torch.randn(2, 2, 2, 5)
    for kind in ("l1", "l2"):
        size = torch.abs if kind == "l1" else torch.square
        each = torch.stack([torch.stack([size(one[k] - goals[k // 2]).mean() for k in range(4)]) for one in rolled])
        least = each[:, 0] + each[:, :2].amin(1) + each[:, 2] + each[:, 2:].amin(1)
        for of, expected in (("last", each[:, 1] + each[:, 3]), ("sum", each.sum(dim=1)), ("least", least)):
            planner = WorldPlanner(make(), config.Planning(energy=kind, energy_of=of), bounds=BOUNDS)
            torch.testing.assert_close(planner.energy(rolled, goals), expected)


@pytest.mark.fast
@pytest.mark.parametrize("method", ["cem", "mppi", "inverse"])
def test_the_same_number_gives_the_same_plan(method: str) -> None:
    planner = WorldPlanner(
        make(), config.Planning(method=method, samples=8, rounds=2, elites=3, horizon=2), bounds=BOUNDS
    )
    frames, goal = (torch.randint(256, (3, *shape, 16, 16), dtype=torch.uint8) for shape in ((1,), ()))
    actions, energy = planner.plan(frames, goal)
    again, same = planner.plan(frames, goal)
    assert actions.shape == (2, 2) and torch.equal(actions, again) and energy == same
    assert ((actions >= BOUNDS.low) & (actions <= BOUNDS.high)).all()
    if method != "inverse":
        assert not torch.equal(actions, planner.plan(frames, goal, number=1)[0])
    now, goals = planner.encode(frames), planner.encode(goal[:, None])
    with torch.inference_mode():
        assert planner.search(now, goals, shuffled=True).actions.shape == (2, 2)  # the control of every method
