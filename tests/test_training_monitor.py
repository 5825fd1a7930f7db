"""The monitor in a run: it changes nothing, goes on where it stopped, ends a run that it is told to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_runs import losses, metrics, same_weights, settings
from steps import step_of

from vjepa import config
from vjepa.errors import UserError
from vjepa.health.verdict import Verdict
from vjepa.jepa import build
from vjepa.run_folder import RunFolder
from vjepa.train import ENDED_BY_MONITOR, main
from vjepa.training import monitor, run_log
from vjepa.training.monitor import HealthMonitor, join, measure
from vjepa.training.pretraining import train

KINDS: dict[str, dict] = {
    "ema": {},
    "two mask sets": {"masks": [{"kind": "tube", "ratio": 0.5}, {"kind": "random", "ratio": 0.5}]},
    "blocks": {"masks": [{"kind": "ijepa"}], "data": {"crop_px": 64}},
    "levels": {"model": {"levels": 4, "level_norms": True, "encoder": {"width": 24, "depth": 4, "heads": 2}}},
    "pixels": {"objective": {"targets": "pixels", "loss": "mse"}},
    "none": {"objective": {"targets": "none", "sigreg": 0.05}},
    "views": {
        "objective": {"targets": "none", "prediction": 0, "view_invariance": 1, "sigreg": 0.05},
        "masks": [{"kind": "random", "ratio": 0.5}] * 2,
    },
    "drop path": {"model": {"encoder": {"width": 24, "depth": 2, "heads": 2, "drop_path": 0.3}}},
}
SMALL = {"encoder": {"width": 24, "depth": 2, "heads": 2}, "predictor": {"width": 12, "depth": 1, "heads": 2}}


def tree(kind: str, **sections: dict) -> dict:
    """Small networks of a kind, and further sections."""
    given = KINDS[kind]
    return {**given, "model": {"patch_px": 8, **SMALL, **given.get("model", {})}, **sections}


def measured(folder: str | None) -> dict[int, dict]:
    return {
        row["step"]: {name: value for name, value in row.items() if name.startswith("health/")}
        for row in metrics(folder)
        if "health/spread" in row
    }


@pytest.mark.parametrize("kind", ["ema", "drop path", "views"])
def test_a_run_with_the_monitor_learns_the_same_bit_for_bit(clips, kind) -> None:
    watched = settings(clips, "watched", **tree(kind, monitor={"every_steps": 2, "clips": 4}))
    plain = settings(clips, "plain", **tree(kind, monitor={"every_steps": None}))
    train(watched, progress=False)
    train(plain, progress=False)
    assert losses(watched.run.dir) == losses(plain.run.dir) and same_weights(watched, plain)
    assert list(measured(watched.run.dir)) == [0, 2, 4, 6] and not measured(plain.run.dir)


def test_what_it_measured_and_said_goes_on_after_a_stop(clips) -> None:
    """Equal numbers, though the second half was measured by another process: clips and masks are fixed."""
    whole, parts = (settings(clips, name, monitor={"every_steps": 2, "clips": 4}) for name in ("whole", "parts"))
    summary = train(whole, progress=False)
    train(parts, stop_at_step=3, progress=False)
    assert list(measured(parts.run.dir)) == [0, 2]
    resumed = train(parts, progress=False)
    assert summary is not None and resumed is not None
    assert measured(whole.run.dir) == measured(parts.run.dir) and summary["verdict"] == resumed["verdict"]
    assert {"state", "rule", "advice", "step"} == summary["verdict"].keys() and not summary["ended_early"]


def test_every_network_apart_every_mask_set_apart(clips) -> None:
    run = settings(clips, "run", **tree("two mask sets", monitor={"every_steps": 3, "clips": 4}))
    train(run, progress=False)
    row = metrics(run.run.dir)[3]
    assert (
        row["step"] == 3
        and {f"gradient/{name}" for name in ("encoder", "predictor")} <= row.keys()
        and "loader_wait" in row
    )
    names = {"rank_context_0", "rank_context_1", "rank_target", "rank_prediction_0", "std_prediction_1", "lidar_half"}
    names |= {"encoder_distance", "ema_half_life_steps", "mean_cosine", "position_share", "skill", "place_skill"}
    assert {f"health/{name}" for name in names} <= row.keys()
    sets = [row[f"health/fixed_loss_{number}"] for number in (0, 1)]
    assert row["health/fixed_loss"] == pytest.approx(sum(sets) / 2)  # of train clips: none are held out
    held = settings(clips, "held", data={"selection": str(clips)}, monitor={"every_steps": 3})
    train(held, progress=False)
    assert "health/held_out_loss" in metrics(held.run.dir)[-1]


@pytest.mark.fast
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_target_is_observed_and_nothing_is_drawn(tmp_path, kind) -> None:
    run = settings(tmp_path / "none.parquet", "run", **tree(kind))
    method = build(run)
    step, side = step_of(run, method), run.data.crop_px
    videos = torch.randint(256, (6, 3, 4, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, state = torch.get_rng_state(), {name: tensor.clone() for name, tensor in method.state_dict().items()}
    seen = step.observe(videos)
    assert torch.equal(torch.get_rng_state(), before) and method.training and method.encoder.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in method.state_dict().items())
    assert len(seen.predictions) == len(seen.target_ids) == (len(run.masks) if run.objective.predicts else 0)
    for tokens, ids in zip(seen.predictions, seen.target_ids, strict=True):
        assert tokens.shape == (6, len(ids), seen.targets.shape[-1])
    assert all(views.shape[0] == 6 and views.shape[1] >= 3 for views in seen.contexts.values())
    halves = join([step.observe(videos[:2]), step.observe(videos[2:])])
    whole = measure(seen, run.objective, "fixed_loss")
    assert measure(halves, run.objective, "fixed_loss") == pytest.approx(whole, rel=1e-3, abs=1e-4)


@pytest.mark.fast
def test_the_loss_of_prediction_is_that_of_training_on_the_same_clips_and_masks(tmp_path) -> None:
    """With one mask for every clip, `terms` would give it."""
    run = settings(tmp_path / "none.parquet", "run", **tree("two mask sets", objective={"loss": "l1"}))
    method = build(run)
    step = step_of(run, method)
    videos = torch.randint(256, (5, 3, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = step.observe(videos)
    by_hand = [
        (tokens - seen.targets[:, ids]).abs().mean()
        for tokens, ids in zip(seen.predictions, seen.target_ids, strict=True)
    ]
    found = measure(seen, run.objective, "fixed_loss")
    assert found["fixed_loss"] == pytest.approx(float(sum(by_hand) / 2), rel=1e-5)
    constant = seen.targets.flatten(0, 1).median(dim=0).values
    worse = [(constant - seen.targets[:, ids]).abs().mean() for ids in seen.target_ids]
    assert found["skill"] == pytest.approx(1 - float(sum(by_hand) / sum(worse)), rel=1e-4)


def test_a_verdict_that_is_named_ends_the_run_and_its_summary_says_so(clips, monkeypatch, capsys) -> None:
    def judge(rows: list[dict], total_steps: int) -> Verdict:
        last = max((int(row["step"]) for row in rows if "health/spread" in row), default=0)
        return Verdict("collapsing" if last >= 2 else "healthy", "made up", "lower optim.lr", last)

    monkeypatch.setattr(monitor, "judge", judge)
    monkeypatch.setattr("vjepa.training.pretraining.judge", judge)
    run = settings(clips, "run", monitor={"every_steps": 2, "clips": 4, "stop_on": ["collapsing"]})
    path = clips.parent / "run.yaml"
    path.write_text(config.dump(run))
    assert main([str(path)]) == ENDED_BY_MONITOR
    said = capsys.readouterr()
    assert "step 2: collapsing: made up; lower optim.lr" in said.err and "which ended it early" in said.out
    folder = Path(run.run.dir or "")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["ended_early"] and summary["verdict"]["state"] == "collapsing"
    assert (folder / "checkpoints/latest").resolve().name == "step-00000002"
    assert main([str(path)]) == ENDED_BY_MONITOR and len(losses(run.run.dir)) == 2  # only shown again
    assert main([str(path), "monitor.stop_on=[]"]) == 0 and len(losses(run.run.dir)) == 6
    assert not json.loads((folder / "summary.json").read_text())["ended_early"]


def test_best_without_labels_is_the_newest_that_lidar_does_not_tell_worse(clips, monkeypatch) -> None:
    """Here it falls for good at step 4: what is measured at the end, and in best.pth, is what was saved before."""
    found = HealthMonitor.measure_at

    def falling(self: HealthMonitor, step: int) -> dict[str, float]:
        row = found(self, step)
        return row | {"health/lidar": 9.0 if step < 4 else 2.0, "health/lidar_half": 1.0} if row else row

    monkeypatch.setattr(HealthMonitor, "measure_at", falling)
    tree = {"run": {"save_every_steps": 2, "keep_checkpoints": 1}, "monitor": {"every_steps": 1, "clips": 4}}
    whole, parts = settings(clips, "whole", **tree), settings(clips, "parts", **tree)
    train(whole, progress=False)
    train(parts, stop_at_step=3, progress=False)
    train(parts, progress=False)
    for run in (whole, parts):
        checkpoints = Path(run.run.dir or "") / "checkpoints"
        assert (checkpoints / "best").resolve().name == "step-00000002"
        assert (checkpoints / "latest").resolve().name == "step-00000006"


def test_features_that_are_not_finite_end_the_run_in_one_line(clips) -> None:
    """Decompositions do not take them: the monitor says so before it measures, at a step whose loss was finite."""
    wild = {"lr": 1e30, "warmup_steps": 0, "clip_grad": None}
    run = settings(clips, "run", optim=wild, monitor={"every_steps": 1, "clips": 4}, run={"log_every_steps": 6})
    with pytest.raises(UserError, match=r"features are not finite after step \d; lower optim\.lr"):
        train(run, progress=False)


def test_clips_that_cannot_be_read_are_left_out_and_a_single_one_is_not_measured(clips) -> None:
    for number in range(1, 6):
        (clips.parent / "clips" / f"{number:02}.mp4").write_bytes(b"")
    run = settings(clips, "run", monitor={"every_steps": 2})
    assert train(run, progress=False) is not None and not measured(run.run.dir)


@pytest.mark.fast
def test_weights_and_biases_follows_tensorboard_under_the_name_of_the_run(tmp_path, monkeypatch) -> None:
    """One run folder is one run there, a resumed one too; what is not asked for is not begun."""
    begun, ended = [], []

    class Run:
        def finish(self) -> None:
            ended.append(1)

    class Fake:
        def init(self, **given: object) -> Run:
            begun.append(given)
            return Run()

    monkeypatch.setattr(run_log, "wandb", Fake())
    run_log.RunLog(RunFolder(tmp_path), 0).close()
    assert not begun
    run_log.RunLog(RunFolder(tmp_path), 0, {"optim": {"lr": 1}}).close()
    assert begun[0]["sync_tensorboard"] and begun[0]["id"] == tmp_path.name and begun[0]["resume"] == "allow"
    assert begun[0]["config"] == {"optim": {"lr": 1}} and ended == [1]


@pytest.mark.fast
def test_weights_and_biases_that_is_not_installed_is_one_line(clips, monkeypatch) -> None:
    monkeypatch.setattr(run_log, "wandb", None)
    with pytest.raises(UserError, match=r"monitor\.wandb: wandb is not installed; pip install"):
        train(settings(clips, "run", monitor={"wandb": True}), progress=False)
    assert not (clips.parent / "run").exists()
