"""The run folder: who may write into it, and what a run leaves there to read."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
import yaml

from vjepa import __version__, config
from vjepa.errors import UserError

# Settings that change how a run executes, not what it computes: a run may go on with other values of these.
EXECUTION: Final = {
    "run": {"dir", "device", "compile", "log_every_steps", "save_every_steps", "keep_checkpoints"},
    "data": {"workers", "prefetch", "deadline_s"},
}


def open_run(settings: config.Config) -> Path:
    """Make the run folder, or accept one that the same config made. Raises UserError rather than touch
    anything else.
    """
    folder = Path(settings.run.dir or "runs/unnamed")
    stored = folder / "config.yaml"
    if stored.is_file():
        different = _differences(config.load(str(stored)), settings)
        if different:
            raise UserError(
                f"{folder}: made with another config ({'; '.join(different)}); give this run its own "
                "run.dir=..., nothing was changed"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not a run folder; choose another run.dir=..., nothing was changed")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "environment.json", json.dumps(environment(), indent=1))
        write_atomically(stored, config.dump(settings))
    return folder


def environment() -> dict[str, Any]:
    """What a result depends on beside the config: code, machine, library versions."""
    libraries = ("torch", "torchvision", "decord", "av", "numpy", "pyarrow", "scikit-learn", "safetensors")
    return {
        "vjepa": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "libraries": {name: metadata.version(name) for name in libraries},
    }


class RunLog:
    """metrics.jsonl and TensorBoard events; a resumed run first drops what was logged after its checkpoint."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= first_step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = self.path.open("a", buffering=1)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float], source: int = 0) -> None:
        """One row: `step` is the number of steps done.

        The row of a step on data.mix[source - 1] says `source`, and has curves of its own in TensorBoard.
        """
        self.file.write(json.dumps({"step": step, **({"source": source} if source else {}), **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"data.mix.{source - 1}/{name}" if source else name, value, step)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; a last line that a crash cut short is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _differences(stored: config.Config, wanted: config.Config) -> list[str]:
    before, after = (_flat(yaml.safe_load(config.dump(settings))) for settings in (stored, wanted))
    ignored = {f"{section}.{name}" for section, names in EXECUTION.items() for name in names}
    changed = [
        key for key in sorted(before.keys() | after.keys()) if key not in ignored and before.get(key) != after.get(key)
    ]
    return [f"{key} was {before.get(key)}, now {after.get(key)}" for key in changed]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {key: value for name, inner in tree.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


def _commit() -> str | None:
    """The commit of the code, where it runs from a checkout on a machine that has git."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    answer = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
