"""From the channels of a file, or of a film and its companion, to those that `data.channels` names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from vjepa.config import Channels
from vjepa.data.clip_index import COMPANION, ClipIndex
from vjepa.data.media import DecodeError
from vjepa.errors import UserError

_LUMA: Final = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601), as Pillow has it


def joined(parts: Sequence[np.ndarray], channels: Channels) -> np.ndarray:
    """Join the frames of a film and of its companion, [T, H, W, c] each: uint8 or uint16 [T, H, W, C].

    The first part has the channels that it has, a companion what is left of those that are named. Colours become grey
    for a single channel, grey three equal colours. 8 bits are scaled to 16. Raises DecodeError where they do not fit.
    """
    wanted = [channels.num] if len(parts) == 1 else [parts[0].shape[-1], channels.num - parts[0].shape[-1]]
    fitted = [_in_bits(_in_number(part, num, channels), channels) for part, num in zip(parts, wanted, strict=True)]
    return fitted[0] if len(fitted) == 1 else np.concatenate(fitted, axis=-1)


def _in_number(frames: np.ndarray, num: int, channels: Channels) -> np.ndarray:
    """Give frames [T, H, W, c] `num` channels."""
    if frames.shape[-1] == num:
        return frames
    if not can_become(frames.shape[-1], num):
        raise DecodeError(f"has {frames.shape[-1]} channels, {num} of {', '.join(channels.names)} are wanted")
    if num == 3:
        return np.repeat(frames, 3, axis=-1)
    grey: np.ndarray = (frames @ np.array(_LUMA)).round().astype(frames.dtype)[..., None]
    return grey


def _in_bits(frames: np.ndarray, channels: Channels) -> np.ndarray:
    """Scale 8 bits to 16: 255 becomes 65535."""
    bits = 8 * frames.dtype.itemsize
    if bits > channels.bits:
        raise DecodeError("has 16 bits a channel; set data.channels.bits: 16")
    return frames if bits == channels.bits else frames.astype(np.uint16) * 257


def can_become(num: int, wanted: int) -> bool:
    """Tell whether frames of `num` channels can be given `wanted`: as they are, as grey, or grey as colours."""
    return num == wanted or {num, wanted} == {1, 3}


def require_channels(index: ClipIndex, rows: np.ndarray, channels: Channels) -> None:
    """Raise UserError, before anything is read, for a row that cannot be given the channels that are named.

    rows: int64 [n] of the index.
    """
    columns = {name: index.arrow(name).fill_null(missing) for name, missing in (("channels", 3), ("bits", 8))}
    count, bits = (np.asarray(columns[name])[rows] for name in ("channels", "bits"))
    names = index.column(COMPANION) if COMPANION in index.names else [None] * len(index)
    paired = np.array([names[row] is not None for row in rows.tolist()])
    fits = np.array([can_become(num, channels.num) for num in count.tolist()])
    fits = np.where(paired, count < channels.num, fits) & (bits <= channels.bits)
    wrong = np.flatnonzero(~fits)
    if len(wrong):
        first = wrong[0]
        raise UserError(
            f"{index.path}: {len(wrong)} of {len(rows)} clips do not fit data.channels, which names {channels.num} of "
            f"{channels.bits} bits ({', '.join(channels.names)}); the first, {index.uri(int(rows[first]))}, has "
            f"{count[first]} of {bits[first]}. `python -m data_prep.describe {index.path.name} --channels` gives "
            "data.channels; data.train.where chooses rows, also by the columns channels and bits"
        )
