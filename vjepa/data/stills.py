"""Read a still picture with Pillow, upright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from PIL import ExifTags, Image

from vjepa.data.media import DecodeError, Media, Size, first_bytes, plain, rewound
from vjepa.data.tiffs import is_tiff, pages_of

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what makes the picture upright
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_BITS: Final = 24  # place of the bits a channel among the bytes of a PNG
_FIRST_TURNED: Final = 5  # of the EXIF orientations, which are numbered to 8: width and height change places


def read_image(media: Media, size: Size | None = None) -> np.ndarray:
    """Read a still: uint8 [H, W, 3], turned upright by its EXIF orientation, scaled to `size` where it is given.

    Raises DecodeError.
    """
    with _open_image(media) as image:
        if image.mode.startswith(("I", "F")):
            raise DecodeError(f"an image of mode {image.mode}, not of 8 bits a channel")
        if size:  # a JPEG is decoded at 1/2, 1/4 or 1/8 where that is not below `size`, whichever way it is turned
            image.draft("RGB", (max(size), max(size)))
        turn = _TURNS.get(_orientation(image))
        picture = (image if turn is None else image.transpose(turn)).convert("RGB")
        return np.array(picture.resize(size[::-1], Image.Resampling.BILINEAR) if size else picture)


def image_size(media: Media) -> Size:
    """Read the size of a still, upright, from its header. Raises DecodeError."""
    with _open_image(media) as image:
        is_turned = _orientation(image) >= _FIRST_TURNED
        return image.size if is_turned else (image.height, image.width)


def holds_several(media: Media) -> bool:
    """Tell whether a still is the first of several in its file (animations, pages), of which it alone is read.

    What phones keep beside a photograph in its JPEG (depth, brightness; MPO) does not count, nor do smaller copies of a
    page, as maps have them.
    """
    if is_tiff(first_bytes(media)):
        return len(pages_of(media)) > 1
    with _open_image(media) as image:
        return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


def is_deep(media: Media) -> bool:
    """Tell whether a still has more than 8 bits, or other channels than grey or colours: `stacks` reads it.

    Raises DecodeError.
    """
    start = first_bytes(media)
    if is_tiff(start):
        return any(page.is_deep for page in pages_of(media))
    return is_deep_png(start)


def is_deep_png(start: bytes) -> bool:
    """Tell by the first bytes of a file whether it is a PNG of 16 bits a channel."""
    return start.startswith(_PNG) and start[_PNG_BITS] == 16


@contextmanager
def _open_image(media: Media) -> Iterator[Image.Image]:
    """Open a still. Errors of opening and of the body become DecodeError: those of Pillow share no base."""
    try:
        with Image.open(rewound(media)) as image:
            yield image
    except DecodeError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged picture makes a plugin stumble over
        raise DecodeError(plain(error)) from None


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation alone, 1 to 8; 1, as it is, where there is none that can be read.

    Whatever else EXIF holds, and however wrong, does not keep a picture from being turned.
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - of damaged EXIF, as viewers do: the picture is there all the same
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1
