"""Which clips are in a batch, and how they are read: pure functions of (seed, step) for training, of the row for
evaluation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch

from vjepa.config import Data, Source
from vjepa.counter_rng import generator, source_seed
from vjepa.data.augment import Box, crop_resize, random_crop_box, scaled_box, size_needed, view_boxes
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.decode import DecodeError, read_frames
from vjepa.data.frame_times import clip_by_fps, clip_by_step, clip_whole, frame_ids_at
from vjepa.data.order import replacement_row, sample_row, source_of_step
from vjepa.data.quarantine import quarantined
from vjepa.data.watch import Watch
from vjepa.errors import UserError
from vjepa.records import Clip, ClipBatch

MAX_ATTEMPTS: Final = 8
_FIRST_PART_SEED: Final = 257  # seeds of sources are numbered from 0, at most 256 of them


@dataclass(frozen=True)
class Part:
    """Rows of one index.

    rows: int64 [n], n >= 1.
    first_id: the clip id of row 0 of the index: clip ids count the rows of every index of a source, one after the
    other.
    """

    name: str
    index: ClipIndex
    rows: np.ndarray
    first_id: int = 0


@dataclass(frozen=True)
class TrainSource:
    """Clips to learn from that share batches.

    name: its path in the config: data.train, or a source of data.mix that has batches of its own.
    data: the settings that hold for its clips.
    parts: its own rows, then those of each source that is mixed into its batches.
    """

    name: str
    data: Data
    parts: tuple[Part, ...]

    @property
    def num_rows(self) -> int:
        return sum(len(part.rows) for part in self.parts)

    def place(self, clip_id: int) -> tuple[Part, int]:
        """The part that a clip is of, and its row there."""
        part = self.parts[bisect_right([part.first_id for part in self.parts], clip_id) - 1]
        return part, clip_id - part.first_id

    def uri(self, clip_id: int) -> str:
        """Where the video of a clip is."""
        part, row = self.place(clip_id)
        return part.index.row(row).uri


@dataclass(frozen=True)
class Views:
    """How often evaluation looks at a video: `num_clips` evenly in time, `num_crops` evenly along the longer side of
    each.

    time: the order of the frames; shuffled and reversed ones are controls, without the order of time and with the wrong
    one.
    """

    num_clips: int = 1
    num_crops: int = 1
    time: Literal["forward", "shuffled", "reversed"] = "forward"


def open_sources(data: Data) -> list[TrainSource]:
    """data.train and every source of data.mix that has its own batches, in order.

    Raises UserError for a missing index or column, or where no row matches.
    """
    opened: dict[str, ClipIndex] = {}  # clips and stills of the same videos share one index
    sources = []
    for name, settings in data.sources.items():
        named: dict[str, Source] = {name: settings.train}
        if name == "data.train":
            named |= {f"data.mix.{number}": source for number, source in enumerate(data.mix) if source.per == "clip"}
        parts: list[Part] = []
        for part_name, source in named.items():
            index = opened[source.index] = opened.get(source.index) or ClipIndex.open(source.index)
            first_id = parts[-1].first_id + len(parts[-1].index) if parts else 0
            parts.append(Part(part_name, index, index.select(source.where), first_id))
        sources.append(TrainSource(name, settings, tuple(parts)))
    return sources


class Clips:
    """Batches of clips by number. Copies of it in other processes give the same batches."""

    def __init__(self) -> None:
        self.watch = Watch()

    def __getitem__(self, number: int) -> ClipBatch:
        raise NotImplementedError

    def place(self, source: int, clip_id: int) -> tuple[ClipIndex, int]:
        """The index and the row of a clip."""
        raise NotImplementedError

    @property
    def batch_bytes(self) -> int:
        """Size of the largest batch."""
        raise NotImplementedError

    def read(self, row: IndexRow, frame_ids: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        """See `decode.read_frames`."""
        return read_frames(row, frame_ids, size)

    def crops(
        self,
        row: IndexRow,
        name: tuple[int, int],
        frame_ids: np.ndarray,
        boxes: Sequence[Box],
        flips: Sequence[bool],
        crop_px: int,
    ) -> list[torch.Tensor]:
        """One clip uint8 [3, T, S, S] for each box, from one decode. `name`: source and clip id. Raises DecodeError."""
        with self.watch.reading(*name):
            frames = self.read(row, frame_ids, size_needed(boxes, row.height, row.width, crop_px))
        return [
            crop_resize(frames, scaled_box(box, row.height, row.width, frames), crop_px, flip)
            for box, flip in zip(boxes, flips, strict=True)
        ]


class TrainClips(Clips):
    """Item number `step` is the batch of that step, or the share of it that one rank has, from the source that has the
    step.

    Each source counts its own samples: its step number n holds samples n * B to n * B + B - 1, B of its own, so that it
    takes every row once per epoch whatever the others do.
    """

    def __init__(
        self, sources: Sequence[TrainSource], data: Data, seed: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        """`sources`: those of `data`, as `open_sources` gives them. Raises UserError for batches that the ranks cannot
        share.
        """
        super().__init__()
        for source in sources:
            turns = source.data.global_batch // source.data.clips_in_turn
            if turns % num_ranks:
                raise UserError(
                    f"{source.name}: {turns} videos in a batch cannot be shared by {num_ranks} ranks; choose "
                    "a multiple of it for global_batch"
                )
        self.sources, self.mix, self.seed, self.rank, self.num_ranks = sources, data.mix_ratios, seed, rank, num_ranks
        for number, source in enumerate(sources):
            for part in source.parts:
                self.watch.quarantine |= {
                    (number, part.first_id + row): reason for row, reason in quarantined(part.index).items()
                }

    @property
    def batch_bytes(self) -> int:
        return max(clip_bytes(source.data) * source.data.global_batch for source in self.sources) // self.num_ranks

    def place(self, source: int, clip_id: int) -> tuple[ClipIndex, int]:
        part, row = self.sources[source].place(clip_id)
        return part.index, row

    def __getitem__(self, step: int) -> ClipBatch:
        """Raises UserError where 8 rows in turn cannot be read in place of one sample."""
        number, n = source_of_step(self.seed, step, self.mix)
        source = self.sources[number]
        turns = source.data.global_batch // source.data.clips_in_turn
        share = turns // self.num_ranks
        first = n * turns + self.rank * share
        with one_thread():
            read = [self._turn(number, turn) for turn in range(first, first + share)]
            clips = [clip for clips, _ in read for clip in clips]
            failures = tuple(failure for _, failed in read for failure in failed)
            return batch_of(clips, source.data, failures, sum(len(clips) for clips, failed in read if failed), number)

    def _turn(self, number: int, turn: int) -> tuple[list[Clip], list[tuple[int, str]]]:
        """The clips of one video, or of the first readable of its replacements; and what could not be read, as (clip
        id, reason).
        """
        source, seed = self.sources[number], source_seed(self.seed, number)
        k, n = source_of_step(source_seed(seed, _FIRST_PART_SEED), turn, source.data.clip_ratios)
        part, seed = source.parts[k], source_seed(seed, _FIRST_PART_SEED + k) if k else seed
        failures: list[tuple[int, str]] = []
        place = sample_row(seed, n, len(part.rows))
        for attempt in range(MAX_ATTEMPTS):
            i = int(part.rows[place])
            try:
                return self._clips(number, part, i, seed, n), failures
            except DecodeError as error:
                failures.append((part.first_id + i, str(error)))
                place = replacement_row(seed, n, attempt, len(part.rows))
        named = "; ".join(f"{source.uri(clip_id)}: {reason}" for clip_id, reason in failures)
        raise UserError(
            f"{MAX_ATTEMPTS} clips in turn cannot be read; is the disk there, did the files change? Index "
            f"them again if so. {named}"
        )

    def _clips(self, number: int, part: Part, i: int, seed: int, n: int) -> list[Clip]:
        """The clips of row `i`, whose turn is number n of its part."""
        data, row, clip_id = self.sources[number].data, part.index.row(i), part.first_id + i
        keyframes_s = part.index.keyframes(i) if data.start == "keyframe" else None
        clips = []
        for decode in range(n * data.clips_per_video, (n + 1) * data.clips_per_video):
            ids = frame_ids(row, data, generator(seed, "frames", decode).random(), keyframes_s)
            at_keyframe = keyframes_s is not None and ids[0] in frame_ids_at(row.times(), keyframes_s)
            reading = replace(row, decoder=row.keyframe_decoder) if at_keyframe and row.keyframe_decoder else row
            rngs = [
                generator(seed, "crop", crop)
                for crop in range(decode * data.clips_per_decode, (decode + 1) * data.clips_per_decode)
            ]
            boxes = [random_crop_box(rng, row.height, row.width, data.crop_scale, data.crop_aspect) for rng in rngs]
            flips = [bool(data.flip and rng.random() < 0.5) for rng in rngs]
            clips += [
                Clip(video, clip_id)
                for video in self.crops(reading, (number, clip_id), ids, boxes, flips, data.crop_px)
            ]
        return clips


class EvalClips(Clips):
    """Item number k holds rows k * batch to k * batch + batch - 1, every view of a row side by side; nothing
    is random.
    """

    def __init__(self, index: ClipIndex, rows: np.ndarray, data: Data, batch: int, views: Views) -> None:
        super().__init__()
        self.index, self.rows, self.data, self.batch, self.views = index, rows, data, batch, views
        self.watch.quarantine |= {(0, row): reason for row, reason in quarantined(index).items()}

    @property
    def batch_bytes(self) -> int:
        return clip_bytes(self.data) * self.batch * self.views.num_clips * self.views.num_crops

    def place(self, source: int, clip_id: int) -> tuple[ClipIndex, int]:
        return self.index, clip_id

    def __getitem__(self, k: int) -> ClipBatch:
        """A row that cannot be read is left out and named in `failures`; B may be 0."""
        return read_each(
            self.rows[k * self.batch : (k + 1) * self.batch], lambda i: self._views(self.index.row(i)), self.data
        )

    def _views(self, row: IndexRow) -> list[torch.Tensor]:
        views, boxes = [], view_boxes(row.height, row.width, self.views.num_crops)
        for clip in range(self.views.num_clips):
            ids = self._in_time(frame_ids(row, self.data, (clip + 0.5) / self.views.num_clips), row.clip_id)
            views += self.crops(row, (0, row.clip_id), ids, boxes, [False] * len(boxes), self.data.crop_px)
        return views

    def _in_time(self, ids: np.ndarray, clip_id: int) -> np.ndarray:
        if self.views.time == "shuffled":
            return generator(0, "shuffled_frames", clip_id).permutation(ids)
        return ids[::-1] if self.views.time == "reversed" else ids


def read_each(clip_ids: np.ndarray, views: Callable[[int], list[torch.Tensor]], data: Data) -> ClipBatch:
    """The `views` of each clip, side by side; a clip that cannot be read, a DecodeError, is left out and named in
    `failures`.
    """
    clips: list[Clip] = []
    failures = []
    with one_thread():
        for i in clip_ids.tolist():
            try:
                clips += [Clip(video, i) for video in views(i)]
            except DecodeError as error:
                failures.append((i, str(error)))
        return batch_of(clips, data, tuple(failures))


def frame_ids(row: IndexRow, data: Data, position: float, keyframes_s: np.ndarray | None = None) -> np.ndarray:
    """int64 [T]: the frames of a clip at `position` in [0, 1) of its video; see `frame_times`."""
    times = row.times()
    if data.frame_step is not None:
        return clip_by_step(times, data.num_frames, data.frame_step, position, data.padding, keyframes_s)
    clip_fps = data.num_frames / data.duration_s if data.duration_s is not None else data.clip_fps
    if clip_fps is None:
        return clip_whole(times, row.end_s, data.num_frames, position)
    return clip_by_fps(times, row.end_s, data.num_frames, clip_fps, position, data.padding, keyframes_s)


def clip_bytes(data: Data) -> int:
    """Size of a clip, uint8 [3, T, S, S]."""
    return 3 * data.num_frames * data.crop_px**2


def batch_of(
    clips: Sequence[Clip], data: Data, failures: tuple[tuple[int, str], ...], num_replaced: int = 0, source: int = 0
) -> ClipBatch:
    """B clips uint8 [3, T, S, S] -> video uint8 [B, 3, T, S, S]."""
    video = torch.empty((len(clips), 3, data.num_frames, data.crop_px, data.crop_px), dtype=torch.uint8)
    for place, clip in zip(video.numpy(), clips, strict=True):
        for plane, channel in zip(
            place, clip.video.numpy(), strict=True
        ):  # a crop lies pixel by pixel; NumPy, by planes, is twice as fast as copy_
            plane[:] = channel
    return ClipBatch(
        video, torch.tensor([clip.clip_id for clip in clips], dtype=torch.int64), failures, num_replaced, source
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Pictures are too small to share among threads: with workers=0 that made a 64 px clip 8x slower (2 cores,
    measured).
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
