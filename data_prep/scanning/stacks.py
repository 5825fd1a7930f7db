"""Scan a stack: arrays, pages of a TIFF, pictures of 16 bits a channel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from data_prep.listing.entry import STACK_EXTENSIONS
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scenes import Frames, cut
from vjepa.data.decode import Media, holds_several, is_deep
from vjepa.data.media import DecodeError
from vjepa.data.stacks import AXES, read_array, read_stack


def axes_of(media: Media, extension: str, options: ScanOptions) -> str | None:
    """Name the axes of a stack; None for a picture that is none. Raises DecodeError where nothing says them."""
    if extension in STACK_EXTENSIONS:
        found = options.axes or AXES.get(read_array(media).ndim)
        if found is None:
            raise DecodeError(f"an array of {read_array(media).ndim} axes; name them with --axes")
        return found
    deep, several = is_deep(media), holds_several(media)
    if deep and several and options.pages == "first":
        raise DecodeError("several pages of 16 bits; say what they are with --pages channels or --pages frames")
    if not (deep or (several and options.pages != "first")):
        return None
    page = AXES[read_array(media).ndim - several]
    return ({"channels": "c", "frames": "t"}[options.pages] if several else "") + page


def scan_stack(
    media: Media, codec: str, axes: str, options: ScanOptions, start_s: float | None, end_s: float | None
) -> list[dict[str, Any]]:
    """Describe the clips of a stack, one row each. Raises DecodeError."""
    stack = read_stack(media, axes)
    num, height, width, channels = stack.shape
    full, levels, changes = float(np.iinfo(stack.dtype).max), np.empty(num), np.full(num, np.nan)
    before: np.ndarray | None = None
    for i, frame in enumerate(stack):
        values = frame.astype(np.float32)
        levels[i] = values.mean() / full
        if before is not None:
            changes[i] = np.abs(values - before).mean() / full
        before = values
    frames = Frames(
        times_s=np.arange(num) / options.stack_fps,
        end_s=num / options.stack_fps,
        fps=options.stack_fps,
        keyframes=np.arange(num),
        levels=levels,
        changes=changes,
        sizes=[(0, width, height)],
        scene_starts=[],
        clock_starts=[],
    )
    bits = 8 * stack.dtype.itemsize
    facts = {"decoder": "stack", "codec": codec, "bit_depth": bits, "bits": bits, "channels": channels, "axes": axes}
    still = replace(options, min_s=0.0) if num == 1 else options  # a still is not left out for its length
    return [clip | facts for clip in cut(frames, still, start_s, end_s)]
