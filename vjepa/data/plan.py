"""What a plan says: which clips a batch has, and how each is read and cut.

Plans are arithmetic; `reader` does what they say. The way of one batch:
batch number -> places -> attempts to fill a place -> decodes -> clips
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from vjepa.config import Data
from vjepa.data.augment import Crop, inscribed, random_crop_box, view_boxes
from vjepa.data.clip_index import ClipIndex, IndexRow


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
    """Draw a box, where `fit` does not show the whole frame, then whether it is mirrored."""
    crop = _whole(row, data)
    if data.fit == "crop":
        shape = data.crop_size[1] / data.crop_size[0]
        aspect = data.crop_aspect[0] * shape, data.crop_aspect[1] * shape
        crop = Crop(random_crop_box(rng, row.height, row.width, data.crop_scale, aspect), data.crop_size)
    return replace(crop, flip=bool(data.flip and rng.random() < 0.5))


def even_crops(row: IndexRow, data: Data, num: int) -> tuple[Crop, ...]:
    """Lay `num` boxes of the shape of a clip evenly along the frame, a single one in the centre.

    Where `fit` shows the whole frame they are all the same.
    """
    if data.fit != "crop":
        return (_whole(row, data),) * num
    return tuple(Crop(box, data.crop_size) for box in view_boxes(row.height, row.width, num, data.crop_size))


def _whole(row: IndexRow, data: Data) -> Crop:
    """Bring the whole frame to the size of a clip or, with `fit: pad`, to the largest of its own shape in there."""
    size = inscribed((row.height, row.width), data.crop_size) if data.fit == "pad" else data.crop_size
    return Crop((0, 0, row.height, row.width), size)


def clip_bytes(data: Data) -> int:
    """Give the size of a clip, uint8 or uint16 [C, T, H, W]."""
    return data.channels.num * data.channels.num_bytes * math.prod(data.clip_size)
