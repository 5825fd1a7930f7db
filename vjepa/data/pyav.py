"""Open videos with PyAV, which is on every machine: it tells what a file holds, whichever decoder reads it later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vjepa.data.media import DecodeError, Media, plain, rewound
from vjepa.errors import UserError

try:
    import av as av
    import av.stream
    import av.video.reformatter
except (ImportError, OSError) as error:
    raise UserError(f"no decoder: PyAV cannot be loaded ({error}); pip install 'av>=17,<19'") from None

av.logging.set_level(None)  # what it has to say reaches the reader as DecodeError


@contextmanager
def open_video(media: Media) -> Iterator[tuple[Any, Any]]:
    """Open the PyAV container of a file and its best video stream.

    Errors of opening and of the body become DecodeError.
    """
    try:
        with av.open(rewound(media), metadata_errors="ignore") as container:
            stream = container.streams.best("video")  # the cover of a song only where there is nothing else
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
                raise DecodeError("no video stream")
            if stream.codec_context is None:  # FFmpeg has no decoder for it, or none is known by its damaged tag
                raise DecodeError("no decoder for its codec")
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.error.FFmpegError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise DecodeError(plain(error)) from None
