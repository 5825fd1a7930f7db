"""What a run checks before its first step, what it refuses to save, and what it goes on from."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from small_runs import losses, same_weights, settings, weights

from vjepa import command, config, device, load_encoder
from vjepa.errors import NotFinite, UserError
from vjepa.jepa import Jepa
from vjepa.training import checkpoint, pretraining, progress
from vjepa.training.pretraining import train


def with_run(run: config.Config, **changes: object) -> config.Config:
    return run.model_copy(update={"run": run.run.model_copy(update=changes)})


def state_of(run: config.Config) -> Path:
    return Path(run.run.dir or "", "checkpoints", "latest", "state.json")


def test_weights_that_are_not_finite_are_never_saved(clips, monkeypatch) -> None:
    """The loss of a step is that of the weights before it: it may be finite where the gradient is not."""
    run = settings(clips, "run", run={"save_every_steps": 3})
    assert train(run, stop_at_step=2, progress=False) is None
    before, terms = weights(run.run.dir), Jepa.terms

    def poisoned(method: Jepa, *given: object) -> dict[str, torch.Tensor]:
        found = terms(method, *given)
        weight = next(method.encoder.parameters())
        return {**found, "loss": found["loss"] + (weight.sum() * 0).sqrt()}  # 0, and its gradient is not a number

    monkeypatch.setattr(Jepa, "terms", poisoned)
    with pytest.raises(NotFinite, match=r"not finite in 3 steps in a row, up to step 5; lower optim\.lr or set"):
        train(run, progress=False)
    after = weights(run.run.dir)
    assert all(torch.equal(after[file][name], tensor) for file, kept in before.items() for name, tensor in kept.items())
    assert json.loads(state_of(run).read_text())["num_skipped"] == 3
    monkeypatch.undo()
    assert train(run, progress=False) is not None


def test_a_run_goes_on_in_its_precision_unless_asked(clips, monkeypatch) -> None:
    run = settings(clips, "run", run={"precision": "auto"})
    monkeypatch.setattr(device, "bf16_is_fast", lambda where: True)
    assert train(run, stop_at_step=2, progress=False) is None
    assert json.loads(state_of(run).read_text())["dtype"] == "bfloat16"
    monkeypatch.setattr(device, "bf16_is_fast", lambda where: False)
    with pytest.raises(UserError, match=r"was trained in bfloat16 so far.*run\.precision=bf16.*run\.precision=fp32"):
        train(run, progress=False)
    assert json.loads(state_of(run).read_text())["step"] == 2
    assert train(with_run(run, precision="bf16"), stop_at_step=4, progress=False) is None
    assert train(with_run(run, precision="fp32"), progress=False) is not None  # asked for
    monkeypatch.setattr(device, "bf16_is_fast", lambda where: True)
    assert train(run, progress=False) is not None  # finished: only shown
    assert json.loads(state_of(run).read_text())["dtype"] == "float32"


def test_a_newer_format_is_named_before_anything_else_is_read(clips) -> None:
    run = settings(clips, "run")
    assert train(run, stop_at_step=2, progress=False) is None
    checkpoint = state_of(run).parent
    newer = {"format_version": 99, "step": 2, "something": "new"}
    (checkpoint / "state.json").write_text(json.dumps(newer))
    (checkpoint / "optimizer.safetensors").rename(checkpoint / "moments.safetensors")
    with pytest.raises(UserError, match=r"checkpoint format 99, this version of vjepa reads up to"):
        train(run, progress=False)
    with pytest.raises(UserError, match=r"checkpoint format 99"):
        train(settings(clips, "other", run={"init_from": run.run.dir}), progress=False)


def test_a_checkpoint_of_the_first_format_goes_on(clips) -> None:
    whole, parts = settings(clips, "whole"), settings(clips, "parts")
    train(whole, progress=False)
    train(parts, stop_at_step=3, progress=False)
    state = json.loads(state_of(parts).read_text())
    del state["dtype"]
    state_of(parts).write_text(json.dumps({**state, "format_version": 1}))
    train(parts, progress=False)
    assert losses(whole.run.dir) == losses(parts.run.dir)


@pytest.mark.parametrize("holder", ["alive", "dead", "elsewhere", "nobody"])
def test_where_nothing_can_be_locked_a_living_process_of_this_host_is_believed(clips, monkeypatch, holder) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    run, host = settings(clips, "run"), platform.node()
    assert train(run, stop_at_step=1, progress=False) is None
    monkeypatch.setattr(fcntl, "flock", refused)
    names = {"alive": f"{host} {os.getppid()}", "dead": f"{host} {2**22 + 1}", "elsewhere": "far 1", "nobody": ""}
    run.run.folder.lock.write_text(names[holder])
    if holder == "alive":
        with pytest.raises(UserError, match=rf"process {os.getppid()} on {host} trains here now"):
            train(run, progress=False)
    else:
        assert train(run, progress=False) is not None


def _without_links(source: Path, copy: Path) -> None:
    shutil.copytree(source, copy, symlinks=True)
    for link in [path for path in copy.rglob("*") if path.is_symlink()]:
        link.unlink()


def _links_followed(source: Path, copy: Path) -> None:
    shutil.copytree(source, copy, symlinks=False)


def _only_the_newest(source: Path, copy: Path) -> None:
    """As someone does who takes the folder `latest` for the checkpoint."""
    _links_followed(source, copy)
    for folder in copy.glob("checkpoints/step-*"):
        shutil.rmtree(folder)


@pytest.mark.parametrize("copy", [_without_links, _links_followed, _only_the_newest])
def test_a_copied_run_goes_on_bit_for_bit(clips, copy) -> None:
    """As rclone and cloud drives copy it, as scp and zip do; the best checkpoint is an older one in all of them."""
    parts = {name: {"index": str(clips), "where": {"split": name}} for name in ("val", "selection")}
    probed = {"data": parts, "eval": {"every_steps": 1}, "run": {"keep_checkpoints": 1, "save_every_steps": 2}}
    whole, half = settings(clips, "whole", **probed), settings(clips, "half", **probed)
    assert train(half, stop_at_step=4, progress=False) is None
    copied = settings(clips, "copied", **probed)
    copy(Path(half.run.dir or ""), Path(copied.run.dir or ""))
    expected, summary = train(whole, progress=False), train(copied, progress=False)
    assert losses(copied.run.dir) == losses(whole.run.dir) and same_weights(copied, whole)
    assert summary is not None and expected is not None and summary["measured"] == expected["measured"]
    folders = [run.run.folder.checkpoints for run in (copied, whole)]
    named = [{path.name: path.resolve().name for path in folder.iterdir()} for folder in folders]
    assert named[0] == named[1] and {"latest", "best"} < named[0].keys()


def test_on_a_disk_without_links_files_name_the_checkpoints(clips, monkeypatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    whole, parts = settings(clips, "whole"), settings(clips, "parts")
    train(whole, progress=False)
    monkeypatch.setattr(Path, "symlink_to", refused)
    train(parts, stop_at_step=3, progress=False)
    train(parts, progress=False)
    assert losses(whole.run.dir) == losses(parts.run.dir) and same_weights(whole, parts)
    latest = parts.run.folder.checkpoints / "latest"
    assert latest.is_file() and latest.read_text() == "step-00000006\n"
    video = torch.rand(1, 3, 4, 16, 16)
    assert torch.equal(load_encoder(latest)(video), load_encoder(parts.run.folder.path)(video))


def test_a_checkpoint_that_was_cut_off_is_passed_over_and_named(clips, capsys) -> None:
    whole, parts = settings(clips, "whole"), settings(clips, "parts", run={"save_every_steps": 2})
    train(whole, progress=False)
    train(parts, stop_at_step=5, progress=False)
    newest = parts.run.folder.checkpoint(5)
    with newest.moments.open("r+b") as file:
        file.truncate(100)
    capsys.readouterr()
    train(parts, progress=False)
    said = capsys.readouterr().err
    assert "step-00000005: is not whole, so step-00000004 is gone on from" in said
    assert losses(whole.run.dir) == losses(parts.run.dir) and same_weights(whole, parts)


@pytest.mark.parametrize("name", ["encoder", "target_encoder", "predictor", "optimizer"])
def test_a_checkpoint_that_was_damaged_is_set_aside_and_named(clips, capsys, name) -> None:
    """A single bit, in a file of the right length."""
    whole, parts = settings(clips, "whole"), settings(clips, "parts", run={"save_every_steps": 2})
    train(whole, progress=False)
    train(parts, stop_at_step=5, progress=False)
    damaged = parts.run.folder.checkpoint(5).path / f"{name}.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 4
    damaged.write_bytes(content)
    capsys.readouterr()
    train(parts, progress=False)
    told = "does not hold what was written; set aside as damaged-step-00000005, and step-00000004 is gone on from"
    assert f"step-00000005/{name}.safetensors: {told}" in capsys.readouterr().err
    assert (parts.run.folder.checkpoints / "damaged-step-00000005" / damaged.name).read_bytes() == content
    assert losses(whole.run.dir) == losses(parts.run.dir) and same_weights(whole, parts)


def test_a_disk_that_is_full_while_a_checkpoint_is_written_costs_that_checkpoint_alone(
    clips, monkeypatch, capsys
) -> None:
    """The thread that writes tells by the next save, the command in one line; it goes on where there is room."""
    whole, run = settings(clips, "whole"), settings(clips, "run", run={"save_every_steps": 1})
    train(whole, progress=False)
    save, num_files = checkpoint.save_file, iter(range(99))

    def full(*given: object) -> None:
        if next(num_files) >= 6:  # inside of the second checkpoint of four files
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(*given)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(SystemExit) as exit:
        command.run(lambda _: 0 if train(run, progress=False) else 1)
    assert exit.value.code == 2
    assert re.search(r"^error: cannot be written: No space left on device .*make room", capsys.readouterr().err, re.M)
    assert [one.path.name for one in run.run.folder.all_checkpoints] == ["step-00000001"]
    assert run.run.folder.newest.is_whole and not list(run.run.folder.checkpoints.glob(".*"))
    monkeypatch.undo()
    train(run, progress=False)
    assert losses(whole.run.dir) == losses(run.run.dir) and same_weights(whole, run)


def test_where_the_only_checkpoint_is_damaged_nothing_begins_anew(clips) -> None:
    run = settings(clips, "run")
    train(run, stop_at_step=1, progress=False)
    state = run.run.folder.checkpoint(1)
    with state.moments.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    with pytest.raises(UserError, match=r"optimizer\.safetensors: does not hold .* no checkpoint before it; remove"):
        train(run, progress=False)
    assert state.is_whole


def test_a_run_without_a_name_has_one_folder(clips, tmp_path, monkeypatch) -> None:
    """Its copy of a teacher too: the teacher's own run may go."""
    monkeypatch.chdir(tmp_path)
    teacher = settings(clips, "teacher", objective={"targets": "pixels", "loss": "mse"})
    train(teacher, stop_at_step=1, progress=False)
    frozen = {"targets": "frozen", "teacher": teacher.run.dir}
    run = with_run(settings(clips, "unused", objective=frozen), dir=None)
    assert train(run, stop_at_step=2, progress=False) is None
    (clips.parent / "teacher").rename(clips.parent / "gone")
    assert train(run, progress=False) is not None
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["unnamed"]
    assert not (tmp_path / "teacher.safetensors").exists()


def test_networks_are_built_once(clips, monkeypatch) -> None:
    first = settings(clips, "first", optim={"total_steps": 1})
    train(first, progress=False)
    built, build = [], pretraining.build
    monkeypatch.setattr(pretraining, "build", lambda *given: built.append(1) or build(*given))
    train(settings(clips, "second", run={"init_from": first.run.dir}), stop_at_step=1, progress=False)
    assert len(built) == 1


def test_single_images_that_are_repeated_train_and_have_pictures(images) -> None:
    model = {
        "patch_px": 8,
        "image_mode": "repeat",
        "image_repeats": 4,
        "encoder": {"width": 24, "depth": 1, "heads": 2},
    }
    data = {"train": {"index": str(images)}, "num_frames": 1, "clip_fps": None}
    run = settings(images, "run", data=data, model=model, optim={"total_steps": 1})
    assert train(run, progress=False) is not None
    assert (images.parent / "run" / "pictures" / "features_pca.png").is_file()


@pytest.mark.fast
def test_the_rate_is_that_of_the_last_steps(monkeypatch) -> None:
    """A slow-down has to show when it happens: 8 clips/s, then 2."""
    now = iter([0.0, 1.0, 5.0])
    monkeypatch.setattr(progress, "perf_counter", lambda: next(now))
    bar, rates = progress.Progress(0, 4, shown=False), []
    for _ in range(2):
        bar.advance(8)
        rates.append(bar.recent()["clips_per_s"])
    assert rates == [8.0, 2.0]


@pytest.mark.fast
def test_the_share_of_waiting_is_that_of_the_loader(monkeypatch) -> None:
    """Of 10 s, the two batches are waited for 1 s and 2 s."""
    now = iter([0.0, 0.0, 1.0, 5.0, 7.0, 8.0, 8.0, 10.0])
    monkeypatch.setattr(progress, "perf_counter", lambda: next(now))
    bar = progress.Progress(0, 2, shown=False)
    assert list(bar.waiting(iter("ab"))) == ["a", "b"]
    assert bar.recent()["loader_wait"] == 0.3
