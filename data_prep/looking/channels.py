"""Measure the channels of an index: what `data.channels` of a config says of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vjepa.config import Channels
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.decode import read_frames
from vjepa.data.media import DecodeError
from vjepa.errors import UserError


def measured_channels(index: ClipIndex, where: Mapping[str, str | list[str]], num: int) -> str:
    """Read the middle frame of `num` clips, evenly among those that are meant; give the lines of a config.

    Mean and deviation are over all pixels, as shares of full scale. Of a film with a companion, that is grey. Raises
    UserError where no clip can be read, or where they have different channels.
    """
    if num < 1:
        raise UserError(f"--channels {num}: at least 1 is needed")
    rows = index.select(where)
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(num, len(rows))).astype(int))]
    sums: dict[tuple[int, int], list[np.ndarray]] = {}
    for row in (index.row(int(i)) for i in chosen):
        try:
            values = _middle(row)
        except DecodeError:
            continue
        key = values.shape[-1], max(row.bits, row.companion.bits if row.companion else 8)
        pixels = values.reshape(-1, values.shape[-1])
        sums.setdefault(key, []).append(np.stack([pixels.mean(0), np.square(pixels).mean(0)]))
    if len(sums) != 1:
        found = (
            ", ".join(f"{len(each)} of {key[0]} with {key[1]} bits" for key, each in sums.items()) or "none readable"
        )
        raise UserError(f"{index.path}: clips of one kind are needed, found {found}; choose them with --where")
    (((channels, bits), moments),) = sums.items()
    mean, square = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    names = Channels().names if channels == 3 else tuple(f"channel_{number}" for number in range(1, channels + 1))
    return "\n".join(
        [
            f"# {len(moments)} of {len(rows)} clips of {index.path.name}; name the channels as you like",
            "data:",
            "  channels:",
            f"    names: [{', '.join(names)}]",
            f"    mean: [{', '.join(f'{value:.5f}' for value in mean)}]",
            f"    std: [{', '.join(f'{max(value, 1e-5):.5f}' for value in std)}]",
            f"    bits: {bits}",
        ]
    )


def _middle(row: IndexRow) -> np.ndarray:
    """Read the middle frame, float64 [H, W, C] in shares of full scale; a companion follows as grey."""
    parts = [_shares(row)]
    if row.companion:
        more = _shares(row.companion)
        more = more.mean(-1, keepdims=True) if row.companion.channels == 3 else more
        if more.shape[:2] != parts[0].shape[:2]:  # its mean and deviation are those of any other sampling
            grid = np.ix_(*(np.arange(n) * m // n for n, m in zip(parts[0].shape[:2], more.shape[:2], strict=True)))
            more = more[grid]
        parts.append(more)
    return np.concatenate(parts, axis=-1)


def _shares(row: IndexRow) -> np.ndarray:
    frame = read_frames(row, np.array([row.num_frames // 2]))[0]
    shares: np.ndarray = frame / float(np.iinfo(frame.dtype).max)
    return shares
