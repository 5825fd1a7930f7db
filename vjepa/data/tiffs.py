"""Pages of TIFFs: what their tags say, and pixels of any number of samples, in whatever order and depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from vjepa.data.media import DecodeError, Media, library, plain, rewound

_SIGNS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: of more than 4 GiB
_NEW_SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES = 254, 258, 262, 277, 338
_REDUCED_OR_MASK: Final = 1 | 4  # of NewSubfileType: a smaller copy of another page, or its mask
_ALPHA: Final = (1, 2)  # of ExtraSamples
_CMYK: Final = 5  # of PhotometricInterpretation


@dataclass(frozen=True)
class Page:
    """Describe a page. number: among all in the file. kept: places of its samples that are no transparency."""

    number: int
    bits: int
    kept: tuple[int, ...]
    is_cmyk: bool

    @property
    def is_deep(self) -> bool:
        """Tell whether it holds more than a picture of 8 bits in grey or colours."""
        return self.bits > 8 or (len(self.kept) not in (1, 3) and not self.is_cmyk)

    @property
    def is_known_to_pillow(self) -> bool:
        return len(self.kept) == 1 or not self.is_deep


def is_tiff(start: bytes) -> bool:
    """Tell it by the first bytes of a file."""
    return start.startswith(_SIGNS)


def pages_of(media: Media) -> list[Page]:
    """List the pages that are pictures of their own: neither smaller copies of others nor masks. Raises DecodeError."""
    try:
        if isinstance(media, str | Path):
            with open(media, "rb") as file:
                return _pages(file)
        return _pages(rewound(media))
    except Exception as error:  # noqa: BLE001 - whatever damaged tags make Pillow stumble over
        raise DecodeError(plain(error)) from None


def read_pages(media: Media) -> list[np.ndarray]:
    """Read the pages that are pictures of their own: [h, w], or [h, w, c] without transparency. Raises DecodeError."""
    pages = pages_of(media)
    if all(page.is_known_to_pillow for page in pages):
        with Image.open(rewound(media)) as image:
            return [_seen_by_pillow(image, page) for page in pages]
    tifffile = library("tifffile", "tiff", "a TIFF of this kind")
    with tifffile.TiffFile(rewound(media)) as opened:
        return [_seen_by_tifffile(opened.pages[page.number], page) for page in pages]


def _pages(file: BinaryIO) -> list[Page]:
    header = file.read(16)
    tags = ImageFileDirectory_v2(header if header[2:4] in (b"+\0", b"\0+") else header[:8])
    found, places, place = [], set[int](), tags.next
    while place and place not in places:  # a damaged file may lead back
        places.add(place)
        file.seek(place)
        tags.load(file)
        if not tags.get(_NEW_SUBFILE_TYPE, 0) & _REDUCED_OR_MASK:
            found.append(_page(len(places) - 1, tags))
        place = tags.next
    return found


def _page(number: int, tags: Any) -> Page:
    samples, extra = tags.get(_SAMPLES, 1), tags.get(_EXTRA_SAMPLES, ())
    alpha = {samples - len(extra) + i for i, kind in enumerate(extra) if kind in _ALPHA}
    kept = tuple(i for i in range(samples) if i not in alpha)
    return Page(number, max(tags.get(_BITS, (1,))), kept, tags.get(_PHOTOMETRIC) == _CMYK)


def _seen_by_pillow(image: Any, page: Page) -> np.ndarray:
    image.seek(page.number)
    if image.mode == "L" or image.mode.startswith(("I", "F")):
        return np.asarray(image)
    return np.asarray(image.convert("RGB"))


def _seen_by_tifffile(stored: Any, page: Page) -> np.ndarray:
    axes = stored.axes
    if not set(axes) <= set("YXS"):
        raise DecodeError(f"a page with the axes {axes}, of which Y X S can be read")
    pixels: np.ndarray = stored.asarray()
    return np.moveaxis(pixels, axes.index("S"), -1)[..., page.kept] if "S" in axes else pixels
