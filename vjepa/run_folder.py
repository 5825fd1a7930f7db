"""What lies where in the folder of a run. Nothing else knows these names.

config.yaml  environment.json  metrics.jsonl  summary.json  tensorboard/  pictures/  teacher.safetensors
checkpoints/step-00000123/{encoder,target_encoder,predictor}.safetensors   the weights, one file a network
                          optimizer.safetensors, state.json                the training state
checkpoints/latest        a link to the newest
checkpoints/best          a link to the one that measured best during training, by the online probe; without one, to the
                          newest that LiDAR of the monitor does not tell to be worse
checkpoints/best.pth      the networks of `best`, else of `latest`, in one file (safetensors) to pass on
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vjepa.errors import UserError

FORMAT_VERSION: Final = 2  # of checkpoints; 2 adds `dtype` to the state


class _Inside:
    """Name a file or folder inside the `path` of its owner."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Checkpoint | RunFolder, _: type | None = None) -> Path:
        return owner.path / self.name


@dataclass(frozen=True)
class Checkpoint:
    """Name what lies in a folder checkpoints/step-*, whatever the name it was reached by."""

    path: Path
    moments = _Inside("optimizer.safetensors")
    state = _Inside("state.json")

    def network(self, name: str) -> Path:
        """Name the weights file of a network, such as `encoder`."""
        return self.path / f"{name}.safetensors"

    @property
    def is_one(self) -> bool:
        """Tell whether there is a checkpoint here."""
        return self.network("encoder").is_file() and self.state.is_file()

    def read_state(self) -> dict[str, Any]:
        """Read the training state, without its version.

        Call it before anything else of a checkpoint is read, so that a newer format is named before what it changed.
        Raises UserError for that, and where the file is damaged.
        """
        try:
            state: dict[str, Any] = json.loads(self.state.read_text(encoding="utf-8"))
            version = state.pop("format_version")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.state}: is no training state; take another checkpoint") from None
        if version > FORMAT_VERSION:
            raise UserError(
                f"{self.path}: checkpoint format {version}, this version of vjepa reads up to {FORMAT_VERSION}; "
                "go on with the version that wrote it, or a newer one"
            )
        return state

    @property
    def step(self) -> int | None:
        """Read the step off the name; None for a copy under another name."""
        number = self.path.resolve().name.removeprefix("step-")
        return int(number) if number.isdigit() else None

    @property
    def run(self) -> RunFolder | None:
        """Find the run that it lies in; None for a copy elsewhere."""
        parents = self.path.resolve().parents
        run = RunFolder(parents[1]) if len(parents) > 1 else None
        return run if run and run.config.is_file() else None


@dataclass(frozen=True)
class RunFolder:
    """Name what lies in the folder of a run, there or to be made."""

    path: Path
    config = _Inside("config.yaml")
    environment = _Inside("environment.json")
    metrics = _Inside("metrics.jsonl")
    summary = _Inside("summary.json")
    tensorboard = _Inside("tensorboard")
    pictures = _Inside("pictures")
    teacher = _Inside("teacher.safetensors")  # what it was at the first step, whatever becomes of its own run
    checkpoints = _Inside("checkpoints")
    best_file = _Inside("checkpoints/best.pth")

    @classmethod
    def above(cls, path: Path) -> RunFolder | None:
        """Find the run that `path` is, or lies in as a checkpoint or a file of one; None for other paths."""
        path = path.resolve()
        runs = (cls(folder) for folder in (path, *path.parents[:3]))
        return next((run for run in runs if run.config.is_file() and run.checkpoints.is_dir()), None)

    def checkpoint(self, step: int) -> Checkpoint:
        """Name the checkpoint of `step` steps done, there or to be made."""
        return Checkpoint(self.checkpoints / f"step-{step:08d}")

    def checkpoint_of(self, path: Path) -> Checkpoint | None:
        """Find the checkpoint that `path` is or lies in; of the run itself the newest; None for other files."""
        path = path.resolve()
        if path == self.path:
            return self.latest
        folders = (folder for folder in (path, *path.parents) if folder.parent == self.checkpoints)
        return next((Checkpoint(folder) for folder in folders if folder.is_dir()), None)

    @property
    def all_checkpoints(self) -> list[Checkpoint]:
        """List the checkpoints that are there, the oldest first."""
        return [Checkpoint(path) for path in sorted(self.checkpoints.glob("step-*"))]

    @property
    def latest(self) -> Checkpoint | None:
        """Find the newest checkpoint; None before the first."""
        return self._linked("latest")

    @property
    def best(self) -> Checkpoint | None:
        """Find the checkpoint that measured best; None where none was measured."""
        return self._linked("best")

    def point_latest(self, checkpoint: Checkpoint) -> None:
        """Make `checkpoint` the newest."""
        self._link("latest", checkpoint)

    def point_best(self, checkpoint: Checkpoint) -> None:
        """Make `checkpoint` the best."""
        self._link("best", checkpoint)

    def require(self) -> Checkpoint:
        """Find the newest checkpoint. Raises UserError for a folder that is no run, or a run without a checkpoint."""
        if not self.config.is_file():
            remedy = "name a folder made by python -m vjepa.train"
            raise UserError(f"{self.path}: not a run folder, it has no config.yaml; {remedy}")
        latest = self.latest
        if latest is None:
            command = f"python -m vjepa.train --config {self.config}"
            raise UserError(f"{self.path}: no checkpoint yet; train it first with {command}")
        return latest

    def _link(self, name: str, checkpoint: Checkpoint) -> None:
        link = self.checkpoints / f".{name}"
        link.unlink(missing_ok=True)
        link.symlink_to(checkpoint.path.name)
        os.replace(link, self.checkpoints / name)

    def _linked(self, name: str) -> Checkpoint | None:
        link = self.checkpoints / name
        return Checkpoint(link.resolve()) if link.is_dir() else None
