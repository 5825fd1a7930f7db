"""The one reader of clips: it decodes, watches, replaces, leaves out and batches as a plan says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from vjepa.config import Channels, Data
from vjepa.data.actions import clip_tracks
from vjepa.data.augment import Crop, Size, crop_resize, scaled_box, size_needed
from vjepa.data.being_read import Watch
from vjepa.data.channels import joined
from vjepa.data.clip_index import IndexRow
from vjepa.data.decode import read_frames
from vjepa.data.frame_times import frame_ids_at
from vjepa.data.media import DecodeError
from vjepa.data.plan import Attempt, BatchPlan, Decode, Plan
from vjepa.errors import UserError
from vjepa.records import Clip, ClipBatch

ReadFrames = Callable[[IndexRow, np.ndarray, Size | None], np.ndarray]  # see `decode.read_frames`
CropFrames = Callable[[np.ndarray, Crop, Size, Channels], torch.Tensor]  # see `augment.crop_resize`
Failures = list[tuple[int, str]]  # (clip id, reason)


class Reader:
    """Make the batches of a plan, by number. Copies of it in other processes make the same ones."""

    def __init__(self, plan: Plan, read: ReadFrames = read_frames, crop: CropFrames = crop_resize) -> None:
        """Take a plan, and how frames are read and cropped."""
        self.plan, self.read, self.crop = plan, read, crop
        self.watch = Watch(plan.quarantine())

    def __getitem__(self, number: int) -> ClipBatch:
        """Make one batch. What cannot be read is replaced or left out, and named in `failures`; B may be 0.

        Raises UserError where a clip has to be replaced and none of its replacements can be read.
        """
        batch = self.plan.batch(number)
        with one_thread():
            filled = [self._fill(place, batch) for place in batch.places]
            clips = [clip for found, _ in filled for clip in found]
            failures = tuple(failure for _, failed in filled for failure in failed)
            num_replaced = sum(len(found) for found, failed in filled if failed) if batch.replaces else 0
            return batch_of(clips, batch, failures, num_replaced)

    def _fill(self, place: Iterable[Attempt], batch: BatchPlan) -> tuple[list[Clip], Failures]:
        failures: Failures = []
        for attempt in place:
            if clips := self._clips(attempt, batch.data, failures):
                return clips, failures
        if batch.replaces:
            named = "; ".join(f"{self.plan.uri(batch.source, clip_id)}: {reason}" for clip_id, reason in failures)
            raise UserError(
                f"{len(failures)} clips in turn cannot be read; is the disk there, did the files change? Index "
                f"them again if so. {named}"
            )
        return [], failures

    def _clips(self, attempt: Attempt, data: Data, failures: Failures) -> list[Clip]:
        try:
            return [clip for decode in attempt.decodes() for clip in self._cut(decode, data)]
        except DecodeError as error:
            if not attempt.parts:
                failures.append((attempt.clip_id, str(error)))
        return [clip for part in attempt.parts for clip in self._clips(part, data, failures)]

    def _cut(self, decode: Decode, data: Data) -> list[Clip]:
        """Decode once and cut every clip from it, uint8 or uint16 [C, T, H, W] each. Raises DecodeError."""
        row = decode.row
        size = size_needed(decode.crops, row.height, row.width)
        with self.watch.reading(*decode.name):
            parts = [self.read(row, decode.frame_ids, size)]
            if row.companion:
                ids = frame_ids_at(row.companion.times(), row.times()[decode.frame_ids])
                parts.append(self.read(row.companion, ids, parts[0].shape[1:3]))
            frames = joined(parts, data.channels)
        per_clip = np.split(decode.frame_ids, len(decode.clip_ids))
        tracks = [clip_tracks(row, ids, data) for ids in per_clip]
        clips = []
        for crop in decode.crops:
            there = replace(crop, box=scaled_box(crop.box, row.height, row.width, frames))
            videos = torch.split(self.crop(frames, there, data.crop_size, data.channels), data.num_frames, dim=1)
            clips += [Clip(*clip) for clip in zip(videos, decode.clip_ids, *zip(*tracks, strict=True), strict=True)]
        return clips


def batch_of(
    clips: Sequence[Clip], plan: BatchPlan, failures: tuple[tuple[int, str], ...], num_replaced: int
) -> ClipBatch:
    """Lay B clips [C, T, H, W] into one batch: video uint8 or uint16 [B, C, T, H, W]."""
    data = plan.data
    dtype = {8: torch.uint8, 16: torch.uint16}[data.channels.bits]
    video = torch.empty((len(clips), data.channels.num, *data.clip_size), dtype=dtype)
    for place, clip in zip(video.numpy(), clips, strict=True):
        # a crop lies pixel by pixel; NumPy, by planes, is twice as fast as copy_
        for plane, channel in zip(place, clip.video.numpy(), strict=True):
            plane[:] = channel
    clip_ids = torch.tensor([clip.clip_id for clip in clips], dtype=torch.int64)
    actions, states = (_stacked([getattr(clip, name) for clip in clips]) for name in ("actions", "states"))
    return ClipBatch(video, clip_ids, failures, num_replaced, plan.source, actions, states)


def _stacked(tracks: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Lay the tracks of B clips side by side; None where not all have them."""
    found = [track for track in tracks if track is not None]
    return torch.stack(found) if found and len(found) == len(tracks) else None


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep PyTorch to one thread: pictures are too small to share.

    With workers=0 sharing made a 64 px clip 8x slower (2 cores, measured).
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
