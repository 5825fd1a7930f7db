"""Batches in order, decoded by processes that can be killed: a decoder that hangs or crashes costs its clip, not the
run.

A batch depends on its number alone, so any process can make it, and make it again. Batches come back through memory
that both sides hold from the start: nothing that a dying process owns is ever waited for.
"""

from __future__ import annotations

import fcntl
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from vjepa.config import Data
from vjepa.data.being_read import BeingRead, Watch
from vjepa.data.clip_index import ClipIndex
from vjepa.data.decode import read_frames
from vjepa.data.images import ReadImages
from vjepa.data.plan import FinitePlan
from vjepa.data.plan_rows import Passes, RowPlan, Views
from vjepa.data.plan_training import TrainPlan
from vjepa.data.quarantine import put_in_quarantine
from vjepa.data.reader import Reader, ReadFrames
from vjepa.data.sources import TrainSource
from vjepa.data.stops import outlive_stops
from vjepa.errors import UserError
from vjepa.records import ClipBatch

_LOOK_S: Final = 0.25  # how often the deadline is looked at while a batch is waited for
_MAX_DEATHS: Final = 16  # of processes, from one batch to the next
# exit codes of a process that someone else ended, at first for want of memory perhaps; 255: the fork server died too
_ENDED_BY_OTHERS: Final = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT, 255}


def train_loader(
    sources: Sequence[TrainSource],
    data: Data,
    seed: int,
    steps: range,
    pin_memory: bool = False,
    rank: int = 0,
    num_ranks: int = 1,
    accumulate: int = 1,
) -> ClipLoader:
    """Load `accumulate` batches for each step of `steps`, in order; `sources` are as `open_sources(data)` gives them,
    or the pictures of one set.

    Of `num_ranks` ranks, number `rank` gets its share of each step, global_batch / num_ranks clips.
    """
    plan, index = TrainPlan(sources, data, seed, rank, num_ranks, accumulate), sources[0].parts[0].index
    reader = Reader(plan) if isinstance(index, ClipIndex) else Reader(plan, ReadImages(index))
    return ClipLoader(reader, range(steps.start * accumulate, steps.stop * accumulate), data, pin_memory)


def plan_loader(plan: FinitePlan, data: Data, read: ReadFrames = read_frames) -> ClipLoader:
    """Load every batch of `plan` once, in order, with the processes that `data` says."""
    return ClipLoader(Reader(plan, read), range(len(plan)), data)


def eval_loader(
    index: ClipIndex, rows: np.ndarray, data: Data, batch: int, workers: int, looks: Views | Passes | None = None
) -> ClipLoader:
    """Load every row once, in order, the same at every call, its views side by side; the last batch may be smaller."""
    plan = RowPlan(index, rows, data, batch, looks or Views())
    return plan_loader(plan, data.model_copy(update={"workers": workers}))


class ClipLoader:
    """Give the batches `reader[step]` for `step` of `steps`, each time it is iterated.

    Of `data`, `workers`, `deadline_s` and `prefetch` say how. A process that takes longer than the deadline for the
    decode of one clip is killed, its clip put in quarantine, and the batch made again without it.
    Iterating raises UserError as `reader` does, and where processes die time and again.
    """

    def __init__(self, reader: Reader, steps: range, data: Data, pin_memory: bool = False) -> None:
        """Have the processes prepared where there are any: they import PyTorch while the caller builds its model."""
        self.reader, self.steps, self.data, self.pin_memory = reader, steps, data, pin_memory
        if data.workers:
            context().set_forkserver_preload(["vjepa.data.fork_server", "vjepa.data.loader"])
            forkserver.ensure_running()

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[ClipBatch]:
        if self.data.workers:
            return _Pool(self).batches()
        batches = (self.reader[step] for step in self.steps)
        return (batch.pin_memory() for batch in batches) if self.pin_memory else batches


class _Made(NamedTuple):
    """Say what a batch is whose clips lie in shared memory: plain values, so that no handle is passed on."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    clip_ids: list[int]
    failures: tuple[tuple[int, str], ...]
    num_replaced: int
    source: int
    actions: np.ndarray | None
    states: np.ndarray | None


class _Pool:
    """Run the processes of one pass over a loader."""

    def __init__(self, loader: ClipLoader) -> None:
        self.reader, self.steps, data = loader.reader, loader.steps, loader.data
        self.deadline_s, self.runs_ahead, self.pin_memory = data.deadline_s, data.prefetch > 0, loader.pin_memory
        num_slots = min(max(1, data.prefetch) * data.workers, max(1, len(self.steps)))
        slots = [context().RawArray("B", max(1, self.reader.plan.batch_bytes)) for _ in range(num_slots)]
        self.slots = [
            slots[number :: data.workers] for number in range(min(data.workers, num_slots))
        ]  # of each process
        self.workers: list[_Worker] = []
        # at the latest when this process ends: what an error holds is not closed before, and the processes do not heed
        # the signal by which Python would end them then, and wait
        self.end = Finalize(None, _end, (self.workers,), exitpriority=1)
        self.ready: dict[int, tuple[_Worker, ClipBatch]] = {}
        self.unassigned = iter(self.steps)
        self.killed: Counter[tuple[int, int]] = Counter()
        self.deaths = 0

    def batches(self) -> Iterator[ClipBatch]:
        try:
            self.workers.extend(_Worker(self.reader, slots) for slots in self.slots)
            for step in self.steps:
                if self.runs_ahead or not any(worker.taken for worker in self.workers):
                    self._hand_out()
                while step not in self.ready or not (self.runs_ahead or all(worker.rests for worker in self.workers)):
                    self._wait()
                worker, batch = self.ready.pop(step)
                batch = batch.pin_memory() if self.pin_memory else replace(batch, video=batch.video.clone())
                worker.release(step)
                if self.runs_ahead:
                    self._hand_out()
                self.deaths = 0
                yield batch
        finally:
            self.end()

    def _hand_out(self) -> None:
        """Hand out the next batches, one to each process in turn, for as long as they have room."""
        for _ in range(max(len(worker.free) for worker in self.workers)):
            for worker in self.workers:
                if worker.free and (step := next(self.unassigned, None)) is not None:
                    worker.take(step)

    def _wait(self) -> None:
        """Wait for the next answer, or for a process that is dead or late."""
        by_connection = {worker.connection: worker for worker in self.workers}
        for ready in connection.wait(list(by_connection), timeout=_LOOK_S):
            self._receive(by_connection[ready])
        for worker in self.workers:
            reading = worker.watch.now()
            if reading is not None and time.monotonic() - reading.since_s > self.deadline_s:
                self._bury(worker, f"decoding took longer than {self.deadline_s:g} s")

    def _receive(self, worker: _Worker) -> None:
        try:
            step, answer = worker.connection.recv()
        except (EOFError, OSError):  # it is dead; what it sent before has been received
            self._bury(worker, None)
            return
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, str):
            raise RuntimeError(f"a process of the loader failed:\n{answer}")
        self.ready[step] = (worker, worker.batch(step, answer))

    def _bury(self, worker: _Worker, reason: str | None) -> None:
        """Put the clip that a process hung or died on in quarantine, and give its batches to a new one."""
        reading = worker.watch.now()
        exit_code = worker.kill()
        self.deaths += 1
        if reading is None or self.deaths > _MAX_DEATHS:
            raise UserError(
                f"a decoding process died ({_plain_exit(exit_code)}); if memory is short, lower data.workers, "
                "or set data.workers=0 to see the error"
            )
        name = (reading.source, reading.clip_id)
        self.killed[name] += 1
        if reason is not None or exit_code not in _ENDED_BY_OTHERS or self.killed[name] > 1:
            self._quarantine(reading, reason or f"the decoder crashed ({_plain_exit(exit_code)})")
        worker.start(self.reader)

    def _quarantine(self, reading: BeingRead, reason: str) -> None:
        name = (reading.source, reading.clip_id)
        if name in self.reader.watch.quarantine:  # another process hung on it at the same time
            return
        self.reader.watch.quarantine[name] = reason
        for worker in self.workers:
            worker.forbid(name, reason)
        place = self.reader.plan.place(*name)
        remedy = "left out of this run alone"
        try:
            if place:
                remedy = f"named in {put_in_quarantine(*place, reason)}, which later runs read"
        except OSError as error:
            remedy += f", for the list of quarantine cannot be written ({error})"
        print(f"{self.reader.plan.uri(*name)}: {reason}; the clip is {remedy}", file=sys.stderr, flush=True)


class _Worker:
    """Run a process that makes batches, and hold the memory that they come back in."""

    def __init__(self, reader: Reader, slots: Sequence[Any]) -> None:
        self.slots = [torch.frombuffer(slot, dtype=torch.uint8) for slot in slots]
        self._memory = slots
        self.free = list(range(len(slots)))
        self.taken: dict[int, int] = {}  # step -> slot, until the batch was handed on
        self.made: set[int] = set()
        self.start(reader)

    def start(self, reader: Reader) -> None:
        """Start a new process, which makes again what the one before it had not finished."""
        self.connection, theirs = context().Pipe()
        lifeline, self._our_end = context().Pipe(duplex=False)  # nothing is ever sent
        self.watch = Watch(beat=context().RawArray("d", 3))
        arguments = (theirs, lifeline, reader, self._memory, self.watch.beat)
        self.process = context().Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        lifeline.close()
        for step, slot in self.taken.items():
            if step not in self.made:
                self._send((step, slot))

    @property
    def rests(self) -> bool:
        """Tell whether it has made all that it was asked for."""
        return len(self.made) == len(self.taken)

    def take(self, step: int) -> None:
        self.taken[step] = self.free.pop()
        self._send((step, self.taken[step]))

    def forbid(self, name: tuple[int, int], reason: str) -> None:
        self._send((name, reason))

    def _send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:  # it is dead, which is seen when its answer is read; it is started anew with everything
            return

    def batch(self, step: int, made: _Made) -> ClipBatch:
        """Give a batch whose clips are still in this memory."""
        self.made.add(step)
        num_bytes = math.prod(made.shape) * made.dtype.itemsize
        video = self.slots[self.taken[step]][:num_bytes].view(made.dtype).view(made.shape)
        clip_ids = torch.tensor(made.clip_ids, dtype=torch.int64)
        tracks = (None if found is None else torch.from_numpy(found) for found in (made.actions, made.states))
        return ClipBatch(video, clip_ids, made.failures, made.num_replaced, made.source, *tracks)

    def release(self, step: int) -> None:
        self.made.discard(step)
        self.free.append(self.taken.pop(step))

    def kill(self) -> int | None:
        """End it: nothing that it holds is of worth. Returns the exit code that it had or has now."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        self._our_end.close()
        code: int | None = self.process.exitcode
        return code


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.kill()


def context() -> Any:
    """Have processes forked from a clean one.

    Plain fork copies locks that threads of the training process may hold (decoders, OpenMP, CUDA), which can hang;
    spawn imports PyTorch in each process, seconds each time. A fork server imports it once (2 s, while the caller goes
    on); from then on the first batch is there in 0.2 s (2 processes, measured).
    """
    return multiprocessing.get_context("forkserver")


def _work(answers: Connection, lifeline: Connection, reader: Reader, memory: Sequence[Any], beat: Any) -> None:
    """Make batches until the other end of the pipe is closed."""
    outlive_stops()  # the fork server may have been started by someone else
    _die_with(lifeline)
    torch.set_num_threads(1)
    reader.watch.beat = beat
    slots = [torch.frombuffer(slot, dtype=torch.uint8) for slot in memory]
    while True:
        try:
            key, value = answers.recv()
        except (EOFError, OSError):
            return
        if isinstance(key, tuple):
            reader.watch.quarantine[key] = value
            continue
        answers.send((key, _make(reader, key, slots[value])))


def _die_with(lifeline: Connection) -> None:
    """Have the kernel end this process when the other end of the pipe is closed: when the trainer is gone, however.

    Python code could not, while a decoder holds the GIL; and the parent, whose death Linux can tell of, is the fork
    server, which lives as long as its children.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # which is to end
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if lifeline.poll():  # closed before there was a signal to send
        os._exit(1)


def _make(reader: Reader, step: int, slot: torch.Tensor) -> _Made | UserError | str:
    """Make a batch in `slot`, and say what is there then; or what went wrong."""
    try:
        batch = reader[step]
    except UserError as error:
        return error
    except Exception:  # noqa: BLE001  (the boundary of the process: it is raised again on the other side)
        return traceback.format_exc()
    values = batch.video.flatten().view(torch.uint8)
    slot[: len(values)].copy_(values)
    return _Made(
        tuple(batch.video.shape),
        batch.video.dtype,
        batch.clip_ids.tolist(),
        batch.failures,
        batch.num_replaced,
        batch.source,
        *(None if found is None else found.numpy() for found in (batch.actions, batch.states)),
    )


def _plain_exit(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
