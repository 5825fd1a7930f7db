"""How fast clips are read, in one process.

Beside the decoder alone, other starts of clips, and other copies of the videos.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch

from vjepa.config import Channels, Data
from vjepa.data.augment import Crop, Size, crop_resize
from vjepa.data.clip_index import IndexRow
from vjepa.data.decode import READERS, read_frames
from vjepa.data.plan_training import TrainPlan
from vjepa.data.reader import Reader, one_thread
from vjepa.data.sources import open_sources

STARTS: Final = ("uniform", "keyframe")
Wanted = Size | None  # of decoded frames; None: as they are


class MeasuredClips:
    """Read the batches of data.train as a worker does; remember of the last what was decoded, and where time went."""

    def __init__(self, data: Data, seed: int) -> None:
        self.reader = Reader(TrainPlan(open_sources(data), data, seed), self._decode, self._crop)

    def read(self, step: int) -> None:
        """Read the batch of a step."""
        self.reads: list[tuple[IndexRow, np.ndarray, Wanted]] = []
        self.decode_s = self.crop_s = 0.0
        self.reader[step]

    def _decode(self, row: IndexRow, frame_ids: np.ndarray, size: Wanted) -> np.ndarray:
        started = perf_counter()
        frames = read_frames(row, frame_ids, size)
        self.decode_s += perf_counter() - started
        self.reads.append((row, frame_ids, size))
        return frames

    def _crop(self, frames: np.ndarray, crop: Crop, size: Size, channels: Channels) -> torch.Tensor:
        started = perf_counter()
        clip = crop_resize(frames, crop, size, channels)
        self.crop_s += perf_counter() - started
        return clip


def loader_speed(data: Data, seed: int, num_batches: int, against: str | None = None) -> dict[str, Any]:
    """Measure the clips per second of reading data.train, beside other ways to read; medians over `num_batches`.

    bare: the decoder alone, on the very rows, frames and sizes of frames. keyframe_ratio: `start: keyframe` over
    uniform starts; None where clips are the whole video. against_ratio: another index, the same settings, over this
    one; None without `against`.
    clip_ms: of a clip; decode_ms and crop_ms: of these; the rest is finding its row and frames, and the copy into the
    batch.

    Each batch is read by every way, which fills the caches of the disk, and then timed by each way in turn, another one
    first each time, so that what else the machine does falls on all of them.
    """
    data = data.model_copy(update={"mix": []})
    kinds: dict[str, Data] = {data.start: data}
    if data.clip_fps or data.frame_step or data.duration_s:
        kinds |= {start: data.model_copy(update={"start": start}) for start in STARTS}
    if against:
        kinds["against"] = data.model_copy(update={"train": data.train.model_copy(update={"index": against})})
    clips = {kind: MeasuredClips(settings, seed) for kind, settings in kinds.items()}
    loader = clips[data.start]
    ways: dict[str, Callable[[int], Any]] = {kind: measured.read for kind, measured in clips.items()}
    ways["bare"] = lambda _: _decode_again(loader.reads)
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "decode", "crop")}
    for number in range(num_batches):
        for read in ways.values():
            read(number)
        for place in range(len(ways)):
            name = list(ways)[(number + place) % len(ways)]
            started = perf_counter()
            ways[name](number)
            seconds[name].append(perf_counter() - started)
        seconds["decode"].append(loader.decode_s)
        seconds["crop"].append(loader.crop_s)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {"global_batch": data.global_batch, "batches": num_batches, **_rates(data, medians)}


def _decode_again(reads: Sequence[tuple[IndexRow, np.ndarray, Wanted]]) -> None:
    """Open each file and get each frame once: what no loader can do without."""
    with one_thread():
        for row, frame_ids, size in reads:
            READERS[row.decoder](row, np.unique(frame_ids), size)


def _rates(data: Data, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Make the figures of `loader_speed` from the seconds that a batch takes."""
    loader_s = seconds[data.start]
    clip_ms = {name: 1000 * duration / data.global_batch for name, duration in seconds.items()}
    return {
        "loader_clips_per_s": data.global_batch / loader_s,
        "bare_clips_per_s": data.global_batch / seconds["bare"],
        "loader_ratio": seconds["bare"] / loader_s,
        "keyframe_ratio": seconds["uniform"] / seconds["keyframe"] if seconds.keys() >= set(STARTS) else None,
        "against_ratio": loader_s / seconds["against"] if "against" in seconds else None,
        "clip_ms": clip_ms[data.start],
        "decode_ms": clip_ms["decode"],
        "crop_ms": clip_ms["crop"],
    }
