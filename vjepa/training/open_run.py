"""Open a run folder: who may write into it, and what a result depends on beside its config."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TextIO

import torch

from vjepa import __version__, config, files
from vjepa.config import reading
from vjepa.errors import UserError
from vjepa.run_folder import RunFolder
from vjepa.training.checkpoint import set_damaged_aside

# Settings that change how a run executes, not what it computes: a run may go on with other values of these. Of
# run.precision what counts is the precision that was used, which checkpoints remember.
EXECUTION: Final = {
    "run": {"dir", "device", "precision", "compile", "log_every_steps", "save_every_steps", "keep_checkpoints"},
    "data": {"workers", "prefetch", "deadline_s"},
    "monitor": {"every_steps", "stop_on", "wandb"},
    "parallel": {"kind", "accumulate", "timeout_s"},
    "guard": {"max_skips"},
    "world": {"feature_batch"},
}
# Settings of the evidence alone: a run may go on with other values, and is measured again.
EVIDENCE: Final = ("eval.", "data.labelled", "data.selection", "data.val")
# those that are installed are named: decord is decord2 on some machines, and missing on others
_LIBRARIES: Final = (
    *("torch", "torchvision", "decord", "decord2", "av", "torchcodec"),
    *("numpy", "pyarrow", "scikit-learn", "safetensors"),
)


def open_run(
    settings: config.Config | config.FinetuneConfig | config.WorldConfig, evidence: tuple[str, ...] = EVIDENCE
) -> RunFolder:
    """Make the run folder, or accept one that the same config made; what it is measured by may have changed.

    evidence: how the settings begin that it is measured by alone.
    Raises UserError, and touches nothing, for a folder of another config or of something else.
    """
    run = settings.run.folder
    if run.config.is_file():
        stored, wanted = run.config.read_text(encoding="utf-8"), config.dump(settings)
        different = [line for line in differences(stored, wanted) if not line.startswith(evidence)]
        if different:
            raise UserError(
                f"{run.path}: made with another config ({'; '.join(different)}); give this run its own run.dir=..., "
                "nothing was changed"
            )
        if differences(stored, wanted):
            files.write_text(run.config, wanted)
    elif run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
        raise UserError(f"{run.path}: exists and is not a run folder; choose another run.dir=..., nothing was changed")
    else:
        files.write_json(run.environment, environment())
        files.write_text(run.config, config.dump(settings))
    return run


@contextmanager
def sole_writer(run: RunFolder) -> Iterator[None]:
    """Keep a run folder to this process; the kernel lets go of it when the process ends, however.

    What was asked of an earlier start, to stop, is over; it still holds for workers that torchrun starts again. A
    checkpoint that was damaged since is set aside (`checkpoint.set_damaged_aside`).
    Raises UserError that names the other process where one trains there. A file system that cannot lock is believed
    where it names a process of this host that lives. In a folder that nobody may write to there is nothing to keep.
    """
    if not os.access(run.path, os.W_OK):
        yield
        return
    with _locked(run) as file:
        file.truncate(0)
        file.write(f"{platform.node()} {os.getpid()}\n")
        file.flush()
        try:
            if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
                run.stop.unlink(missing_ok=True)
            set_damaged_aside(run)
            yield
        finally:
            run.lock.unlink(missing_ok=True)


def _locked(run: RunFolder) -> TextIO:
    """Open the lock of a run and hold it; another than the one that a process has just removed."""
    while True:
        file = run.lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = False
        except BlockingIOError:
            is_held = True
        except OSError:  # no locks here
            is_held = _is_alive(run)
        if is_held:
            file.close()
            host, pid = _holder(run)
            raise UserError(
                f"{run.path}: process {pid} on {host} trains here now; wait for it, or choose another run.dir=..."
            )
        if run.lock.is_file() and os.path.samestat(run.lock.stat(), os.fstat(file.fileno())):
            return file
        file.close()


def _holder(run: RunFolder) -> tuple[str, str]:
    """Read host and number of the process that wrote the lock last."""
    text = run.lock.read_text(encoding="utf-8") if run.lock.is_file() else ""
    host, _, pid = text.strip().partition(" ")
    return host or "some host", pid or "?"


def _is_alive(run: RunFolder) -> bool:
    host, pid = _holder(run)
    if host != platform.node() or not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is someone else's
        return True
    return True


def environment() -> dict[str, Any]:
    """Tell what a result depends on beside the config: code, machine, library versions."""
    return {
        "vjepa": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "libraries": versions(),
    }


def versions() -> dict[str, str]:
    """Give library -> version of those that results depend on."""
    found = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def differences(stored: str, wanted: str) -> list[str]:
    """List the settings that make another run, as `optim.lr was 0.001, now 0.1`, of two configs as they were written.

    A setting that a run did not know when it began is one too: the default of today is not what it was made with.
    """
    before, after = (flat(reading.parse(text)) for text in (stored, wanted))
    ignored = {f"{section}.{name}" for section, names in EXECUTION.items() for name in names}
    keys = sorted((before.keys() | after.keys()) - ignored)
    return [f"{key} was {before.get(key)}, now {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Give section.key -> value of a tree of settings."""
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {key: value for name, inner in tree.items() for key, value in flat(inner, f"{prefix}{name}.").items()}


def _commit() -> str | None:
    """Read the commit of the code, where it runs from a checkout on a machine that has git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    answer = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
