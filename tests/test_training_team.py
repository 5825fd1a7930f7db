"""What ranks agree on, and what becomes of a run where one of them goes wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import killed_run
from small_runs import losses, metrics, same_weights, settings
from team import on_ranks

from vjepa import config
from vjepa.errors import NotFinite, UserError
from vjepa.jepa import Jepa
from vjepa.models.state import read_tensors
from vjepa.training import checkpoint
from vjepa.training.optim import make_optimizer
from vjepa.training.pretraining import _networks, train
from vjepa.training.spread import Spread
from vjepa.training.step import TrainingStep
from vjepa.training.team import assemble

ROOT = Path(__file__).parents[1]


def at_step(number: int, action: Any) -> Any:
    """Call `action` on this rank at the terms of a step; gives back `Jepa.terms` as it was."""
    terms = Jepa.terms

    def changed(method: Jepa, batch: Any, step: int, *given: Any) -> Any:
        found = terms(method, batch, step, *given)
        return action(found) or found if step == number else found

    Jepa.terms = changed  # type: ignore[method-assign]


def is_rank(number: int) -> bool:
    return int(os.environ["RANK"]) == number


def spoilt(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**found, "loss": found["loss"] * float("nan")}


def train_spoilt(run: config.Config, steps: list[int]) -> Any:
    if is_rank(1):
        for step in steps:
            at_step(step, spoilt)
    return train(run, progress=False)


def train_and_tell(run: config.Config, steps: list[int]) -> tuple[Any, str]:
    """What it says too, for the error stream of processes that are forked is that of a server."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return train_spoilt(run, steps), said.getvalue()


def test_a_step_that_one_rank_cannot_take_is_taken_by_none(clips) -> None:
    """Weights, moments, their count and the average stay; the rank and its clips are named; the log says how many."""
    run = settings(clips, "run", optim={"total_steps": 3}, run={"save_every_steps": 1, "keep_checkpoints": 9})
    found = on_ranks(2, train_and_tell, run, [1])
    assert found[0][0] == found[1][0] and found[0][0]["steps"] == 3
    kept = [weights_at(run, step) for step in (1, 2, 3)]
    assert all(torch.equal(one, kept[1][key]) for key, one in kept[0].items())
    assert not all(torch.equal(one, kept[2][key]) for key, one in kept[1].items())
    assert {float(kept[2][key]) for key in kept[2] if key.endswith("/step")} == {2.0}
    rows = metrics(run.run.dir)
    assert [row.get("num_skipped", 0) for row in rows if row["step"]] == [0, 1, 1] and len(losses(run.run.dir)) == 2
    assert "step 2: not finite on rank 1, skipped; its clips: " in found[1][1]
    assert "step 2: not finite, skipped" in found[0][1] and "on rank" not in found[0][1]


def train_with_a_spike(run: config.Config, step: int, stop_at: int | None) -> tuple[Any, str]:
    """At a step the loss of rank 1, or of one that is alone, is 50 times as much."""
    if is_rank(1) or os.environ["WORLD_SIZE"] == "1":
        at_step(step, lambda found: {**found, "loss": found["loss"] * 50})
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return train(run, progress=False, stop_at_step=stop_at), said.getvalue()


@pytest.mark.parametrize("num", [1, 2])
def test_a_spike_is_skipped_by_all_and_its_window_is_in_the_checkpoint(clips, num: int) -> None:
    """Before the window is full there is none; a run that was stopped just before knows what is usual."""
    run, stopped, early, off = (
        settings(clips, name, optim={"total_steps": 8}, run={"save_every_steps": 1, "keep_checkpoints": 9}, guard=guard)
        for name, guard in (
            ("run", {"spike_std": 6.0, "spike_window": 4}),
            ("stopped", {"spike_std": 6.0, "spike_window": 4}),
            ("early", {"spike_std": 6.0, "spike_window": 6}),
            ("off", {}),
        )
    )
    told = on_ranks(num, train_with_a_spike, run, 5, None)[0][1]
    assert "step 6: its loss is a spike, skipped" in told and ("its clips: " in told) == (num == 1)
    kept = [weights_at(run, step) for step in (5, 6, 7)]
    assert all(torch.equal(one, kept[1][key]) for key, one in kept[0].items())
    assert not all(torch.equal(one, kept[2][key]) for key, one in kept[1].items())
    assert [row.get("num_skipped", 0) for row in metrics(run.run.dir) if row["step"]] == [0] * 5 + [1] * 3
    on_ranks(num, train_with_a_spike, stopped, 5, 5)
    assert "step 6: its loss is a spike" in on_ranks(num, train_with_a_spike, stopped, 5, None)[0][1]
    whole, resumed = weights_at(run, 8), weights_at(stopped, 8)
    assert whole.keys() == resumed.keys() and all(torch.equal(one, resumed[key]) for key, one in whole.items())
    for other in (early, off):
        assert "spike" not in on_ranks(num, train_with_a_spike, other, 5, None)[0][1]
        assert not torch.equal(weights_at(other, 5)["encoder/norm.weight"], weights_at(other, 6)["encoder/norm.weight"])


def weights_at(run: config.Config, step: int) -> dict[str, torch.Tensor]:
    folder = run.run.folder.checkpoint(step).path
    files = sorted(folder.glob("*.safetensors"))
    return {f"{file.stem}/{name}": one for file in files for name, one in read_tensors(file).items()}


def test_three_in_a_row_end_the_run_with_a_checkpoint_that_goes_on(clips) -> None:
    run = settings(clips, "run", optim={"total_steps": 9})
    found = on_ranks(2, train_spoilt, run, [2, 3, 4])
    assert isinstance(found[0], NotFinite) and "not finite in 3 steps in a row, up to step 5" in str(found[0])
    assert isinstance(found[1], SystemExit)
    kept = weights_at(run, 5)
    assert kept and all(bool(one.isfinite().all()) for one in kept.values())
    assert {float(kept[key]) for key in kept if key.endswith("/step")} == {2.0}
    summary = train(run, progress=False)
    assert summary is not None and summary["steps"] == 9


def stopped_at(run: config.Config, step: int) -> Any:
    if is_rank(1):
        at_step(step, lambda found: os.kill(os.getpid(), signal.SIGTERM))
    return train(run, progress=False)


def hung_at(run: config.Config, step: int) -> Any:
    if is_rank(1):
        at_step(step, lambda found: os.kill(os.getpid(), signal.SIGSTOP))
    began = time.monotonic()
    try:
        return train(run, progress=False)
    except UserError as error:
        return str(error), time.monotonic() - began


def with_other_lr(run: config.Config) -> Any:
    optim = run.optim.model_copy(update={"lr": 0.5}) if is_rank(1) else run.optim
    return train(run.model_copy(update={"optim": optim}), progress=False)


def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_the_run_goes_on_alone(clips) -> None:
    alone, shared = (settings(clips, name, run={"save_every_steps": 100}) for name in ("alone", "shared"))
    assert on_ranks(2, stopped_at, shared, 2) == [None, None]
    assert [one.path.name for one in shared.run.folder.all_checkpoints] == ["step-00000003"]
    train(shared, progress=False)
    train(alone, progress=False)
    assert losses(shared.run.dir) == pytest.approx(losses(alone.run.dir), rel=1e-5)


def test_the_file_stop_ends_a_run_after_a_step_and_holds_until_the_next_start(clips, monkeypatch) -> None:
    """Workers that torchrun starts again, for they ended with 75, are of the same start."""
    run, after_update = settings(clips, "run"), Jepa.after_update

    def asked(method: Jepa, step: int, *given: Any) -> None:
        after_update(method, step, *given)
        if step == 1:
            run.run.folder.stop.touch()

    monkeypatch.setattr(Jepa, "after_update", asked)
    for steps, restarts in ((2, "0"), (3, "1"), (4, "2")):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        assert train(run, progress=False) is None
        assert json.loads(run.run.folder.require().state.read_text())["step"] == steps
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    assert train(run, progress=False) is not None and not run.run.folder.stop.exists()


def test_a_rank_that_hangs_is_named_by_the_others_in_time(clips) -> None:
    run = settings(clips, "run", parallel={"timeout_s": 20.0}, run={"save_every_steps": 1}, optim={"total_steps": 50})
    (told, _), _ = on_ranks(2, hung_at, run, 3, lost=1)
    assert "rank 1 of 2 ended, or did not answer within parallel.timeout_s=20" in told
    assert run.run.folder.require().is_whole


def test_ranks_that_are_not_alike_are_refused_in_one_line(clips) -> None:
    run = settings(clips, "run")
    first, second = on_ranks(2, with_other_lr, run)
    assert isinstance(first, UserError) and str(first).startswith(f"optim.lr: {run.optim.lr} on rank 0, 0.5 on rank 1")
    assert isinstance(second, SystemExit)
    assert not run.run.folder.all_checkpoints


@pytest.mark.fast
def test_a_batch_that_micro_batches_cannot_share_is_refused(clips) -> None:
    with pytest.raises(
        UserError, match=r"4 videos in a batch cannot be shared by 1 ranks x 3 micro-batches \(parallel"
    ):
        train(settings(clips, "run", parallel={"accumulate": 3}), progress=False)
    assert not (clips.parent / "run").exists()


def loaded(run: config.Config, kind: str) -> dict[str, torch.Tensor]:
    """What a run goes on from, gathered from all ranks: networks and moments."""
    with assemble(run) as team:
        method, _ = _networks(run)
        spread = Spread(method, team, kind)  # type: ignore[arg-type]
        optimizer = make_optimizer(method, run.optim)
        checkpoint.restore(run.run.folder, method, optimizer)
        step = TrainingStep(method, optimizer, run.optim, torch.float32, 6, spread=spread)
        copied = checkpoint.snapshot(step.method, optimizer, checkpoint.TrainingState())
    assert copied is not None
    return {
        f"{file}/{name}": one
        for file, kept in (copied.networks | {"optimizer": copied.moments}).items()
        for name, one in kept.items()
    }


def test_what_two_ranks_saved_is_loaded_by_one_and_by_four_bit_for_bit(clips) -> None:
    run = settings(clips, "run", parallel={"kind": "fsdp2"}, optim={"total_steps": 2})
    on_ranks(2, train, run, None, False)
    kept = weights_at(run, 2)
    for found in [loaded(run, "alone"), *on_ranks(4, loaded, run, "fsdp2"), *on_ranks(2, loaded, run, "ddp")]:
        assert found.keys() == kept.keys() and all(torch.equal(found[key], one) for key, one in kept.items())


def test_ranks_that_are_killed_start_again_and_the_run_ends_as_if_undisturbed(clips) -> None:
    """One of them at a random moment, one inside a save; tests/benchmarks/kills.py kills 50."""
    length = {"optim": {"total_steps": 60, "warmup_steps": 2}, "monitor": {"every_steps": None}}
    whole, killed = (settings(clips, name, run={"save_every_steps": 3}, **length) for name in ("whole", "killed"))
    path = clips.parent / "killed.yaml"
    path.write_text(config.dump(killed))
    assert on_ranks(2, train, whole, None, False) != [None, None]
    assert killed_run(clips.parent, [str(path)], killed.run.folder, 2, kills=2, seed=0, most_s=0.1) == 2
    assert same_weights(whole, killed)
    assert losses(whole.run.dir) == losses(killed.run.dir)


def test_the_command_under_torchrun_closes_with_the_probes_of_one_process(clips) -> None:
    """One run folder, one log; the passes of online and closing probes are shared."""
    parts = {name: {"index": str(clips), "where": {"split": name}} for name in ("val", "selection")}
    probed = {"data": parts, "eval": {"every_steps": 2}, "optim": {"total_steps": 2, "warmup_steps": 1}}
    alone, shared = settings(clips, "alone", **probed), settings(clips, "shared", **probed)
    path = clips.parent / "shared.yaml"
    path.write_text(config.dump(shared))
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", *launcher, "-m", "vjepa.train", str(path)]
    answer = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("step 0 of 2") == 1 and "effective rank" in answer.stdout
    expected = train(alone, progress=False)
    found = json.loads(shared.run.folder.summary.read_text())
    assert expected is not None and found["probes"].keys() == expected["probes"].keys()
    assert found["collapse"]["effective_rank"] == pytest.approx(expected["collapse"]["effective_rank"], rel=1e-2)
    assert losses(shared.run.dir) == pytest.approx(losses(alone.run.dir), rel=1e-5)
    assert [row["knn"] for row in metrics(shared.run.dir) if "knn" in row] == [
        row["knn"] for row in metrics(alone.run.dir) if "knn" in row
    ]
