"""The plan of training: the clips of a batch are a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from vjepa.config import Data
from vjepa.counter_rng import generator, source_seed
from vjepa.data.clip_index import ClipIndex
from vjepa.data.frame_times import frame_ids, frame_ids_at
from vjepa.data.order import replacement_row, sample_row, source_of_step
from vjepa.data.plan import Attempt, BatchPlan, Decode, clip_bytes, random_crop
from vjepa.data.quarantine import quarantined
from vjepa.data.sources import Part, TrainSource
from vjepa.errors import UserError

MAX_ATTEMPTS: Final = 8
_FIRST_PART_SEED: Final = 257  # seeds of sources are numbered from 0, at most 256 of them


def check_shares(sources: Sequence[TrainSource], num_ranks: int, accumulate: int) -> None:
    """Check that global_batch = ranks x micro-batch x accumulate, in whole videos. Raises UserError where it is not."""
    for source in sources:
        turns = source.data.global_batch // source.data.clips_in_turn
        if turns % (num_ranks * accumulate):
            apart = f" x {accumulate} micro-batches (parallel.accumulate)" if accumulate > 1 else ""
            raise UserError(
                f"{source.name}: {turns} videos in a batch cannot be shared by {num_ranks} ranks{apart}; choose "
                f"a multiple of {num_ranks * accumulate} for global_batch"
            )


class TrainPlan:
    """Plan the batch of each step, or the micro-batches that one rank has of it, from the source that has the step.

    Number n is micro-batch n % accumulate of step n // accumulate.

    Each source counts its own samples: its step number n holds samples n * B to n * B + B - 1, B of its own, so that it
    takes every row once per epoch whatever the others do.
    """

    def __init__(
        self,
        sources: Sequence[TrainSource],
        data: Data,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
        accumulate: int = 1,
    ) -> None:
        """Take `sources`, those of `data`, as `open_sources` gives them. Raises UserError as `check_shares` does."""
        check_shares(sources, num_ranks, accumulate)
        self.sources, self.mix, self.seed = sources, data.mix_ratios, seed
        self.first, self.num_parts, self.accumulate = rank * accumulate, num_ranks * accumulate, accumulate

    @property
    def batch_bytes(self) -> int:
        return max(clip_bytes(source.data) * source.data.global_batch for source in self.sources) // self.num_parts

    def quarantine(self) -> dict[tuple[int, int], str]:
        return {
            (number, part.first_id + row): reason
            for number, source in enumerate(self.sources)
            for part in source.parts
            for row, reason in (quarantined(part.index) if isinstance(part.index, ClipIndex) else {}).items()
        }

    def place(self, source: int, clip_id: int) -> tuple[ClipIndex, int] | None:
        index, row = self.sources[source].place(clip_id)
        return (index, row) if isinstance(index, ClipIndex) else None

    def uri(self, source: int, clip_id: int) -> str:
        return self.sources[source].uri(clip_id)

    def batch(self, number: int) -> BatchPlan:
        """Plan a batch: one place for each video whose turn it is."""
        step, micro = divmod(number, self.accumulate)
        number, n = source_of_step(self.seed, step, self.mix)
        data = self.sources[number].data
        turns = data.global_batch // data.clips_in_turn
        share = turns // self.num_parts
        first = n * turns + (self.first + micro) * share
        places = [self._attempts(number, turn) for turn in range(first, first + share)]
        return BatchPlan(data, places, number, replaces=True)

    def _attempts(self, number: int, turn: int) -> Iterator[Attempt]:
        """Name the row that has the turn, then those that stand in for it."""
        source, seed = self.sources[number], source_seed(self.seed, number)
        k, n = source_of_step(source_seed(seed, _FIRST_PART_SEED), turn, source.data.clip_ratios)
        part, seed = source.parts[k], source_seed(seed, _FIRST_PART_SEED + k) if k else seed
        place = sample_row(seed, n, len(part.rows))
        for attempt in range(MAX_ATTEMPTS):
            i = int(part.rows[place])
            yield Attempt(part.first_id + i, partial(self._decodes, number, part, i, seed, n))
            place = replacement_row(seed, n, attempt, len(part.rows))

    def _decodes(self, number: int, part: Part, i: int, seed: int, n: int) -> list[Decode]:
        """Plan the clips of row `i`, whose turn is number n of its part."""
        data, row, clip_id = self.sources[number].data, part.index.row(i), part.first_id + i
        keyframes_s = None
        if data.start == "keyframe" and isinstance(part.index, ClipIndex):
            keyframes_s = part.index.keyframes(i)
        decodes = []
        for decode in range(n * data.clips_per_video, (n + 1) * data.clips_per_video):
            ids = frame_ids(row, data, generator(seed, "frames", decode).random(), keyframes_s)
            at_keyframe = keyframes_s is not None and ids[0] in frame_ids_at(row.times(), keyframes_s)
            reading = replace(row, decoder=row.keyframe_decoder) if at_keyframe and row.keyframe_decoder else row
            numbers = range(decode * data.clips_per_decode, (decode + 1) * data.clips_per_decode)
            crops = tuple(random_crop(generator(seed, "crop", crop), row, data) for crop in numbers)
            if change := self.sources[number].change:
                crops = tuple(replace(crop, change=partial(change, n)) for crop, n in zip(crops, numbers, strict=True))
            decodes.append(Decode((number, clip_id), reading, ids, (clip_id,), crops))
        return decodes
