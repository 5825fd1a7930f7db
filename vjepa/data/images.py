"""Pictures that are in no index, in memory or in files, with rows as an index has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vjepa.data.clip_index import IndexRow
from vjepa.data.stills import image_size, read_image


def handwritten_digits() -> tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's handwritten digits: pictures [1797, 8, 8] in 0..16, and the digit that each shows [1797]."""
    from sklearn.datasets import load_digits  # most of a second, which runs on other data need not wait for

    digits = load_digits()
    return digits.images, digits.target


class Images(Protocol):
    """Read pictures by number. Copies in other processes read the same ones."""

    def __len__(self) -> int: ...

    def row(self, i: int) -> IndexRow:
        """Describe picture number `i` as a row of an index. Raises DecodeError."""
        ...

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

    def row(self, i: int) -> IndexRow:
        return _row(i, self.uri(i), *self.pixels.shape[1:3])

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

    def row(self, i: int) -> IndexRow:
        return _row(i, self.paths[i], *image_size(Path(self.paths[i])))

    def read(self, i: int) -> np.ndarray:
        return read_image(Path(self.paths[i]))

    def uri(self, i: int) -> str:
        return self.paths[i]


@dataclass(frozen=True)
class ReadImages:
    """Stand in for `read_frames` in a `Reader`: read the pictures of a set, always in full."""

    images: Images

    def __call__(self, row: IndexRow, frame_ids: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        """Read the one picture of a row: uint8 [1, H, W, 3]. Raises DecodeError."""
        return self.images.read(row.clip_id)[None]


def _row(i: int, uri: str, height: int, width: int) -> IndexRow:
    return IndexRow(i, uri, None, None, 0, 0.0, 1.0, 1, 1.0, None, width, height, 0, 1.0, "image")
