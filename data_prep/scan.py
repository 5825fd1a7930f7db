"""Scan one file: measure by decoding what a header may lie about, in one pass in order, and cut it into clips.

A decoder may spin for ever in native code, or crash, so `scan` belongs into a process that can be killed:
`data_prep.scan_pool`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np

from data_prep.measure import Measured, measure
from data_prep.places import suffix
from data_prep.random_access import exact_decoder, keyframe_decoder
from data_prep.scenes import BLACK_BELOW, cut, filter_status
from vjepa.data.clip_index import IndexRow
from vjepa.data.decode import DecodeError, open_media, plain, read_image
from vjepa.errors import UserError

VIDEO_EXTENSIONS: Final = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".avi",
        ".mkv",
        ".webm",
        ".mpg",
        ".mpeg",
        ".m2ts",
        ".mts",
        ".ts",
        ".3gp",
        ".wmv",
        ".flv",
        ".ogv",
        ".gif",
    }
)
IMAGE_EXTENSIONS: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

_REASONS: Final = {  # part of the message of FFmpeg or Pillow: what it means
    "Invalid data": "not a video or image",
    "cannot identify": "not a video or image",
    "truncated": "damaged: it is cut short",
    "End of file": "damaged: it is cut short",
    "broken PNG": "damaged image",
    "data stream": "damaged image",
    "cannot load this image": "damaged image",
    "Not yet implemented": "of a kind that FFmpeg cannot decode",
    "decompression bomb": "an image of too many pixels",
}


@dataclass(frozen=True)
class ScanOptions:
    """How videos become clips. Whatever is left as it is here cuts and leaves out nothing.

    Scenes are cut first, then what is longer than `max_s`, then windows.
    """

    window_s: float | None = None  # seconds > 0; a window starts where the one before ends, the last one is shorter
    scenes: bool = False  # cut where the scene changes
    scene_threshold: float = 27.0  # > 0; change of hue, saturation and brightness that makes a new scene, of 255
    max_s: float | None = None  # seconds > 0; what is longer is cut into equal parts
    min_s: float = 0.0  # seconds; shorter clips are left out
    min_motion: float = 0.0  # share of white in [0, 1]; clips of less mean change from frame to frame are left out
    max_black: float = 1.0  # share of frames in [0, 1]; clips with more black ones are left out
    max_frozen: float = 1.0  # share of frames in [0, 1]; clips with more frames that equal the one before are left out

    def __post_init__(self) -> None:
        for name in ("window_s", "max_s", "scene_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} {value:g}: must be more than 0")
        if not 0 <= self.min_s < math.inf:
            raise UserError(f"min_s {self.min_s:g}: must be 0 or more")
        for name in ("min_motion", "max_black", "max_frozen"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name):g}: is a share, from 0 to 1")
        if self.scenes and importlib.util.find_spec("scenedetect") is None:
            raise UserError("scenes: PySceneDetect is not installed; pip install 'video-jepa[scenes]'")


class Scannable(Protocol):
    """What `scan` reads of an Entry of `data_prep.sources`."""

    @property
    def uri(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def offset(self) -> int | None: ...
    @property
    def length(self) -> int | None: ...
    @property
    def start_s(self) -> float | None: ...
    @property
    def end_s(self) -> float | None: ...


class Announce(Protocol):
    """Is told how far a scan has come: `facts` of the file, `num_frames` decoded in order, `trying` the decoder of that
    name.
    """

    def __call__(self, **message: Any) -> None: ...


def _nobody(**message: Any) -> None:
    """Nobody waits for the news."""


def scan(
    entry: Scannable, options: ScanOptions, excluded: Collection[str] = (), announce: Announce = _nobody
) -> list[dict[str, Any]]:
    """The columns of the clip index that the file decides, one row for each clip, in order; at least one.

    `status` is "ok", "filtered: ..." or the reason why the file cannot be used, which is the only row then.
    excluded: decoders that are not to be tried; announce: is told how far the scan has come, of a decoder before each
    clip that it reads.
    """
    row: dict[str, Any] = {"first_frame": 0, "num_frames": 0, "rotation": 0, "sample_aspect": 1.0, "content_hash": None}
    try:
        facts = file_facts(entry.uri)
        row |= asdict(facts)
        announce(facts=asdict(facts))
        if facts.file_bytes == 0 or entry.length == 0:
            raise DecodeError("empty file")
        with _at_hand(entry) as media:
            row["content_hash"] = media.sha256()
            extension = suffix(entry.uri if entry.offset is None else entry.name)
            is_image = extension in IMAGE_EXTENSIONS
            clips = (
                _scan_image(media, extension, options)
                if is_image
                else _scan_video(media, entry, options, excluded, announce)
            )
            return [row | clip for clip in clips]
    except DecodeError as error:
        return [row | {"status": _reason(error)}]
    except OSError as error:
        return [row | {"status": plain(error)}]


@dataclass(frozen=True)
class FileFacts:
    """Size and change of a file, as the index keeps them; None where the storage does not tell."""

    file_bytes: int | None
    modified_ns: int | None


def file_facts(uri: str) -> FileFacts:
    """Facts of the file at an absolute path or fsspec address, of a shard as a whole. Raises OSError."""
    if "://" not in uri:
        facts = Path(uri).stat()
        return FileFacts(facts.st_size, facts.st_mtime_ns)
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(uri)
    info = filesystem.info(path)
    changed = next(
        (info[key] for key in ("mtime", "LastModified", "last_modified", "updated", "created") if info.get(key)), None
    )
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return FileFacts(info.get("size"), int(changed * 1e9) if isinstance(changed, int | float) else None)


@dataclass(frozen=True)
class _Bytes:
    """Where the bytes of one file are, as `open_media` takes it."""

    uri: str
    offset: int | None
    length: int | None

    def open(self) -> str | BinaryIO:
        return open_media(self.uri, self.offset, self.length)

    def sha256(self) -> str:
        """In hex digits."""
        media, digest = self.open(), hashlib.sha256()
        with open(media, "rb") if isinstance(media, str) else media as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


@contextmanager
def _at_hand(entry: Scannable) -> Iterator[_Bytes]:
    """The bytes of the entry on this machine, as every decoder that is tried reads them anew; a nameless file does not
    outlive a kill.
    """
    if "://" not in entry.uri:
        yield _Bytes(entry.uri, entry.offset, entry.length)
        return
    media = open_media(entry.uri, entry.offset, entry.length)
    with tempfile.TemporaryFile() as copy:
        copy.write(b"" if isinstance(media, str) else media.read())
        copy.flush()
        del media
        yield _Bytes(f"/dev/fd/{copy.fileno()}", 0, copy.tell())


def _scan_image(media: _Bytes, extension: str, options: ScanOptions) -> list[dict[str, Any]]:
    """A still is a video of one frame that lasts one second, and is not left out for its length."""
    picture = read_image(media.open())
    height, width, _ = picture.shape
    row = {
        "start_s": 0.0, "end_s": 1.0, "num_frames": 1, "fps": 1.0,
        "keyframes_s": [0.0], "width": width, "height": height,
        "codec": extension[1:], "bit_depth": 8, "decoder": "image",
        "motion_ratio": None, "black_ratio": float(picture.mean() / 255 < BLACK_BELOW), "frozen_ratio": None,
    }  # fmt: skip
    return [row | {"status": filter_status(row, replace(options, min_s=0.0))}]


def _scan_video(
    media: _Bytes, entry: Scannable, options: ScanOptions, excluded: Collection[str], announce: Announce
) -> list[dict[str, Any]]:
    scene_threshold = options.scene_threshold if options.scenes else None
    measured = measure(media.open(), entry.end_s, scene_threshold, lambda num_frames: announce(num_frames=num_frames))
    clips = cut(measured.frames, options, entry.start_s, entry.end_s)
    decoders: dict[str, Any] = {"decoder": "pyav", "keyframe_decoder": None}
    if measured.in_order and len(measured.frames.sizes) == 1:  # random access goes by timestamps, and wants one size
        row, say = _whole(media, measured), lambda name: announce(trying=name)
        row = replace(row, decoder=exact_decoder(row, measured.samples, measured.num_total, excluded, say))
        decoders = {"decoder": row.decoder, "keyframe_decoder": keyframe_decoder(row, measured.samples, excluded, say)}
    return [measured.columns | clip | decoders for clip in clips]


def _whole(media: _Bytes, measured: Measured) -> IndexRow:
    """The file as one clip."""
    columns = (
        cut(measured.frames, ScanOptions())[0]
        | measured.columns
        | {"clip_id": -1, "decoder": "pyav", "keyframe_decoder": None}
    )
    columns |= {"uri": media.uri, "offset": media.offset, "length": media.length}
    times_s = columns["times_s"]
    columns["times_s"] = None if times_s is None else np.array(times_s)
    return IndexRow(**{field.name: columns[field.name] for field in fields(IndexRow)})


def _reason(error: DecodeError) -> str:
    """One reason for what libraries say in many ways, so that reasons can be counted."""
    return next((reason for words, reason in _REASONS.items() if words.lower() in str(error).lower()), str(error))
