"""What lies where in the folder of a run. Nothing else knows these names.

config.yaml  environment.json  metrics.jsonl  summary.json  tensorboard/  pictures/  teacher.safetensors
start.safetensors  head.safetensors  scratch/    of fine-tuning: its start, the head that goes with best.pth, a baseline
report.html               what people look at; rendered from the files of the run alone, at any time
report.safetensors        what that page shows and needs networks or clips to be made: kept at the end of the run
start.safetensors  tracks.json  plans/    of a world model: its encoder, what its actions are, what vjepa.plan found
.lock                     held by the process that trains here, with its host and number
stop                      made by whoever wants the run to save and stop: `touch RUN/stop`; the next start removes it
checkpoints/step-00000123/{encoder,target_encoder,predictor}.safetensors   the weights, one file a network
                          optimizer.safetensors, state.json                the training state
checkpoints/latest        a link to the newest
checkpoints/best          a link to the one that measured best during training, by the online probe; without one, to the
                          newest that LiDAR of the monitor does not tell to be worse
                          Links are for people: a run is copied without them, or onto disks that have none (then they
                          are files with the name). Which is the newest, the folders say; which is the best, its state
checkpoints/best.pth      the networks of `best`, else of `latest`, in one file (safetensors) to pass on
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vjepa import files
from vjepa.errors import UserError

# of checkpoints; 2 adds `dtype` to the state, 3 `best_step` and `file_bytes`, 4 `memory`; 5 `best_merit`,
# as `best_knn`; 6 `num_skipped`, `num_skips_in_row` and `file_sha256`; 7 `losses`
FORMAT_VERSION: Final = 7
_NAMES: Final = ("latest", "best")


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

    def intact(self, name: str) -> Path:
        """Name the weights file of a network, which is read to see that it holds what was written.

        Raises UserError where it does not; a format without hashes is taken as it is.
        """
        path = self.network(name)
        wanted = self._facts().get("file_sha256", {}).get(path.name)
        if wanted and path.is_file() and files.sha256(path) != wanted:
            raise UserError(f"{path}: does not hold what was written; copy it anew, or take another checkpoint")
        return path

    @property
    def is_one(self) -> bool:
        """Tell whether there is a checkpoint here."""
        has_weights = any(self.network(name).is_file() for name in ("encoder", "predictor"))
        return has_weights and self.state.is_file()

    @property
    def is_whole(self) -> bool:
        """Tell whether all files are there as they were written, which a copy that was interrupted need not have."""
        facts = self._facts()
        sizes = facts.get("file_bytes", {})
        return self.is_one and bool(facts) and all(_bytes(self.path / name) == size for name, size in sizes.items())

    @property
    def damaged(self) -> Path | None:
        """Read all files, and find one that does not hold what was written; None where all do, or no hash is kept."""
        hashes = self._facts().get("file_sha256", {})
        return next(
            (self.path / name for name, wanted in hashes.items() if files.sha256(self.path / name) != wanted), None
        )

    @property
    def best_step(self) -> int | None:
        """Read the step of the best checkpoint up to this one; None where none was measured, or the format is older."""
        step: int | None = self._facts().get("best_step")
        return step

    def _facts(self) -> dict[str, Any]:
        """Read the training state as far as it can be read."""
        try:
            facts = json.loads(self.state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def read_state(self) -> dict[str, Any]:
        """Read the training state, without what this class itself knows.

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
        for name in ("file_bytes", "file_sha256"):
            state.pop(name, None)
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
    start = _Inside("start.safetensors")
    head = _Inside("head.safetensors")
    scratch = _Inside("scratch")
    page = _Inside("report.html")
    shown = _Inside("report.safetensors")
    tracks = _Inside("tracks.json")
    plans = _Inside("plans")
    lock = _Inside(".lock")
    stop = _Inside("stop")
    checkpoints = _Inside("checkpoints")
    best_file = _Inside("checkpoints/best.pth")

    @classmethod
    def above(cls, path: Path) -> RunFolder | None:
        """Find the run that `path` is, or lies in as a checkpoint or a file of one; None for other paths."""
        path = path.resolve()
        runs = (cls(folder) for folder in (path, *path.parents[:3]))
        return next((run for run in runs if run.config.is_file() and run.checkpoints.is_dir()), None)

    @property
    def is_in_use(self) -> bool:
        """Tell whether a process of this machine, or of a file system that can lock, trains here now."""
        try:
            with self.lock.open(encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # there is none, or nothing can be locked here
            return False
        return False

    def checkpoint(self, step: int) -> Checkpoint:
        """Name the checkpoint of `step` steps done, there or to be made."""
        return Checkpoint(self.checkpoints / f"step-{step:08d}")

    def checkpoint_of(self, path: Path) -> Checkpoint | None:
        """Find the checkpoint that `path` is or lies in; of the run itself the newest; None for other files."""
        path = path.resolve()
        if path == self.path:
            return self.newest
        if path.is_file() and path.parent == self.checkpoints and path.name in _NAMES:
            return self._named(path.name)
        folders = (folder for folder in (path, *path.parents) if folder.parent == self.checkpoints)
        return next((Checkpoint(folder) for folder in folders if folder.is_dir()), None)

    @property
    def all_checkpoints(self) -> list[Checkpoint]:
        """List the checkpoints that are there, the oldest first."""
        return [Checkpoint(path) for path in sorted(self.checkpoints.glob("step-*"))]

    @property
    def latest(self) -> Checkpoint | None:
        """Find the newest whole checkpoint, or the newest if none is whole; None before the first."""
        return next((one for one in reversed(self.all_checkpoints) if one.is_whole), self.newest)

    @property
    def newest(self) -> Checkpoint | None:
        """Find the newest checkpoint, whole or not: what is read is never another one without a word."""
        return self.all_checkpoints[-1] if self.all_checkpoints else self._named("latest")

    @property
    def best(self) -> Checkpoint | None:
        """Find the checkpoint that measured best; None where none was measured."""
        latest = self.latest
        step = latest.best_step if latest else None
        best = self._named("best") if step is None else self.checkpoint(step)
        return best if best and best.is_one else None

    def name(self, latest: Checkpoint, best: Checkpoint | None) -> None:
        """Name two checkpoints, for people: by links, or by files with their names where there are no links."""
        for name, checkpoint in zip(_NAMES, (latest, best), strict=True):
            if checkpoint is None:
                continue
            new = self.checkpoints / f".{name}"
            new.unlink(missing_ok=True)
            try:
                new.symlink_to(checkpoint.path.name)
            except OSError:
                new.write_text(f"{checkpoint.path.name}\n", encoding="utf-8")
            os.replace(new, self.checkpoints / name)

    def set_aside(self, damaged: Checkpoint) -> Path:
        """Rename a checkpoint so that it is none any more; what was there under that name goes."""
        aside = damaged.path.with_name(f"damaged-{damaged.path.name}")
        if aside.exists():
            files.remove_folder(aside)
        os.replace(damaged.path, aside)
        return aside

    def take_in_copies(self) -> None:
        """Give copies of checkpoints that stand where links were, as scp and zip leave them, their place; where that
        is taken they go.
        """
        for copy in (self.checkpoints / name for name in _NAMES):
            if copy.is_dir() and not copy.is_symlink():
                home = self.checkpoint(Checkpoint(copy).read_state()["step"]).path
                files.remove_folder(copy) if home.exists() else copy.rename(home)

    def require(self) -> Checkpoint:
        """Find `newest`. Raises UserError for a folder that is no run, or a run without a checkpoint."""
        if not self.config.is_file():
            remedy = "name a folder made by python -m vjepa.train"
            raise UserError(f"{self.path}: not a run folder, it has no config.yaml; {remedy}")
        newest = self.newest
        if newest is None:
            command = f"python -m vjepa.train --config {self.config}"
            raise UserError(f"{self.path}: no checkpoint yet; train it first with {command}")
        return newest

    def _named(self, name: str) -> Checkpoint | None:
        """Find the checkpoint that a link, a file or a folder in its place is."""
        place = self.checkpoints / name
        if place.is_file():
            place = self.checkpoints / place.read_text(encoding="utf-8").strip()
        return Checkpoint(place.resolve()) if place.is_dir() else None


def followed(path: Path) -> Path:
    """Give the folder that a file `latest` or `best` names, where there are no links; other paths as they are."""
    run = RunFolder.above(path) if path.name in _NAMES and path.is_file() else None
    checkpoint = run.checkpoint_of(path) if run else None
    return checkpoint.path if checkpoint else path


def _bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
