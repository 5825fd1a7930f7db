"""Scan a stack: arrays, pages of a TIFF, pictures of 16 bits a channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_prep.listing.entry import STACK_EXTENSIONS
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scenes import cut
from data_prep.scanning.track import WHITE, FileScan, Track
from vjepa.data.media import DecodeError, Media
from vjepa.data.stacks import AXES, Stack, open_stack, read_array
from vjepa.data.stills import holds_several, is_deep


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


def scan_stack(media: Media, columns: Mapping[str, Any], codec: str, axes: str, fps: float) -> FileScan:
    """Say what is in a stack of `axes`. columns: those of the file. Raises DecodeError."""
    stack = open_stack(media, axes)
    num, height, width, channels = stack.shape
    scale, levels, changes = WHITE / float(2**stack.bits - 1), np.empty(num), np.zeros(num)
    before: np.ndarray | None = None
    for i, frame in enumerate(_frames(stack)):
        values = frame.astype(np.float32)
        levels[i] = values.mean() * scale
        if before is not None:
            changes[i] = np.abs(values - before).mean() * scale
        before = values
    seconds, keyframes = np.arange(num) / fps, np.arange(num)
    track = Track(seconds, 1, levels, changes, keyframes, [(0, width, height)], [], fps)
    facts = {"decoder": "stack", "codec": codec, "bit_depth": stack.bits, "bits": stack.bits}
    facts |= {"channels": channels, "axes": axes}
    if num > 1:
        return FileScan(columns, clip=facts, track=track)
    (still,) = cut(track.frames(), ScanOptions())
    return FileScan(columns, clip=still | facts)


def _frames(stack: Stack) -> Iterator[np.ndarray]:
    """Read [H, W, C] frame by frame, each chunk of a store once."""
    for start in range(0, len(stack), stack.num_at_once):
        yield from stack.frames(np.arange(start, min(start + stack.num_at_once, len(stack))))
