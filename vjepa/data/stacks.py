"""Stacks: pictures of any number of channels, and series of them, as arrays (.npy, .npz), TIFFs and 16-bit PNGs.

The axes of a stack are a letter each: t, h, w, c; those that it lacks are of length 1. Pages of a TIFF are its first
axis. Values are uint8 or uint16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from PIL import Image, ImageSequence

from vjepa.data.media import DecodeError, plain

AXES: Final = {2: "hw", 3: "hwc", 4: "thwc"}  # of arrays of so many axes, where nothing else is said
_KEPT: Final = (np.uint8, np.uint16)
_NPY, _ZIP = b"\x93NUMPY", b"PK"


def read_stack(media: str | Path | BinaryIO, axes: str) -> np.ndarray:
    """Read a stack as uint8 or uint16 [T, H, W, C], of a local array without what is not needed. Raises DecodeError."""
    found = read_array(media)
    if sorted(axes) != sorted(set(axes)) or len(axes) != found.ndim or not {"h", "w"} <= set(axes) <= set("thwc"):
        raise DecodeError(
            f"an array of shape {list(found.shape)} has no axes {axes}: a letter each of t h w c, h and w"
        )
    if found.dtype not in _KEPT:
        raise DecodeError(f"values of {found.dtype}, not uint8 or uint16; scale them to whole numbers")
    if not found.size:
        raise DecodeError(f"an empty array, of shape {list(found.shape)}")
    ordered = found.transpose([axes.index(name) for name in "thwc" if name in axes])
    for place, name in enumerate("thwc"):
        if name not in axes:
            ordered = np.expand_dims(ordered, place)
    return ordered


def read_array(media: str | Path | BinaryIO) -> np.ndarray:
    """Read what is stored: an array, the only one of a .npz, or the pages of a picture. Raises DecodeError."""
    try:
        start = _start(media)
        if start.startswith(_NPY):
            array: np.ndarray = np.load(media, mmap_mode="r" if isinstance(media, str | Path) else None)
            return array
        return _only(media) if start.startswith(_ZIP) else _pages(media)
    except DecodeError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes NumPy or a plugin of Pillow stumble over
        raise DecodeError(plain(error)) from None


def _start(media: str | Path | BinaryIO) -> bytes:
    """Read the first bytes; a file object stands at its start again."""
    if isinstance(media, str | Path):
        with open(media, "rb") as file:
            return file.read(32)
    media.seek(0)
    start = media.read(32)
    media.seek(0)
    return start


def _only(media: Any) -> np.ndarray:
    with np.load(media) as arrays:
        if len(arrays.files) != 1:
            raise DecodeError(f"{len(arrays.files)} arrays ({', '.join(arrays.files[:4])}); save one in each file")
        array: np.ndarray = arrays[arrays.files[0]]
        return array


def _pages(media: Any) -> np.ndarray:
    """Read a picture of any depth [h, w] or [h, w, c], or several pages of one size with an axis before these."""
    with Image.open(media) as image:
        pages = [_page(page) for page in ImageSequence.Iterator(image)]
    if len({page.shape for page in pages}) > 1:
        raise DecodeError("pages of different sizes or modes")
    return pages[0] if len(pages) == 1 else np.stack(pages)


def _page(page: Any) -> np.ndarray:
    pixels = np.asarray(page if page.mode in ("L", "RGB", "RGBA") or page.mode.startswith("I") else page.convert("RGB"))
    if page.mode == "I" and pixels.min() >= 0 and pixels.max() <= np.iinfo(np.uint16).max:
        return pixels.astype(np.uint16)  # what older versions of Pillow make of 16 bits
    return pixels.astype(pixels.dtype.newbyteorder("="))
