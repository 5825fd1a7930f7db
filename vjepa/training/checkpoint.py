"""Checkpoints: safetensors weights and a training state that loads without unpickling code, written whole.

`run_folder` tells where they lie, and what best.pth is. optimizer.safetensors has AdamW's moments by parameter name;
state.json the step, the failures so far, and the version of the format.
"""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vjepa import files
from vjepa.errors import NotFinite, UserError
from vjepa.models.state import load_strictly, read_tensors, spread_colours
from vjepa.records import ClipBatch
from vjepa.run_folder import FORMAT_VERSION, Checkpoint, RunFolder
from vjepa.training.spread import spread_like, whole
from vjepa.training.step import Method

_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class TrainingState:
    """Remember what a run has to beside tensors.

    unreadable: clip -> why it was replaced. A clip is named by its clip id (as text) where it is of data.train, else by
    `source:clip_id`; see `ClipBatch.source`.
    best_merit: the most so far by the judge of the loop, such as k-NN accuracy, where there is one.
    best_step: of the checkpoint that is the best so far, by that or by the monitor.
    dtype: precision of matrix products so far; None: not known, for the checkpoint is of format 1.
    memory: that of the method, shared with it.
    num_skipped: steps that the guard refused; num_skips_in_row: the last ones, of those that were not finite.
    losses: of the last steps, where a spike is looked for.
    """

    step: int = 0
    num_replaced: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    best_merit: float | None = None
    best_step: int | None = None
    dtype: str | None = None
    memory: dict[str, float] = field(default_factory=dict)
    num_skipped: int = 0
    num_skips_in_row: int = 0
    losses: list[float] = field(default_factory=list)

    def note(self, *batches: ClipBatch) -> int:
        """Count the clips of batches that stand in for another, and remember by name what could not be read.

        Returns how many clips there are.
        """
        for batch in batches:
            self.num_replaced += batch.num_replaced
            prefix = f"{batch.source}:" if batch.source else ""
            self.unreadable |= {f"{prefix}{clip_id}": reason for clip_id, reason in batch.failures}
        return sum(len(batch.clip_ids) for batch in batches)

    @property
    def counts(self) -> dict[str, int]:
        """Give what a log shows of what went wrong so far."""
        return {"num_replaced": self.num_replaced} | ({"num_skipped": self.num_skipped} if self.num_skipped else {})

    def take_in(self, others: Iterable[TrainingState]) -> None:
        """Add what was noted elsewhere, on each of the ranks say."""
        for other in others:
            self.num_replaced += other.num_replaced
            self.unreadable |= other.unreadable

    def replaced(self) -> Iterator[tuple[int, int, str]]:
        """Go through `unreadable` as (source, clip_id, reason)."""
        for key, reason in self.unreadable.items():
            source, _, clip_id = key.rpartition(":")
            yield int(source or 0), int(clip_id), reason


@dataclass(frozen=True)
class Snapshot:
    """Hold what a checkpoint has, on the host: nothing that training changes.

    networks: name -> tensors of its file. moments: those of AdamW. state: the training state.
    """

    networks: dict[str, dict[str, Tensor]]
    moments: dict[str, Tensor]
    state: TrainingState


class Writer:
    """Write checkpoints in a thread of its own; training goes on as soon as one is copied to the host.

    Of several ranks all call it, for tensors that are spread over them; the one that `leads` writes.
    """

    def __init__(self, run: RunFolder, keep: int, leads: bool = True) -> None:
        """Write into `run`, and keep the newest `keep` checkpoints and the best."""
        self.run, self.keep, self.leads = run, keep, leads
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.running: Future[Checkpoint] | None = None

    def save(self, method: Method, optimizer: torch.optim.Optimizer, state: TrainingState, is_best: bool) -> None:
        """Write what there is now. Waits for the one before, and raises what went wrong with it."""
        self.wait()
        state.best_step = state.step if is_best else state.best_step
        copied = snapshot(method, optimizer, state, self.leads)
        if copied is not None:
            self.running = self.thread.submit(write, self.run, copied, self.keep)

    def wait(self) -> None:
        """Wait until all is on the disk. Raises as `write` does."""
        running, self.running = self.running, None
        if running is not None:
            running.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let the last one be finished; of two errors the first one counts."""
        try:
            if kind is None:
                self.wait()
        finally:
            self.thread.shutdown()


def save(
    run: RunFolder,
    method: Method,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    keep: int,
    is_best: bool = False,
) -> Checkpoint:
    """Write a checkpoint of a method that is here alone, at once; see `write`."""
    with Writer(run, keep) as writer:
        writer.save(method, optimizer, state, is_best)
    return run.checkpoint(state.step)


def snapshot(
    method: Method, optimizer: torch.optim.Optimizer, state: TrainingState, leads: bool = True
) -> Snapshot | None:
    """Copy what a checkpoint has to the host, tensor by tensor; None on ranks that do not lead, which gather too."""
    networks = {name: network.state_dict() for name, network in method.networks.items()}
    copies = {name: _copied(tensors, leads) for name, tensors in (networks | {"": _moments(method, optimizer)}).items()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()  # until the copies are there
    return Snapshot(copies, copies.pop(""), copy.deepcopy(state)) if leads else None


def _copied(tensors: Mapping[str, Tensor], leads: bool) -> dict[str, Tensor]:
    """Copy tensors to the host, from a GPU to pinned memory, which PyTorch keeps for the next time."""
    copies = {}
    for name, tensor in tensors.items():
        values = whole(tensor.detach())
        if leads:
            empty = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
            copies[name] = empty.copy_(values, non_blocking=values.is_cuda)
    return copies


def write(run: RunFolder, copied: Snapshot, keep: int) -> Checkpoint:
    """Write a checkpoint whole, then name it `latest`, and `best` if it is that.

    A crash at any moment leaves the last one in place. Of the others those that are not among the newest `keep` are
    removed, save the best.
    Raises NotFinite, and writes nothing, where a weight or a moment is not finite.
    """
    state = copied.state
    for name, tensors in {**copied.networks, "moments": copied.moments}.items():
        _refuse_infinite(name, tensors, state.step)
    for old in run.checkpoints.glob(".partial-*"):  # of a process that died inside a save
        shutil.rmtree(old, ignore_errors=True)
    final = run.checkpoint(state.step)
    with files.whole_folder(final.path) as folder:
        partial = Checkpoint(folder)
        for name, tensors in copied.networks.items():
            _write_tensors(partial.network(name), tensors)
        _write_tensors(partial.moments, copied.moments)
        paths = sorted(folder.iterdir())
        sizes = {"file_bytes": {path.name: path.stat().st_size for path in paths}}
        hashes = {"file_sha256": {path.name: files.sha256(path) for path in paths}}
        files.write_json(partial.state, {"format_version": FORMAT_VERSION, **sizes, **hashes, **asdict(state)})
    best = run.best
    run.name(final, best)
    kept = {checkpoint.path.resolve() for checkpoint in (final, best) if checkpoint}
    for checkpoint in run.all_checkpoints[:-keep]:
        if checkpoint.path.resolve() not in kept:
            files.remove_folder(checkpoint.path)
    return final


def set_damaged_aside(run: RunFolder) -> None:
    """Rename the newest checkpoint where a file of it does not hold what was written, as bad disks leave it, and go on.

    Raises UserError where there is none before it.
    """
    while (latest := run.latest) and (damaged := latest.damaged):
        before = [one for one in run.all_checkpoints if one.is_whole and one.path.name < latest.path.name]
        if not before:
            raise UserError(
                f"{damaged}: does not hold what was written, and there is no checkpoint before it; remove "
                f"{latest.path} to begin anew"
            )
        aside = run.set_aside(latest)
        print(
            f"{damaged}: does not hold what was written; set aside as {aside.name}, and {before[-1].path.name} is gone "
            "on from",
            file=sys.stderr,
        )


def restore(run: RunFolder, method: Method, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Load the newest whole checkpoint into method and optimizer; a run without one starts at step 0.

    Newer ones that are not whole are named. Raises UserError where it is of another format or does not fit.
    """
    run.take_in_copies()
    latest = run.latest
    if latest is None:
        return TrainingState()
    for broken in (one for one in run.all_checkpoints if one.path.name > latest.path.name):
        print(f"{broken.path}: is not whole, so {latest.path.name} is gone on from", file=sys.stderr)
    state = read_state(latest)
    load_networks(latest, method)
    moments = read_tensors(latest.moments)
    for name, parameter in _trained(method).items():
        if f"{name}/step" not in moments:  # no step has used it yet
            continue
        # copies: a file that is mapped into memory cannot be removed from NFS or FUSE
        kept = {kind: moments[f"{name}/{kind}"].to(parameter.device, copy=True) for kind in _MOMENTS}
        optimizer.state[parameter] = {
            kind: spread_like(value, parameter) if value.ndim else value for kind, value in kept.items()
        }
    return state


def read_state(checkpoint: Checkpoint) -> TrainingState:
    """Read the training state. Raises UserError for a format of a newer version of vjepa."""
    facts = checkpoint.read_state()
    if "best_knn" in facts:  # its name up to format 4
        facts["best_merit"] = facts.pop("best_knn")
    return TrainingState(**facts)


def load_networks(checkpoint: Checkpoint, method: Method, other_channels: bool = False) -> None:
    """Load every network of a checkpoint. Raises UserError where they do not fit.

    other_channels: a network of 3 colours may start one of other channels.
    """
    if checkpoint.is_one:
        read_state(checkpoint)  # a newer format is named before what it changed
    for name, network in method.networks.items():
        file = checkpoint.intact(name)
        tensors = read_tensors(file)
        if other_channels:
            spread_colours(tensors, network.state_dict(), str(file))
        wanted = network.state_dict()
        spread = {key: spread_like(value, wanted.get(key, value)) for key, value in tensors.items()}
        load_strictly(network, spread, file)


def _trained(method: Method) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}


def _moments(method: Method, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{kind}": value
        for name, parameter in _trained(method).items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _refuse_infinite(name: str, tensors: dict[str, Tensor], step: int) -> None:
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NotFinite(
                f"{name}.{key} is not finite after step {step}; lower optim.lr or set optim.clip_grad. Nothing was "
                "saved, the last checkpoint is untouched"
            )


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path)
    files.sync(path)
