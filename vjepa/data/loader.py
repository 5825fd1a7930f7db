"""Batches of uint8 clips. What is in a batch depends on (seed, step) alone: not on workers, not on what was read before."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vjepa.config import Data
from vjepa.counter_rng import generator, source_seed
from vjepa.data.augment import centre_crop_box, crop_resize, random_crop_box
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.decode import DecodeError, read_frames
from vjepa.data.frame_times import clip_by_fps, clip_whole
from vjepa.data.order import replacement_row, sample_row, source_of_step
from vjepa.errors import UserError
from vjepa.records import Clip, ClipBatch

MAX_ATTEMPTS: Final = 8


@dataclass(frozen=True)
class TrainSource:
    """Clips to learn from: data.train, or one source of data.mix.

    name: its path in the config.
    data: the settings that hold for its clips.
    rows: int64 [n], n >= 1, the rows of `index` to learn from.
    """

    name: str
    data: Data
    index: ClipIndex
    rows: np.ndarray


def open_sources(data: Data) -> list[TrainSource]:
    """data.train and every source of data.mix, in order. Raises UserError for a missing index or column, or where no row matches."""
    opened: dict[str, ClipIndex] = {}  # clips and stills of the same videos share one index
    sources = []
    for name, settings in data.sources.items():
        path = settings.train.index
        index = opened[path] = opened.get(path) or ClipIndex.open(path)
        sources.append(TrainSource(name, settings, index, index.select(settings.train.where)))
    return sources


class TrainClips(Dataset[ClipBatch]):
    """Item number `step` is the whole global batch of that step, from the source that has it.

    Each source counts its own samples: its step number n holds samples n * B to n * B + B - 1, B of its own, so that it
    takes every row once per epoch whatever the others do.
    """

    def __init__(self, sources: Sequence[TrainSource], data: Data, seed: int) -> None:
        """`sources`: those of `data`, as `open_sources` gives them."""
        self.mix, self.seed = data.mix_ratios, seed
        self.sources = [SourceClips(source, source_seed(seed, number)) for number, source in enumerate(sources)]

    def __getitem__(self, step: int) -> ClipBatch:
        """Raises UserError where 8 rows in turn cannot be read in place of one sample."""
        source, number = source_of_step(self.seed, step, self.mix)
        return replace(self.sources[source][number], source=source)


class SourceClips(Dataset[ClipBatch]):
    """Item number n is the batch of step number n of one source; see `TrainClips`."""

    def __init__(self, source: TrainSource, seed: int) -> None:
        self.index, self.rows, self.data, self.seed = source.index, source.rows, source.data, seed

    def __getitem__(self, number: int) -> ClipBatch:
        """Raises UserError where 8 rows in turn cannot be read in place of one sample."""
        first = number * self.data.global_batch
        with _one_thread():
            return _batch([self._clip(i) for i in range(first, first + self.data.global_batch)], self.data)

    def _clip(self, i: int) -> Clip:
        """Sample number i, or the first readable of its replacements."""
        failures: list[tuple[int, str]] = []
        place = sample_row(self.seed, i, len(self.rows))
        for attempt in range(MAX_ATTEMPTS):
            row = self.index.row(int(self.rows[place]))
            try:
                return Clip(self._video(row, i), row.clip_id, tuple(failures))
            except DecodeError as error:
                failures.append((row.clip_id, str(error)))
                place = replacement_row(self.seed, i, attempt, len(self.rows))
        named = "; ".join(f"{self.index.row(clip_id).uri}: {reason}" for clip_id, reason in failures)
        raise UserError(f"{MAX_ATTEMPTS} clips in turn cannot be read; is the disk there, did the files change? Index them again if so. {named}")

    def _video(self, row: IndexRow, i: int) -> torch.Tensor:
        frames = read_frames(row, _frame_ids(row, self.data, generator(self.seed, "frames", i).random()))
        rng = generator(self.seed, "crop", i)
        box = random_crop_box(rng, row.height, row.width, self.data.crop_scale, self.data.crop_aspect)
        return crop_resize(frames, box, self.data.crop_px, flip=self.data.flip and rng.random() < 0.5)


class EvalClips(Dataset[ClipBatch]):
    """Item number k holds rows k * batch to k * batch + batch - 1: middle of the video, centre crop, nothing random."""

    def __init__(self, index: ClipIndex, rows: np.ndarray, data: Data, batch: int, shuffle_frames: bool) -> None:
        self.index, self.rows, self.data, self.batch, self.shuffle_frames = index, rows, data, batch, shuffle_frames

    def __getitem__(self, k: int) -> ClipBatch:
        """A row that cannot be read is left out and named in `failures`; B may be 0."""
        clips, failures = [], []
        with _one_thread():
            for clip_id in self.rows[k * self.batch : (k + 1) * self.batch].tolist():
                try:
                    clips.append(Clip(self._video(self.index.row(clip_id)), clip_id))
                except DecodeError as error:
                    failures.append((clip_id, str(error)))
            return _batch(clips, self.data, failures)

    def _video(self, row: IndexRow) -> torch.Tensor:
        frames = read_frames(row, _frame_ids(row, self.data, 0.5))
        if self.shuffle_frames:
            frames = frames[generator(0, "shuffled_frames", row.clip_id).permutation(len(frames))]
        return crop_resize(frames, centre_crop_box(row.height, row.width), self.data.crop_px)


def train_loader(sources: Sequence[TrainSource], data: Data, seed: int, steps: range, pin_memory: bool) -> DataLoader[ClipBatch]:
    """One `ClipBatch` for each step of `steps`, in order; `sources` are those of `data`, as `open_sources` gives them."""
    return _Loader(TrainClips(sources, data, seed), steps, data.workers, pin_memory)


def eval_loader(index: ClipIndex, rows: np.ndarray, data: Data, batch: int, workers: int, shuffle_frames: bool = False) -> DataLoader[ClipBatch]:
    """Every row once, in order, the same at every call; the last batch may be smaller.

    `shuffle_frames` permutes the frames of each clip: a control without the order of time.
    """
    return _Loader(EvalClips(index, rows, data, batch, shuffle_frames), range(-(-len(rows) // batch)), workers, pin_memory=False)


class _Loader(DataLoader[ClipBatch]):
    """A DataLoader of ready batches, whose workers are forked from a clean process.

    Plain fork copies locks that threads of the training process may hold (decoders, OpenMP, CUDA), which can hang;
    spawn imports PyTorch in each worker, seconds each time. A fork server imports it once (2 s, while the caller goes on);
    from then on the first batch is there in 0.2 s (2 workers, measured).
    """

    def __init__(self, dataset: Dataset[ClipBatch], steps: range, workers: int, pin_memory: bool) -> None:
        options: dict[str, Any] = {}
        if workers:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["vjepa.data.loader"])
            forkserver.ensure_running()  # it imports PyTorch while the caller builds its model
            options = {"multiprocessing_context": context, "prefetch_factor": 4, "worker_init_fn": _leave_interrupts_to_the_trainer}
        super().__init__(dataset, batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin_memory, **options)

    def __iter__(self) -> Iterator[ClipBatch]:  # type: ignore[override]
        return _plain_errors(super().__iter__())


def _leave_interrupts_to_the_trainer(_worker: int) -> None:
    """Ctrl-C reaches the whole process group; the trainer still needs batches until its step is done and saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _plain_errors(batches: Iterator[ClipBatch]) -> Iterator[ClipBatch]:
    """PyTorch wraps the error of a worker in its traceback; the one line that a user is meant to read comes last."""
    try:
        yield from batches
        return
    except UserError as error:
        line = str(error).strip().rpartition("UserError: ")[2]
        error.__traceback__ = None
    del batches  # ends the workers, now that no traceback holds on to them
    raise UserError(line)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Pictures are too small to share among threads: with workers=0 that made a 64 px clip 8x slower (2 cores, measured)."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _frame_ids(row: IndexRow, data: Data, place: float) -> np.ndarray:
    """int64 [T]: seconds at `clip_fps` somewhere in the video, or the whole of it; `place` in [0, 1) says where."""
    if data.clip_fps is None:
        return clip_whole(row.times(), row.end_s, data.num_frames, place)
    return clip_by_fps(row.times(), row.end_s, data.num_frames, data.clip_fps, place)


def _batch(clips: list[Clip], data: Data, failures: list[tuple[int, str]] | None = None) -> ClipBatch:
    """B clips uint8 [3, T, S, S] -> video uint8 [B, 3, T, S, S]."""
    video = torch.empty((len(clips), 3, data.num_frames, data.crop_px, data.crop_px), dtype=torch.uint8)
    for place, clip in zip(video, clips, strict=True):
        place.copy_(clip.video)
    named = [*(failures or []), *(failure for clip in clips for failure in clip.failures)]
    ids = torch.tensor([clip.clip_id for clip in clips], dtype=torch.int64)
    return ClipBatch(video, ids, tuple(named), num_replaced=sum(bool(clip.failures) for clip in clips))
