"""Where the bytes of a video or image are.

A local file, a slice of a local shard, or an object behind any fsspec address.
"""

from __future__ import annotations

import io
import re
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final

from fsspec.core import url_to_fs

Media = str | Path | BinaryIO  # a local file, or one that is open; see open_media
Size = tuple[int, int]  # height and width, px, of the upright picture with square pixels
ZARR: Final = ".zarr"  # extension of an array that is a folder of files, a chunk in each


class DecodeError(Exception):
    """Say why a file cannot be read, in plain words."""


def plain(error: BaseException) -> str:
    """Put the message of a library's error on one line.

    The stack, the place in its source and the name of the file are left out.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # "[Errno 2] why: 'file'" (Python, FFmpeg), "[12:59:59] /src/reader.cc:83: [file] why" (decord), "Decoder,
    # /src/Decoder.cpp:41, why" (torchcodec)
    return re.sub(r"^(\[[^]]*\] )?((\w+, )?\S+\.(cc|cpp|h):\d+[:,] )?(\[[^]]*\] )?", "", lines[0]).partition(": '")[0]


def library(name: str, extra: str, what: str) -> Any:
    """Load the library of an extra of this package, which few need. Raises DecodeError where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        raise DecodeError(f"{what} needs the library {name}: pip install 'video-jepa[{extra}]'") from None


def is_zarr(uri: str) -> bool:
    """Tell by its name whether a path or an address is a Zarr store: a folder, which its own library opens."""
    return uri.rstrip("/").endswith(ZARR)


def open_media(uri: str, offset: int | None = None, length: int | None = None) -> str | BinaryIO:
    """Give what a decoder can open: the path of a local file, or the bytes of anything else as a file object.

    Bytes are read at once; of a Zarr store its path or address is given.

    uri: a local path, or an fsspec address (s3://bucket/a.mp4).
    offset, length: in bytes, where the file is a slice of `uri`, such as a member of a tar shard; one range read.

    Raises DecodeError where it cannot be read, reaches beyond the end of `uri`, or the library for its address is not
    installed.
    """
    if (offset is None) != (length is None):
        raise DecodeError(f"offset {offset} with length {length}: a slice of a shard has both, a whole file none")
    if is_zarr(uri):
        return uri
    if "://" in uri:
        data = _read_remote(uri, offset, length)
    elif offset is None or length is None:
        return uri
    else:
        data = _read_slice(uri, offset, length)
    if length is not None and len(data) != length:
        raise DecodeError(
            f"bytes {offset} to {(offset or 0) + length} reach beyond the end of the shard {Path(uri).name}: "
            "changed since its scan?"
        )
    return io.BytesIO(data)


def rewound(media: Media) -> Any:
    """Give what the libraries take: text for a path, a file object that stands at its start."""
    if isinstance(media, str | Path):
        return str(media)
    media.seek(0)
    return media


def first_bytes(media: Media) -> bytes:
    """Read the 32 first bytes; a file object stands at its start again."""
    if isinstance(media, str | Path):
        with open(media, "rb") as file:
            return file.read(32)
    start: bytes = rewound(media).read(32)
    media.seek(0)
    return start


def _read_slice(path: str, offset: int, length: int) -> bytes:
    try:
        with open(path, "rb") as file:
            size_bytes = file.seek(0, io.SEEK_END)
            file.seek(offset)
            # `length` may be wrong by any amount: never ask for that much memory
            return file.read(max(0, min(length, size_bytes - offset)))
    except OSError as error:
        raise DecodeError(f"{Path(path).name}: {plain(error)}") from None


def _read_remote(uri: str, offset: int | None, length: int | None) -> bytes:
    try:
        system, path = url_to_fs(uri)
        end = None if offset is None or length is None else offset + length
        data: bytes = system.cat_file(path, start=offset, end=end)
        return data
    except ImportError as error:
        raise DecodeError(f"{plain(error)}: pip install 'video-jepa[remote]', or that package alone") from None
    except FileNotFoundError:
        raise DecodeError("no such file at this address") from None
    except Exception as error:  # noqa: BLE001 - of a network: errors of botocore, aiohttp, gcsfs share no base
        raise DecodeError(plain(error)) from None
