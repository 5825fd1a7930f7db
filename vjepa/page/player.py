"""A clip on a page: its frames, and layers of cells over or beside them, stepped through together.

A layer is a PNG of one pixel a cell, the time slots side by side. Without scripts the strips are seen as they are.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from vjepa.page.document import image, text

_EXACT_PX: Final = 96  # a side, up to which a strip loses nothing
_HIDDEN: Final = (128, 128, 128, 225)  # what covers a cell that is not seen


@dataclass(frozen=True)
class Layer:
    """Hold cells of a clip. png: [h, t * w] pixels. covers: they lie over the frames, which show where they are clear.

    slots: the time slot of each frame that is shown.
    """

    name: str
    png: bytes
    slots: tuple[int, ...]
    covers: bool = False


@dataclass(frozen=True)
class Film:
    """Hold the frames of a clip, side by side in one picture. kind: webp, jpeg or png. size: of a frame, in pixels.

    names: what each frame is called. is_large: frames are shown in their own size, not enlarged to that of others.
    """

    title: str
    strip: bytes
    kind: str
    names: tuple[str, ...]
    size: tuple[int, int]
    layers: tuple[Layer, ...] = ()


def player(film: Film, number: int) -> str:
    """Write the player of one clip. It never starts by itself: buttons and arrow keys step."""
    num, (width, height) = len(film.names), film.size
    rows = [
        f'<div class="strip"><span>frames</span><img class="frames" alt="{num} frames of {text(film.title)}, from left '
        f'to right" src="{image(film.kind, film.strip)}"></div>'
    ]
    for layer in film.layers:
        what = "cells that are not seen are grey" if layer.covers else "colours of cells"
        slots = ",".join(map(str, layer.slots))
        rows.append(
            f'<div class="strip"><span>{text(layer.name)}</span><img class="cells{" covers" if layer.covers else ""}" '
            f'alt="{text(layer.name)}: {what}, time slots from left to right" data-slots="{slots}" '
            f'src="{image("png", layer.png)}"></div>'
        )
    names = text(json.dumps(film.names))
    return (
        f'<figure class="player" id="player-{number}" tabindex="0" role="group" aria-label="{text(film.title)}" '
        f'data-names="{names}" data-width="{width}" data-height="{height}">\n'
        f"<figcaption>{text(film.title)}</figcaption>\n"
        f'<div class="strips">{"".join(rows)}</div>\n</figure>'
    )


def mask_png(seen: np.ndarray) -> bytes:
    """Draw which cells are seen, bool [t, h, w]: clear where they are, else grey."""
    cells = np.zeros((*seen.shape, 4), np.uint8)
    cells[~seen] = _HIDDEN
    return cells_png(cells)


def cells_png(cells: np.ndarray) -> bytes:
    """Draw cells, uint8 [t, h, w, 3 or 4], the time slots side by side."""
    side_by_side = np.concatenate(list(cells), axis=1)
    return encoded(side_by_side, "PNG", optimize=True)


def strip(frames: np.ndarray) -> bytes:
    """Join frames, uint8 [T, H, W, 3], side by side in one picture; small ones keep every pixel as it is."""
    how: dict[str, object] = {"lossless": True} if max(frames.shape[1:3]) <= _EXACT_PX else {"quality": 88}
    return encoded(np.concatenate(list(frames), axis=1), "WEBP", **how)


def encoded(picture: np.ndarray, kind: str, **how: object) -> bytes:
    """Encode uint8 [H, W, 3 or 4] as a picture of Pillow's `kind`."""
    with io.BytesIO() as buffer:
        Image.fromarray(picture).save(buffer, kind, **how)
        return buffer.getvalue()


def shrink(frames: np.ndarray, most_px: int) -> np.ndarray:
    """Shrink frames, uint8 [T, H, W, 3], to at most `most_px` a side; smaller ones stay as they are."""
    height, width = frames.shape[1:3]
    scale = most_px / max(height, width)
    if scale >= 1:
        return frames
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])


def spread_frames(num: int, most: int) -> Sequence[int]:
    """Choose at most `most` of `num` frames, evenly, the first and the last among them."""
    chosen: list[int] = np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(int)).tolist()
    return chosen
