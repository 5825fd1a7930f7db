"""What is where in a clip: masks beside videos, cut as their clips are cut.

A column of the index names a file or a folder, from the folder of the index: a grey PNG with all frames one under the
other (the small worlds write those), or a folder with a PNG a frame, as DAVIS has them. 0 is the ground, 255 unknown.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from einops import rearrange
from PIL import Image, UnidentifiedImageError

from vjepa.config import Data
from vjepa.data.augment import scaled_box
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.frame_times import frame_ids
from vjepa.data.plan_rows import Views
from vjepa.errors import UserError
from vjepa.records import TokenGrid

UNKNOWN: Final = 255
_LEAST_SHARE: Final = 0.25  # of a cell, at which it is no longer ground


def read_names(path: Path) -> list[str]:
    """Read what the kinds of things are called, of 1 first; none where the file does not say so."""
    if path.is_dir():
        return []
    with _opened(path) as picture:
        words = picture.info.get("things", "")
        return [name for name in words.split("|") if name]


def of_clip(index: ClipIndex, clip_id: int, data: Data, column: str) -> np.ndarray:
    """Read the marks of a clip, cut as the central view of the clip is: uint8 [T, H, W].

    Raises UserError for a file that is none, or that has not one frame for each of the video.
    """
    row, path = index.row(clip_id), mask_path(index, clip_id, column)
    stored = _read(path, row)
    (decode,) = Views().decodes(row, data, partial(frame_ids, row, data))
    (crop,) = decode.crops
    frames = stored[decode.frame_ids]
    top, left, h, w = scaled_box(crop.box, row.height, row.width, frames)
    rows, columns = (np.arange(new) * old // new for old, new in zip((h, w), crop.size, strict=True))
    cut = frames[:, top + rows][:, :, left + columns]
    marks = np.full((len(cut), *data.crop_size), UNKNOWN, np.uint8)
    down, right = ((full - part) // 2 for full, part in zip(data.crop_size, crop.size, strict=True))
    marks[:, down : down + crop.size[0], right : right + crop.size[1]] = cut
    return marks


def mask_path(index: ClipIndex, clip_id: int, column: str) -> Path:
    """Find the masks of a row, which are named from the folder of its index."""
    return index.path.parent / str(index.cell(clip_id, column))


def shares(marks: np.ndarray, grid: TokenGrid, fine: int, num: int) -> np.ndarray:
    """Measure which share of each cell each of `num` kinds has: uint8 [T, H, W] -> [t, fine * h, fine * w, num].

    What is unknown counts for none. The frame has whole cells, but for a rest at its far end.
    """
    p = marks.shape[1] // grid.h // fine, marks.shape[2] // grid.w // fine
    h, w = fine * grid.h, fine * grid.w
    taps = max(1, len(marks) // grid.t)
    cut = marks[: grid.t * taps, : h * p[0], : w * p[1]]
    cells = rearrange(cut, "(t f) (h a) (w b) -> t h w (f a b)", f=taps, a=p[0], b=p[1])
    return np.stack([(cells == kind).mean(-1) for kind in range(num)], axis=-1)


def labels(share: np.ndarray) -> np.ndarray:
    """Say what is in each cell: shares [..., K] -> int64 [...].

    It is the thing that has most of it, where things have a quarter of it at least, for many are narrower than a cell;
    else the ground, 0; -1 where nothing is known.
    """
    things = share[..., 1:]
    is_thing = things.sum(-1) >= _LEAST_SHARE * share.sum(-1)
    found: np.ndarray = np.where(is_thing & (things.sum(-1) > 0), 1 + things.argmax(-1), 0)
    found[share.sum(-1) == 0] = -1
    return found


def _read(path: Path, row: IndexRow) -> np.ndarray:
    """Read uint8 [T, H, W], a frame for each of the video."""
    if path.is_dir():
        frames = [_array(file) for file in sorted(path.glob("*.png"))]
        stored = np.stack(frames) if frames else np.empty((0, 0, 0), np.uint8)
    else:
        stored = _array(path)
        if len(stored) % row.num_frames == 0:
            stored = stored.reshape(row.num_frames, -1, stored.shape[1])
    if stored.ndim != 3 or len(stored) != row.num_frames:
        raise UserError(f"{path}: has no mask for each of the {row.num_frames} frames of {row.uri}")
    return stored


def _array(path: Path) -> np.ndarray:
    with _opened(path) as picture:
        if picture.mode not in ("L", "P"):
            raise UserError(f"{path}: a mask is a PNG of one channel or with a palette, this is {picture.mode}")
        return np.asarray(picture)


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path}: no mask can be read there ({error}); the index names it") from None
