"""Stacks: pictures of any number of channels, and series of them: arrays (.npy, .npz, Zarr), TIFFs, PNGs of 16 bits.

The axes of a stack are a letter each: t, h, w, c; those that it lacks are of length 1. Pages of a TIFF are its first
axis. Values are uint8 or uint16.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageSequence

from vjepa.data.media import DecodeError, Media, first_bytes, is_zarr, library, plain, rewound
from vjepa.data.pyav import open_video
from vjepa.data.stills import is_deep_png
from vjepa.data.tiffs import is_tiff, read_pages

AXES: Final = {2: "hw", 3: "hwc", 4: "thwc"}  # of arrays of so many axes, where nothing else is said
_KEPT: Final = (np.uint8, np.uint16)
_NPY, _ZIP = b"\x93NUMPY", b"PK"
_NUM_NAMED: Final = 4


class Stack:
    """Read frames of an array by its axes. shape: (T, H, W, C). bits: 8 or 16.

    num_at_once: frames that are read at the price of one.
    """

    def __init__(self, array: Any, axes: str) -> None:
        """Take an array of NumPy or Zarr. Raises DecodeError where it has other axes or values."""
        if sorted(axes) != sorted(set(axes)) or len(axes) != array.ndim or not {"h", "w"} <= set(axes) <= set("thwc"):
            raise DecodeError(
                f"an array of shape {list(array.shape)} has no axes {axes}: a letter each of t h w c, h and w"
            )
        if array.dtype not in _KEPT:
            raise DecodeError(f"values of {array.dtype}, not uint8 or uint16; scale them to whole numbers")
        if 0 in array.shape:
            raise DecodeError(f"an empty array, of shape {list(array.shape)}")
        self._array, self._axes = array, axes
        sizes = dict(zip(axes, array.shape, strict=True))
        self.shape = tuple(sizes.get(axis, 1) for axis in "thwc")
        self.bits = 8 * array.dtype.itemsize
        stored = getattr(array, "chunks", None)  # of Zarr: what is read and unpacked as one
        self.num_at_once = int(dict(zip(axes, stored, strict=True)).get("t", 1)) if stored else 1

    def __len__(self) -> int:
        return int(self.shape[0])

    def frames(self, ids: Any) -> np.ndarray:
        """Read frames: int [n], ascending -> uint8 or uint16 [n, H, W, C]; of a stored array those alone."""
        picked = tuple(ids if axis == "t" else slice(None) for axis in self._axes)
        array = np.asarray(getattr(self._array, "oindex", self._array)[picked])
        ordered = array.transpose([self._axes.index(name) for name in "thwc" if name in self._axes])
        for place, name in enumerate("thwc"):
            if name not in self._axes:
                ordered = np.expand_dims(ordered, place)
        return ordered


def open_stack(media: Media, axes: str) -> Stack:
    """Open a stack of these axes. Raises DecodeError."""
    return Stack(read_array(media), axes)


def read_array(media: Media) -> Any:
    """Read what is stored: an array, mapped where it can be; the only one of a .npz; the pages of a picture.

    Of a Zarr store its array, which reads its chunks when they are wanted. Raises DecodeError.
    """
    try:
        if isinstance(media, str) and is_zarr(media):
            return _only_of_store(media)
        start = first_bytes(media)
        if start.startswith(_NPY):
            return np.load(media, mmap_mode="r" if isinstance(media, str | Path) else None)
        return _only(media) if start.startswith(_ZIP) else _picture(media, start)
    except DecodeError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged file makes NumPy, Pillow, tifffile or Zarr stumble over
        raise DecodeError(plain(error)) from None


def _only_of_store(place: str) -> Any:
    zarr = library("zarr", "zarr", "a Zarr store")
    opened = zarr.open(place, mode="r")
    if isinstance(opened, zarr.Array):
        return opened
    arrays = dict(opened.arrays())
    _check_one(list(arrays))
    return next(iter(arrays.values()))


def _only(media: Any) -> np.ndarray:
    with np.load(media) as arrays:
        _check_one(arrays.files)
        array: np.ndarray = arrays[arrays.files[0]]
        return array


def _check_one(names: list[str]) -> None:
    if len(names) != 1:
        raise DecodeError(f"{len(names)} arrays ({', '.join(names[:_NUM_NAMED])}); save one in each file")


def _picture(media: Media, start: bytes) -> np.ndarray:
    """Read a picture of any depth [h, w] or [h, w, c], or several pages of one size with an axis before these."""
    pages = [_deep_png(media)] if is_deep_png(start) else read_pages(media) if is_tiff(start) else _frames(media)
    if not pages:
        raise DecodeError("no page")
    if len({page.shape for page in pages}) > 1:
        raise DecodeError("pages of different sizes or modes")
    pixels = pages[0] if len(pages) == 1 else np.stack(pages)
    if pixels.dtype == np.int32 and pixels.min() >= 0 and pixels.max() <= np.iinfo(np.uint16).max:
        return pixels.astype(np.uint16)  # what older versions of Pillow make of 16 bits
    return pixels.astype(pixels.dtype.newbyteorder("="))


def _frames(media: Media) -> list[np.ndarray]:
    """Read the frames of an animation: [h, w] each, or [h, w, 3]."""
    with Image.open(rewound(media)) as image:
        return [
            np.asarray(frame if frame.mode == "L" else frame.convert("RGB")) for frame in ImageSequence.Iterator(image)
        ]


def _deep_png(media: Media) -> np.ndarray:
    """Read a PNG of 16 bits a channel, of which Pillow gives 8: [h, w], or [h, w, 3] without transparency."""
    data = BytesIO(Path(media).read_bytes()) if isinstance(media, str | Path) else media  # names may be patterns to it
    with open_video(data) as (container, stream):
        frame = next(container.decode(stream), None)
    if frame is None:
        raise DecodeError("no decodable frame")
    samples = np.frombuffer(frame.planes[0], ">u2").reshape(frame.height, -1)  # its rows are padded
    num = len(frame.format.components)
    pixels = samples[:, : frame.width * num].reshape(frame.height, frame.width, num)
    return pixels[..., 0] if num < 3 else pixels[..., :3]
