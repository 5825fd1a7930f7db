"""The plan of one pass over pictures that are in no index: data sets in memory, or files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from vjepa.config import Data
from vjepa.data.augment import view_boxes
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.decode import read_image
from vjepa.data.plan import Attempt, BatchPlan, Crop, Decode, clip_bytes

_WHOLE: Final = Crop((0, 0, 1, 1))  # of a row of one pixel, which stands for a picture of any size


class Images(Protocol):
    """Read pictures by number. Copies in other processes read the same ones."""

    def __len__(self) -> int: ...

    def read(self, i: int) -> np.ndarray:
        """Read picture number `i`, upright: uint8 [H, W, 3]. Raises DecodeError."""
        ...

    def uri(self, i: int) -> str:
        """Say where a reader of a report finds a picture."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Hold pictures in memory. pixels: uint8 [N, H, W, 3]."""

    name: str
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, i: int) -> np.ndarray:
        picture: np.ndarray = self.pixels[i]
        return picture

    def uri(self, i: int) -> str:
        return f"{self.name} image {i}"


@dataclass(frozen=True)
class FileImages:
    """Read pictures from files."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, i: int) -> np.ndarray:
        return read_image(Path(self.paths[i]))

    def uri(self, i: int) -> str:
        return self.paths[i]


@dataclass(frozen=True)
class Squares:
    """Read the squares of a picture that are looked at, as if they were the frames of a clip.

    The size of a picture is known only when it is read, so that its squares cannot be planned before.
    """

    images: Images

    def __call__(self, row: IndexRow, frame_ids: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        """Read picture number `row.clip_id`: uint8 [n, side, side, 3] for n frame ids. Raises DecodeError."""
        picture = self.images.read(row.clip_id)
        boxes = view_boxes(picture.shape[0], picture.shape[1], len(frame_ids))
        return np.stack([picture[top : top + h, left : left + w] for top, left, h, w in boxes])


@dataclass(frozen=True)
class ImagePlan:
    """Plan batch number k as pictures rows[k * n : (k + 1) * n], n = `rows_per_batch`, to be read by `Squares`.

    Each is `num_crops` clips of one frame, side by side; clip ids are numbers of pictures. data: has num_frames 1.
    """

    images: Images
    rows: np.ndarray
    data: Data
    rows_per_batch: int
    num_crops: int = 1

    def __len__(self) -> int:
        return -(-len(self.rows) // self.rows_per_batch)

    @property
    def batch_bytes(self) -> int:
        return clip_bytes(self.data) * self.rows_per_batch * self.num_crops

    def quarantine(self) -> dict[tuple[int, int], str]:
        return {}

    def place(self, source: int, clip_id: int) -> tuple[ClipIndex, int] | None:
        return None

    def uri(self, source: int, clip_id: int) -> str:
        return self.images.uri(clip_id)

    def batch(self, number: int) -> BatchPlan:
        """Plan one batch. A picture that cannot be read is left out."""
        rows = self.rows[number * self.rows_per_batch : (number + 1) * self.rows_per_batch].tolist()
        return BatchPlan(self.data, [[Attempt(i, partial(self._decodes, i))] for i in rows])

    def _decodes(self, i: int) -> list[Decode]:
        row = IndexRow(i, self.images.uri(i), None, None, 0, 0.0, 1.0, 1, 1.0, None, 1, 1, 0, 1.0, "image")
        return [Decode((0, i), row, np.arange(self.num_crops), (i,) * self.num_crops, (_WHOLE,))]
