"""Files that are videos or images, by their extensions, and what there is to know of one before it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from data_prep.listing.tracks import FileTracks

VIDEO_EXTENSIONS: Final = frozenset({
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg",
    ".m2ts", ".mts", ".ts", ".3gp", ".3g2", ".wmv", ".asf", ".flv", ".ogv",
    ".ogg", ".vob", ".mxf", ".dv", ".y4m", ".gif",
})  # fmt: skip
IMAGE_EXTENSIONS: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif"})
STACK_EXTENSIONS: Final = frozenset({".npy", ".npz"})  # arrays: pictures of any channels, and series of them
MEDIA_EXTENSIONS: Final = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS | STACK_EXTENSIONS


@dataclass(frozen=True, slots=True)
class Entry:
    """Name one video or image to scan.

    uri: absolute local path or fsspec address. name: relative to its source, which is what labels and messages call it.
    offset, length: bytes, where it is a member of a tar shard. start_s, end_s: the part that is meant, where a manifest
    says so. columns: label, split, group and any other text. tracks: reads the numbers that belong to its frames, or
    raises DecodeError.
    """

    uri: str
    name: str
    offset: int | None = None
    length: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    tracks: Callable[[], FileTracks] | None = None
