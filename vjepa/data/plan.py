"""What a plan says: which clips a batch has, and how each is read and cut.

Plans are arithmetic; `reader` does what they say. The way of one batch:
batch number -> places -> attempts to fill a place -> decodes -> clips
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vjepa.config import Data
from vjepa.data.augment import Box, random_crop_box, view_boxes
from vjepa.data.clip_index import ClipIndex, IndexRow


@dataclass(frozen=True)
class Crop:
    """Name a box of the frames of a row, and whether it is mirrored."""

    box: Box
    flip: bool = False


@dataclass(frozen=True)
class Decode:
    """Ask for one decode, and for the clips that are cut from its frames.

    name: the source and the clip id under which the decode is watched, and put in quarantine where it hangs.
    row: what is decoded, by the decoder that it names.
    frame_ids: int64 [n * T], the frames of n clips, one clip after the other.
    clip_ids: of the n clips; each of them is cut once for every crop.
    """

    name: tuple[int, int]
    row: IndexRow
    frame_ids: np.ndarray
    clip_ids: tuple[int, ...]
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class Attempt:
    """Hold one way to fill a place of a batch.

    clip_id: named in the failures of the batch where it cannot be read.
    decodes: plans the decodes, when their turn comes. Raises DecodeError where the row has no such clip.
    parts: what is attempted one by one where not all can be read together; the parts are named then.
    """

    clip_id: int
    decodes: Callable[[], Sequence[Decode]]
    parts: tuple[Attempt, ...] = ()


@dataclass(frozen=True)
class BatchPlan:
    """List the places of a batch, in order.

    places: for each the attempts to fill it; the first that gives clips counts, and later ones are not even planned.
    replaces: a place that no attempt fills is an error of the run; else it is left out.
    """

    data: Data
    places: Sequence[Iterable[Attempt]]
    source: int = 0
    replaces: bool = False


class Plan(Protocol):
    """Say what is in each batch, as a function of its number."""

    def batch(self, number: int) -> BatchPlan:
        """Plan one batch."""
        ...

    @property
    def batch_bytes(self) -> int:
        """Give the size of the largest batch."""
        ...

    def quarantine(self) -> dict[tuple[int, int], str]:
        """Read why clips, by source and clip id, must not be decoded."""
        ...

    def place(self, source: int, clip_id: int) -> tuple[ClipIndex, int] | None:
        """Find the index and the row of what is watched; None where it is in no index."""
        ...

    def uri(self, source: int, clip_id: int) -> str:
        """Say where the video or image of a clip is."""
        ...


class FinitePlan(Plan, Protocol):
    """Plan a single pass over some clips."""

    def __len__(self) -> int:
        """Count the batches."""
        ...


def random_crop(rng: np.random.Generator, row: IndexRow, data: Data) -> Crop:
    """Draw a box, then whether it is mirrored."""
    box = random_crop_box(rng, row.height, row.width, data.crop_scale, data.crop_aspect)
    return Crop(box, bool(data.flip and rng.random() < 0.5))


def even_crops(row: IndexRow, num: int) -> tuple[Crop, ...]:
    """Lay `num` squares evenly along the longer side; a single one in the centre."""
    return tuple(map(Crop, view_boxes(row.height, row.width, num)))


def clip_bytes(data: Data) -> int:
    """Give the size of a clip, uint8 [3, T, S, S]."""
    return 3 * data.num_frames * data.crop_px**2
