"""Encode the pictures of a camera in an episode of robomimic as a film.

`python -m data_prep.copying.films` is the program that `data_prep.copying.demonstrations` asks. It says {"alive":
frames encoded} now and then.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

from data_prep.child import Message, Say, serve
from data_prep.copying.encode import copy_size
from data_prep.copying.job import CopyOptions
from data_prep.listing.robot_files import pictures
from vjepa.files import whole_file

_ITU601: Final = 5  # the colour matrix that decoders take for granted
_ALIVE_EVERY_FRAMES: Final = 100
_MEMORY_BYTES: Final = 8 << 30  # the pictures of an episode, whole


def write_film(path: Path, frames: np.ndarray, fps: float, options: CopyOptions, say: Say) -> None:
    """Encode pictures uint8 [F, H, W, 3] at a constant rate, H.264 as copies are."""
    settings = {"crf": str(options.crf), "g": str(options.gop_frames), "bf": "0", "sc_threshold": "0"}
    rate = Fraction(fps).limit_denominator(1001)
    with whole_file(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options=settings)
        stream.width, stream.height = copy_size(frames.shape[2], frames.shape[1], options.short_side_px)
        stream.pix_fmt, stream.codec_context.colorspace = "yuv420p", _ITU601
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            scaled = frame.reformat(stream.width, stream.height, "yuv420p", dst_colorspace=_ITU601)
            container.mux(stream.encode(scaled))
            if number % _ALIVE_EVERY_FRAMES == 0:
                say(alive=number)
        container.mux(stream.encode())


def main() -> None:
    """Make the films that data_prep.copying.demonstrations asks for."""

    def answer(request: Message, say: Say) -> None:
        frames = pictures(request["source"], request["demo"], request["camera"])
        write_film(Path(request["path"]), frames, request["fps"], CopyOptions(**request["options"]), say)

    serve(answer, _MEMORY_BYTES)


if __name__ == "__main__":
    main()
