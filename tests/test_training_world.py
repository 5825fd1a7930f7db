"""Runs of world models: resumed bit for bit, with features kept and without, end to end; read back, passed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vjepa
from data_prep.first_run.video_file import write_video
from data_prep.scanning.build import build_index
from vjepa import config
from vjepa.data.track_files import save_tracks
from vjepa.data.tracks import RowTracks, TrackInfo, Tracks
from vjepa.errors import UserError
from vjepa.interop import own, world
from vjepa.interop.export import export_file
from vjepa.interop.weights import Weights
from vjepa.models.action_predictor import ActionPredictor
from vjepa.models.backbone import make_encoder
from vjepa.planning import running
from vjepa.run_folder import RunFolder
from vjepa.training.world import train_world

SIDE, FRAMES = 16, 24
TRACKS = Tracks(TrackInfo(("right", "down"), ("px", "px")), TrackInfo(("x", "y"), ("px", "px")))
SHAPE = {"width": 24, "depth": 1, "heads": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index of four films of a square that moves by its actions, and a small encoder."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    lines = ["file,split"]
    (folder / "films").mkdir()
    for number in range(4):
        actions = rng.uniform(-1, 1, (FRAMES, 2)).astype(np.float32)
        places = np.clip(8 + np.concatenate([np.zeros((1, 2)), actions[:-1].cumsum(0)]), 2, 13).astype(np.float32)
        frames = np.zeros((FRAMES, SIDE, SIDE, 3), np.uint8)
        for frame, (x, y) in zip(frames, places.round().astype(int), strict=True):
            frame[y - 1 : y + 2, x - 1 : x + 2] = 255
        film = folder / "films" / f"{number}.mp4"
        write_video(frames, 8, film)
        save_tracks(film, TRACKS, RowTracks(actions, places))
        lines.append(f"{number}.mp4,{'val' if number == 3 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    build_index(folder / "films", folder / "x.parquet", labels=folder / "labels.csv", progress=False)
    torch.manual_seed(0)
    model = config.Model.model_validate({"patch_px": 4, "encoder": SHAPE, "predictor": SHAPE})
    encoder = make_encoder(model)
    own.write(Weights("made", model, encoder.state_dict(), which="encoder"), folder / "encoder.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def settings(
    place: Path, run: Path, plan: dict[str, Any] | None = None, precision: str = "fp32", **wished: Any
) -> config.WorldConfig:
    index = str(place / "x.parquet")
    tree = {
        "run": {"dir": str(run), "save_every_steps": 3, "device": "cpu", "precision": precision},
        "data": {
            "train": {"index": index, "where": {"split": "train"}},
            "val": {"index": index, "where": {"split": "val"}},
            "num_frames": 4,
            "frame_step": 2,
            "actions": "sum",
            "crop_px": SIDE,
            "fit": "squash",
            "global_batch": 4,
            "workers": 0,
        },
        "world": {
            "model_path": str(place / "encoder.safetensors"),
            "goal_width": 8,
            "predictor": {"width": 16, "depth": 1, "heads": 2},
            **wished,
        },
        "optim": {"total_steps": 6, "lr": 1e-3},
        "plan": {"samples": 8, "rounds": 2, "elites": 3, "horizon": 2, "episodes": 2, **(plan or {})},
    }
    return config.validate_world(tree, "test")


VECTOR = {"latents": "vector", "vector_width": 4, "grid_side": 2, "inverse_weight": 1.0}
KINDS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "not kept": {"latents": "grid", "grid_side": 2, "keep_features": False},
    "vector": VECTOR,
    "end to end": {**VECTOR, "targets": "none", "from_scratch": True, "keep_features": False, "sigreg": 0.1},
}


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    model = world.read(run).model
    return {
        f"{name}.{key}": tensor
        for name, network in model.networks.items()
        for key, tensor in network.state_dict().items()
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_bit_for_bit(kind: str, precision: str, place: Path, tmp_path: Path) -> None:
    whole, parts = (settings(place, tmp_path / name, None, precision, **KINDS[kind]) for name in ("whole", "parts"))
    summary = train_world(whole, progress=False)
    assert summary is not None and len(summary["foresight"]["predicted"]) == 3
    assert train_world(parts, stop_at_step=2, progress=False) is None
    assert train_world(parts, progress=False) is not None
    first, second = weights_of(whole.run.folder.path), weights_of(parts.run.folder.path)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert ("encoder.norm.weight" in first) == (kind == "end to end")


def test_kept_features_teach_what_decoded_frames_do(place: Path, tmp_path: Path) -> None:
    """They are kept in half precision, so that weights agree to that."""
    for name, kept in (("kept", True), ("decoded", False)):
        train_world(settings(place, tmp_path / name, keep_features=kept), progress=False)
    first, second = weights_of(tmp_path / "kept"), weights_of(tmp_path / "decoded")
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=2e-3, rtol=0)


def test_a_run_is_planned_in_and_passed_on(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "world.safetensors"
    train_world(settings(place, run, **VECTOR), progress=False)
    found = running.plan_in(run, ["plan.episodes=1"])
    assert "true one" in capsys.readouterr().out and found["clips"] == 1
    assert set(found["errors"]) == {"planned", "inverse model", "mean action", "random"}
    folder = RunFolder(run).plans / "offline"
    assert json.loads((folder / "plans.json").read_text())["errors"] == found["errors"]
    assert (folder / "energy_0.png").stat().st_size > 0
    assert "differ" in export_file(str(run), "safetensors", out)
    frames, goal = (torch.randint(256, (3, *shape, SIDE, SIDE), dtype=torch.uint8) for shape in ((1,), ()))
    mine, theirs = (vjepa.load_world(path).plan(frames, goal) for path in (run, out))
    assert torch.equal(mine[0], theirs[0]) and mine[1] == theirs[1]
    with pytest.raises(UserError, match="goal: is torch"):
        vjepa.load_world(run).plan(frames, goal.float())
    encoder = vjepa.load_encoder(run)  # probes and features read it as that of any run
    assert encoder.width == SHAPE["width"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_path": "nowhere"}, "world.model_path: nowhere"),
        ({"latents": "vector"}, "world.inverse_weight"),
        ({"state": True}, "world.state"),
    ],
)
def test_bad_input_is_named_before_a_step(changes: dict[str, Any], told: str, place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        train_world(settings(place, tmp_path / "run", **changes), progress=False)


def test_the_best_checkpoint_is_that_which_sees_farthest(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = train_world(settings(place, run, eval_every_steps=2), progress=False)
    rows = [json.loads(line) for line in RunFolder(run).metrics.read_text().splitlines()]
    errors = {row["step"]: row["val_error_3"] for row in rows if "val_error_3" in row}
    assert set(errors) == {2, 4, 6}
    assert summary is not None and summary["measured"]["step"] == min(errors, key=lambda step: errors[step])


# Published files


@pytest.mark.parametrize("state", [False, True])
def test_a_published_predictor_is_read_by_the_names_of_its_weights(state: bool, place: Path, tmp_path: Path) -> None:
    """Wrapped as the training code wraps it, with the token of extrinsics that no training used."""
    torch.manual_seed(0)
    shape = config.WorldPredictor(width=128, depth=2, heads=2, rope="vjepa2", rope_grid=16)
    theirs = ActionPredictor(shape, SHAPE["width"], 7, 7 if state else 0)
    stored = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    stored = {name.replace("state_encoder", "proprio_encoder"): tensor for name, tensor in stored.items()}
    stored["module.extrinsics_encoder.weight"] = torch.zeros(128, 6)
    stored["module.extrinsics_encoder.bias"] = torch.zeros(128)
    path = tmp_path / "jepa_wm.pth.tar"
    torch.save({"predictor": stored, "epoch": 3}, path)
    with pytest.raises(UserError, match="has no encoder"):
        vjepa.load_world(path)
    planner = vjepa.load_world(path, ["data.crop_px=16"], encoder=str(place / "encoder.safetensors"))
    latents, actions, states = torch.randn(1, 3, 4, 4, 24), torch.randn(1, 3, 7), torch.randn(1, 3, 7)
    given = states if state else None
    assert torch.equal(planner.model.predictor(latents, actions, given), theirs(latents, actions, given))
    assert planner.model.actions.rotations == {3: "euler"} and (planner.model.states is not None) == state
    assert planner.bounds.high.tolist() == pytest.approx([0.075, 0.075, 0.075, 0, 0, 0, 0.75])


def test_the_official_file_is_read_with_a_word_on_its_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = config.Model.model_validate(
        {
            "patch_px": 16,
            "rope": "vjepa2",
            "encoder": {"width": 64, "depth": 1, "heads": 1},
            "predictor": {"width": 64, "depth": 1, "heads": 1},
        }
    )
    encoder = {f"module.backbone.{name}": tensor for name, tensor in make_encoder(model).state_dict().items()}
    shape = config.WorldPredictor(width=64, depth=1, heads=1)
    predictor = ActionPredictor(shape, 64, 7, 7)
    stored = {f"module.backbone.{name}": tensor for name, tensor in predictor.state_dict().items()}
    path = tmp_path / "vjepa2-ac-vitg.pt"
    torch.save({"encoder": encoder, "target_encoder": encoder, "predictor": stored, "epoch": 1}, path)
    planner = vjepa.load_world(path, ["plan.samples=4", "plan.rounds=1", "plan.elites=2"])
    assert "wrong" in capsys.readouterr().err
    frames, goal = torch.zeros(3, 1, 256, 256, dtype=torch.uint8), torch.zeros(3, 256, 256, dtype=torch.uint8)
    actions, energy = planner.plan(frames, goal, torch.zeros(7))
    assert actions.shape == (1, 7) and energy >= 0
