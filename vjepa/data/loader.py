"""Batches in order, decoded by processes that can be killed: a decoder that hangs or crashes costs its clip, not the
run.

A batch depends on its number alone, so any process can make it, and make it again. Batches come back through memory
that
both sides hold from the start: nothing that a dying process owns is ever waited for.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from vjepa.config import Data
from vjepa.data.clip_index import ClipIndex
from vjepa.data.clips import Clips, EvalClips, TrainClips, TrainSource, Views
from vjepa.data.quarantine import put_in_quarantine
from vjepa.data.watch import Reading, Watch
from vjepa.errors import UserError
from vjepa.records import ClipBatch

_LOOK_S: Final = 0.25  # how often the deadline is looked at while a batch is waited for
_MAX_DEATHS: Final = 16  # of processes, from one batch to the next


def train_loader(
    sources: Sequence[TrainSource],
    data: Data,
    seed: int,
    steps: range,
    pin_memory: bool = False,
    rank: int = 0,
    num_ranks: int = 1,
) -> ClipLoader:
    """One `ClipBatch` for each step of `steps`, in order; `sources` are those of `data`, as `open_sources` gives them.

    Of `num_ranks` ranks, number `rank` gets its share of each batch, global_batch / num_ranks clips.
    """
    return ClipLoader(
        TrainClips(sources, data, seed, rank, num_ranks),
        steps,
        data.workers,
        data.deadline_s,
        data.prefetch,
        pin_memory,
    )


def eval_loader(
    index: ClipIndex, rows: np.ndarray, data: Data, batch: int, workers: int, views: Views | None = None
) -> ClipLoader:
    """Every row once, in order, the same at every call; the last batch may be smaller. The views of a row lie side by
    side.
    """
    return ClipLoader(
        EvalClips(index, rows, data, batch, views or Views()),
        range(-(-len(rows) // batch)),
        workers,
        data.deadline_s,
        data.prefetch,
    )


class ClipLoader:
    """The batches `clips[step]` for `step` of `steps`, each time it is iterated.

    workers: processes that decode; 0: none, in which case a decode cannot be stopped.
    deadline_s: for the decode of one clip; a process that takes longer is killed, its clip put in quarantine, and the
        batch made again without it.
    prefetch: batches that each process makes ahead; 0: all make one each when one is waited for, and rest while the
    caller works. Iterating raises UserError as `clips` does, and where processes die time and again.
    """

    def __init__(
        self, clips: Clips, steps: range, workers: int, deadline_s: float, prefetch: int = 3, pin_memory: bool = False
    ) -> None:
        self.clips, self.steps, self.workers, self.deadline_s, self.prefetch, self.pin_memory = (
            clips,
            steps,
            workers,
            deadline_s,
            prefetch,
            pin_memory,
        )
        if workers:
            context().set_forkserver_preload(["vjepa.data.loader"])
            forkserver.ensure_running()  # it imports PyTorch while the caller builds its model

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[ClipBatch]:
        if self.workers:
            return _Pool(self).batches()
        batches = (self.clips[step] for step in self.steps)
        return (batch.pin_memory() for batch in batches) if self.pin_memory else batches


class _Made(NamedTuple):
    """What is said of a batch whose clips are in shared memory: nothing but plain values, so that no handle is passed
    between processes.
    """

    shape: tuple[int, ...]
    clip_ids: list[int]
    failures: tuple[tuple[int, str], ...]
    num_replaced: int
    source: int


class _Pool:
    """The processes of one pass over a loader."""

    def __init__(self, loader: ClipLoader) -> None:
        self.clips, self.steps, self.deadline_s, self.pin_memory = (
            loader.clips,
            loader.steps,
            loader.deadline_s,
            loader.pin_memory,
        )
        self.runs_ahead = loader.prefetch > 0
        num_slots = min(max(1, loader.prefetch) * loader.workers, max(1, len(self.steps)))
        slots = [context().RawArray("B", max(1, self.clips.batch_bytes)) for _ in range(num_slots)]
        self.workers = [
            _Worker(self.clips, slots[number :: loader.workers]) for number in range(min(loader.workers, num_slots))
        ]
        self.ready: dict[int, tuple[_Worker, ClipBatch]] = {}
        self.unassigned = iter(self.steps)
        self.killed: Counter[tuple[int, int]] = Counter()
        self.deaths = 0

    def batches(self) -> Iterator[ClipBatch]:
        try:
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
            for worker in self.workers:
                worker.kill()

    def _hand_out(self) -> None:
        """The next batches, one to each process in turn, for as long as they have room."""
        for _ in range(max(len(worker.free) for worker in self.workers)):
            for worker in self.workers:
                if worker.free and (step := next(self.unassigned, None)) is not None:
                    worker.take(step)

    def _wait(self) -> None:
        """For the next answer, or for a process that is dead or late."""
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
        if (
            reason is not None or exit_code != -signal.SIGKILL or self.killed[name] > 1
        ):  # the first SIGKILL may be for want of memory
            self._quarantine(reading, reason or f"the decoder crashed ({_plain_exit(exit_code)})")
        worker.start(self.clips)

    def _quarantine(self, reading: Reading, reason: str) -> None:
        name = (reading.source, reading.clip_id)
        if name in self.clips.watch.quarantine:  # another process hung on it at the same time
            return
        index, row = self.clips.place(*name)
        self.clips.watch.quarantine[name] = reason
        for worker in self.workers:
            worker.forbid(name, reason)
        try:
            remedy = f"named in {put_in_quarantine(index, row, reason)}, which later runs read"
        except OSError as error:
            remedy = f"left out of this run alone, for the list of quarantine cannot be written ({error})"
        print(f"{index.row(row).uri}: {reason}; the clip is {remedy}", file=sys.stderr, flush=True)


class _Worker:
    """A process that makes batches, and the memory that they come back in."""

    def __init__(self, clips: Clips, slots: Sequence[Any]) -> None:
        self.slots = [torch.frombuffer(slot, dtype=torch.uint8) for slot in slots]
        self._memory = slots
        self.free = list(range(len(slots)))
        self.taken: dict[int, int] = {}  # step -> slot, until the batch was handed on
        self.made: set[int] = set()
        self.start(clips)

    def start(self, clips: Clips) -> None:
        """A new process, which makes again what the one before it had not finished."""
        self.connection, theirs = context().Pipe()
        self.watch = Watch(beat=context().RawArray("d", 3))
        self.process = context().Process(target=_work, args=(theirs, clips, self._memory, self.watch.beat), daemon=True)
        self.process.start()
        theirs.close()
        for step, slot in self.taken.items():
            if step not in self.made:
                self._send((step, slot))

    @property
    def rests(self) -> bool:
        """Whether it has made all that it was asked for."""
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
        """A batch whose clips are still in this memory."""
        self.made.add(step)
        video = self.slots[self.taken[step]][: math.prod(made.shape)].view(made.shape)
        return ClipBatch(
            video, torch.tensor(made.clip_ids, dtype=torch.int64), made.failures, made.num_replaced, made.source
        )

    def release(self, step: int) -> None:
        self.made.discard(step)
        self.free.append(self.taken.pop(step))

    def kill(self) -> int | None:
        """Nothing that it holds is of worth. Returns the exit code that it had or has now."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        code: int | None = self.process.exitcode
        return code


def context() -> Any:
    """Processes forked from a clean one.

    Plain fork copies locks that threads of the training process may hold (decoders, OpenMP, CUDA), which can hang;
    spawn imports PyTorch in each process, seconds each time. A fork server imports it once (2 s, while the caller goes
    on); from then on the first batch is there in 0.2 s (2 processes, measured).
    """
    return multiprocessing.get_context("forkserver")


def _work(answers: Connection, clips: Clips, memory: Sequence[Any], beat: Any) -> None:
    """The life of a decoding process: until the other end of the pipe is closed."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the trainer still needs batches until it has saved
    torch.set_num_threads(1)
    clips.watch.beat = beat
    slots = [torch.frombuffer(slot, dtype=torch.uint8) for slot in memory]
    while True:
        try:
            key, value = answers.recv()
        except (EOFError, OSError):
            return
        if isinstance(key, tuple):
            clips.watch.quarantine[key] = value
            continue
        answers.send((key, _make(clips, key, slots[value])))


def _make(clips: Clips, step: int, slot: torch.Tensor) -> _Made | UserError | str:
    """What is in `slot` then; or what went wrong."""
    try:
        batch = clips[step]
    except UserError as error:
        return error
    except Exception:  # noqa: BLE001  (the boundary of the process: it is raised again on the other side)
        return traceback.format_exc()
    slot[: batch.video.numel()].copy_(batch.video.flatten())
    return _Made(tuple(batch.video.shape), batch.clip_ids.tolist(), batch.failures, batch.num_replaced, batch.source)


def _plain_exit(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
