"""Row and frame ids to frames: the only importer of decord, PyAV and Pillow in `vjepa`.

The index says which decoder is exact on a file: decord where it is, for it reads at random; otherwise PyAV, which reads in
order from the start, in the order in which the decoder yields frames, never sorted by timestamp: packed B-frames make
timestamps run backwards while the frames are right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from vjepa.data.clip_index import IndexRow


class DecodeError(Exception):
    """A file cannot be read. The message says why, in plain words."""


def read_frames(row: IndexRow, frame_ids: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """uint8 [T, H, W, 3] for int64 [T] frame ids in any order, repeats allowed: RGB, upright, square pixels.

    Raises DecodeError, whatever goes wrong in the file or in a decoder.
    """
    ids, places = np.unique(frame_ids, return_inverse=True)
    if ids[0] < 0 or ids[-1] >= row.num_frames:
        raise DecodeError(f"frames {ids[0]} to {ids[-1]} are wanted, it has {row.num_frames}")
    frames = READERS[row.decoder](row, ids)
    if frames.shape != (len(ids), row.height, row.width, 3):
        found = f"{frames.shape[2]}x{frames.shape[1]} px"
        raise DecodeError(f"gives frames of {found}, the index says {row.width}x{row.height} px: changed since its scan?")
    return frames if len(ids) == len(places) and (places[1:] > places[:-1]).all() else frames[places]


@lru_cache(maxsize=1)
def decord_library() -> Any:
    """decord, loaded at first use and silenced: its messages reach the reader as DecodeError."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    return decord


@lru_cache(maxsize=1)
def av_library() -> Any:
    """PyAV, loaded at first use; its messages to stderr are off, errors are raised all the same."""
    import av
    import av.video.reformatter

    av.logging.set_level(None)
    return av


def open_decord(path: Path) -> Any:
    """A decord reader of one thread: workers are processes already. Raises DecodeError."""
    decord = decord_library()
    try:
        return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, OSError, RuntimeError, UnicodeError) as error:
        raise DecodeError(plain(error)) from None


def decord_frames(reader: Any, ids: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, 3] of a decord reader. Raises DecodeError, also for an id at which decord would spin for ever."""
    decord = decord_library()
    if ids.max() >= len(reader):
        raise DecodeError(f"frame {ids.max()} is wanted, decord counts {len(reader)}")
    try:
        frames: np.ndarray = reader.get_batch(ids.tolist()).asnumpy()
    except (decord.DECORDError, decord.DECORDLimitReachedError, OSError, RuntimeError) as error:
        raise DecodeError(plain(error)) from None
    return frames


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """The PyAV container of a file and its best video stream. Errors of opening and of the body become DecodeError."""
    av = av_library()
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DecodeError("no video stream")
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.error.FFmpegError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise DecodeError(plain(error)) from None


def upright(reformatter: Any, frame: Any, rotation: int, sample_aspect: float) -> np.ndarray:
    """uint8 [H, W, 3] of a PyAV frame: pixels made square by stretching, never by losing any, then rotated."""
    width = round(frame.width * max(1.0, sample_aspect))
    height = round(frame.height * max(1.0, 1 / sample_aspect))
    picture: np.ndarray = reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1).to_ndarray()
    return np.rot90(picture, rotation // 90) if rotation else picture


def plain(error: BaseException) -> str:
    """The message of a library's error on one line, without the stack and the place in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^\[[^]]*\] ", "", lines[0]).partition(": '")[0] if lines else type(error).__name__


def _read_decord(row: IndexRow, ids: np.ndarray) -> np.ndarray:
    return decord_frames(open_decord(Path(row.uri)), ids)


def _read_pyav(row: IndexRow, ids: np.ndarray) -> np.ndarray:
    wanted, last = set(ids.tolist()), int(ids[-1])
    frames = []
    with open_video(Path(row.uri)) as (container, stream):
        reformatter = av_library().video.reformatter.VideoReformatter()
        for i, frame in enumerate(container.decode(stream)):
            if i in wanted:
                frames.append(upright(reformatter, frame, row.rotation, row.sample_aspect))
            if i == last:
                return np.stack(frames)
    raise DecodeError(f"ends before frame {last}, the index says {row.num_frames} frames: changed since its scan?")


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] of a still, turned upright by its EXIF orientation. Raises DecodeError."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DecodeError(f"an image of mode {image.mode}, not of 8 bits a channel")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(plain(error)) from None


def _read_image(row: IndexRow, ids: np.ndarray) -> np.ndarray:
    return read_image(Path(row.uri))[None]


READERS: Final[dict[str, Callable[[IndexRow, np.ndarray], np.ndarray]]] = {"decord": _read_decord, "pyav": _read_pyav, "image": _read_image}
