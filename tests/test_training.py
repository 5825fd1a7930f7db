from __future__ import annotations

import errno
import itertools
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from steps import batch_of, step_of

from vjepa import config, device, schedules
from vjepa.errors import UserError
from vjepa.jepa import Jepa, build
from vjepa.models import ema
from vjepa.models.state import load_strictly, read_tensors
from vjepa.records import ClipBatch
from vjepa.run_folder import RunFolder
from vjepa.training import checkpoint, optim, run_log, stopping
from vjepa.training.open_run import open_run

pytestmark = pytest.mark.fast


def settings(*overrides: str, **tree: object) -> config.Config:
    base = {
        "run": {"dir": "unused"},
        "data": {"train": "x.parquet", "num_frames": 4, "crop_px": 16},
        "model": {
            "patch_px": 8,
            "encoder": {"width": 24, "depth": 1, "heads": 2},
            "predictor": {"width": 12, "depth": 1, "heads": 2},
        },
        "optim": {"total_steps": 10},
    }
    return config.validate({**base, **tree}, "test")


def trained(model: Jepa, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)
        optimizer.step()


def test_schedules_reach_their_ends() -> None:
    plan = config.Optim(total_steps=100, warmup_steps=10, lr=1.0, final_lr=0.1)
    rate = [schedules.learning_rate(step, 100, plan) for step in range(100)]
    assert 0 < rate[0] < rate[5] < rate[9] < rate[10] == 1.0 and rate[99] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rate[10:]))
    assert rate[55] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 45 / 89)) / 2)
    assert schedules.linear(0, 5, 0.99, 1.0) == 0.99 and schedules.linear(4, 5, 0.99, 1.0) == 1.0
    assert schedules.cosine(0, 0, 1, 0.5, 0.1) == 0.5  # a run of one step
    line = plan.model_copy(update={"lr_shape": "linear", "start_lr": 0.5})
    rate = [schedules.learning_rate(step, 100, line) for step in range(100)]
    assert rate[0] == pytest.approx(0.5 + 0.5 / 11) and rate[10] == 1.0 and rate[99] == pytest.approx(0.1)
    assert rate[54] == pytest.approx(1 - 0.9 * 44 / 89)
    assert [schedules.ramp(step, 2, 6) for step in (0, 2, 3, 6, 9)] == [0, 0, 0.25, 1, 1] and schedules.ramp(
        0, 0, 0
    ) == 1


def test_a_stretched_schedule_ends_where_the_published_runs_did() -> None:
    """V-JEPA 1 and V-JEPA 2's cool-down, measured on the reference code."""
    for name, lr, decay, ema_decay in (
        ("vjepa1_vitl16", 7.5e-5, 0.3656, 0.9996),
        ("vjepa2_vitl16_cooldown", 1.058e-4, 0.04, 0.99925),
    ):
        plan = config.load(name).optim
        total = schedules.laid_out(plan.total_steps, plan)
        last = plan.total_steps - 1
        assert schedules.learning_rate(last, total, plan) == pytest.approx(lr, rel=0.03)
        assert schedules.cosine(last, 0, total, plan.weight_decay, plan.final_weight_decay) == pytest.approx(
            decay, abs=2e-4
        )
        assert schedules.linear(last, total, plan.ema_decay, plan.final_ema_decay) == pytest.approx(ema_decay, abs=1e-6)


def test_weight_decay_leaves_biases_and_norms_alone() -> None:
    model, optim_settings = (
        build(settings()),
        config.Optim(total_steps=10, lr=1e-3, weight_decay=0.1, final_weight_decay=0.3),
    )
    optimizer = optim.make_optimizer(model, optim_settings)
    optim.set_schedules(optimizer, optim_settings, 9, 10)
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if name.startswith("target_encoder"):
            assert id(parameter) not in decays
        else:
            assert decays[id(parameter)] == pytest.approx(0.0 if parameter.ndim == 1 else 0.3), name


def test_ema_against_its_formula() -> None:
    source, target = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    expected = [
        0.9 * old.detach() + 0.1 * new.detach()
        for old, new in zip(target.parameters(), source.parameters(), strict=True)
    ]
    ema.update(target, source, 0.9)
    for parameter, value in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value)


def test_checkpoint_gives_back_every_bit(tmp_path) -> None:
    model, other = build(settings()), build(settings(run={"dir": "unused", "seed": 1}))
    optimizer, other_optimizer = (optim.make_optimizer(each, settings().optim) for each in (model, other))
    trained(model, optimizer, 3)
    state = checkpoint.TrainingState(step=3, memory={"embedding_unit": 0.1 + 0.2})
    state.note(ClipBatch(torch.empty(0), torch.empty(0), ((7, "empty file"), (7, "empty file")), num_replaced=2))
    checkpoint.save(RunFolder(tmp_path), model, optimizer, state, keep=2)
    assert checkpoint.restore(RunFolder(tmp_path), other, other_optimizer) == state
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    torch.manual_seed(0)
    trained(model, optimizer)
    torch.manual_seed(0)
    trained(other, other_optimizer)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())
    assert state.num_replaced == 2 and state.unreadable == {"7": "empty file"}


def test_a_run_goes_on_that_has_parameters_without_a_gradient(tmp_path) -> None:
    """Such as what images need, before the first image."""
    narrow = {
        "patch_px": 8,
        "encoder": {"width": 24, "depth": 1, "heads": 2},
        "predictor": {"width": 12, "depth": 1, "heads": 2, "mask_tokens": 6},
    }
    plan = settings(model={**narrow, "image_mode": "own", "modality_embedding": True})
    model = build(plan)
    optimizer = optim.make_optimizer(model, plan.optim)
    clips = torch.randint(256, (4, 3, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    step_of(plan, model, optimizer=optimizer)(0, batch_of(clips))
    checkpoint.save(RunFolder(tmp_path), model, optimizer, checkpoint.TrainingState(1), keep=1)
    again = optim.make_optimizer(model, plan.optim)
    assert checkpoint.restore(RunFolder(tmp_path), model, again).step == 1
    unused = {model.encoder.img_mod_embed, *model.predictor.mask_tokens[4:]}
    assert (
        unused.isdisjoint(again.state)
        and model.encoder.video_mod_embed in again.state
        and again.state.keys() == optimizer.state.keys()
    )


def test_checkpoints_are_rotated_and_a_crash_leaves_the_last_one(tmp_path, monkeypatch) -> None:
    model = build(settings())
    optimizer = optim.make_optimizer(model, settings().optim)
    trained(model, optimizer)
    for step in (1, 2, 3):
        checkpoint.save(RunFolder(tmp_path), model, optimizer, checkpoint.TrainingState(step), keep=2)
    names = sorted(os.listdir(tmp_path / "checkpoints"))
    assert names == ["latest", "step-00000002", "step-00000003"]

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "_moments", full_disk)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(RunFolder(tmp_path), model, optimizer, checkpoint.TrainingState(4), keep=2)
    monkeypatch.undo()
    assert checkpoint.restore(RunFolder(tmp_path), model, optimizer).step == 3


def test_an_old_checkpoint_that_is_still_read_elsewhere_does_not_end_a_run(tmp_path, monkeypatch) -> None:
    """NFS and FUSE keep an open file in its folder, which then is not empty."""
    model = build(settings())
    optimizer = optim.make_optimizer(model, settings().optim)
    trained(model, optimizer)
    run, names = RunFolder(tmp_path), lambda: sorted(os.listdir(tmp_path / "checkpoints"))

    def is_busy(path: str, **_: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", path)

    checkpoint.save(run, model, optimizer, checkpoint.TrainingState(1), keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", is_busy)
        checkpoint.save(run, model, optimizer, checkpoint.TrainingState(2), keep=1)
    left, *whole = names()
    assert left.startswith(".partial-") and whole == ["latest", "step-00000002"]
    checkpoint.save(run, model, optimizer, checkpoint.TrainingState(3), keep=1)
    assert names() == ["latest", "step-00000003"]


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the kernel does not say what is mapped")
def test_a_run_that_goes_on_holds_no_file_of_its_checkpoint(tmp_path) -> None:
    model = build(settings())
    optimizer = optim.make_optimizer(model, settings().optim)
    trained(model, optimizer)
    checkpoint.save(RunFolder(tmp_path), model, optimizer, checkpoint.TrainingState(1), keep=1)
    checkpoint.restore(RunFolder(tmp_path), model, optimizer)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_weights_of_another_shape_are_refused_by_name(tmp_path) -> None:
    model = build(settings())
    optimizer = optim.make_optimizer(model, settings().optim)
    trained(model, optimizer)
    folder = checkpoint.save(RunFolder(tmp_path), model, optimizer, checkpoint.TrainingState(1), keep=1)
    file = folder.network("encoder")
    wider = build(settings(model={"patch_px": 8, "encoder": {"width": 48, "depth": 1, "heads": 2}}))
    with pytest.raises(UserError, match=r"encoder.safetensors: \S+ has shape \[.*\], this network needs \["):
        load_strictly(wider.encoder, read_tensors(file), file)
    deeper = build(settings(model={"patch_px": 8, "encoder": {"width": 24, "depth": 2, "heads": 2}}))
    with pytest.raises(UserError, match=r"blocks\.1\.\S+ is missing \(and \d+ more\)"):
        load_strictly(deeper.encoder, read_tensors(file), file)
    file.write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_strictly(model.encoder, read_tensors(file), file)


def test_a_run_folder_belongs_to_one_config(tmp_path) -> None:
    folder = tmp_path / "run"
    first = settings(run={"dir": str(folder)})
    open_run(first)
    before = (folder / "config.yaml").read_text()
    open_run(
        settings(
            run={"dir": str(folder), "save_every_steps": 7},
            data={"train": "x.parquet", "num_frames": 4, "crop_px": 16, "workers": 0},
        )
    )
    with pytest.raises(UserError, match=rf"made with another config \(optim.lr was {first.optim.lr}, now 0.01\)"):
        open_run(settings(run={"dir": str(folder)}, optim={"total_steps": 10, "lr": 0.01}))
    assert (folder / "config.yaml").read_text() == before
    (folder / "config.yaml").write_text(before.replace("  reversal: 1.0\n", ""))  # of a version without that setting
    with pytest.raises(UserError, match=r"objective.reversal was None, now 1.0"):
        open_run(settings(run={"dir": str(folder)}))
    assert {"torch", "commit", "threads"} <= {*json.loads((folder / "environment.json").read_text()), "torch"}


def test_a_folder_of_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not a run folder"):
        open_run(settings(run={"dir": str(tmp_path)}))
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_machine_without_git_trains_and_names_no_commit(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    folder = open_run(settings(run={"dir": str(tmp_path / "run")}))
    assert json.loads(folder.environment.read_text())["commit"] is None


def test_log_drops_what_came_after_the_checkpoint_and_a_torn_line(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "loss": 0.5}\n{"step": 3')
    log = run_log.RunLog(RunFolder(tmp_path), first_step=10)
    log.write(20, {"loss": 0.4})
    log.close()
    assert run_log.read_metrics(RunFolder(tmp_path)) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.4}]


def test_a_device_that_is_not_there_is_an_error() -> None:
    if not torch.backends.mps.is_available():
        with pytest.raises(UserError, match=r"no mps device on this machine; use run.device=auto"):
            device.pick(config.Run(device="mps"))
    assert device.pick(config.Run(device="cpu", precision="bf16")) == (torch.device("cpu"), torch.bfloat16)


def test_compiling_without_a_compiler_is_an_error(monkeypatch) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device.shutil, "which", lambda name: "/usr/bin/clang" if name == "clang" else None)
    compiled = config.Run(compile=True)
    device.check_compiler(compiled, torch.device("cuda"))
    device.check_compiler(config.Run(), torch.device("cpu"))
    with pytest.raises(UserError, match=r"run\.compile: torch\.compile needs a compiler, and .*g\+\+ is not found"):
        device.check_compiler(compiled, torch.device("cpu"))
    monkeypatch.setenv("CXX", "clang")
    device.check_compiler(compiled, torch.device("cpu"))


@pytest.mark.fast
def test_the_shadow_is_the_rounded_average_and_follows_it() -> None:
    model = build(settings())
    shadow = ema.Shadow(model.target_encoder, torch.bfloat16)
    for _ in range(2):
        for name, parameter in shadow.encoder.named_parameters():
            exact = model.target_encoder.get_parameter(name)
            assert exact.dtype == torch.float32 and torch.equal(parameter, exact.to(parameter.dtype)), name
        assert shadow.encoder.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
        assert shadow.encoder.norm.weight.dtype == torch.float32
        for parameter in model.target_encoder.parameters():
            parameter.data.add_(0.1)
        shadow.refresh()
    assert ema.Shadow(model.target_encoder, torch.float32).encoder is model.target_encoder


def test_a_step_in_bf16_gives_the_losses_of_fp32_within_its_error() -> None:
    """The fast path of CPUs (explicit attention, shadow of the target encoder, autocast) against the plain one, over
    several updates.
    """
    losses = {}
    networks = {
        "patch_px": 8,
        "encoder": {"width": 48, "depth": 2, "heads": 4},
        "predictor": {"width": 24, "depth": 1, "heads": 2},
    }
    for dtype in (torch.float32, torch.bfloat16):
        plan = settings(model=networks, masks=[{"kind": "tube", "ratio": ratio} for ratio in (0.5, 0.75)])
        model = build(plan)
        step = step_of(plan, model, dtype)
        clips = torch.randint(256, (4, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        losses[dtype] = [step(number, batch_of(clips))["loss"].item() for number in range(6)]
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.02)
    assert losses[torch.bfloat16] != losses[torch.float32]


@pytest.mark.fast
def test_a_teacher_is_cast_once_and_stays_as_it_is() -> None:
    plan = settings(objective={"targets": "frozen", "teacher": "elsewhere"})
    teacher = build(settings()).encoder.requires_grad_(False).eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    model = build(plan, teacher)
    step = step_of(plan, model, torch.bfloat16)
    assert (
        model.shadow is None
        and teacher.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
        and teacher.norm.weight.dtype == torch.float32
    )
    clips = torch.randint(256, (4, 3, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert all(step(number, batch_of(clips))["loss"].isfinite() for number in range(2))
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name].to(tensor.dtype)), name


@pytest.mark.fast
def test_a_stop_whose_exit_a_library_swallowed_ends_the_run_all_the_same(monkeypatch) -> None:
    monkeypatch.setattr(stopping, "_unheeded", [])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        stopping.exit_when_stopped(75)
        with pytest.raises(SystemExit) as left:
            signal.raise_signal(signal.SIGTERM)
        assert left.value.code == 75
        with stopping.interruptible() as received:
            assert received == [signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
