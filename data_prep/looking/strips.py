"""Frames of a clip side by side, read by a program that can be killed.

`python -m data_prep.looking.strips INDEX` is the program that `data_prep.looking.contact_sheet` asks.
"""

from __future__ import annotations

import base64
import io
import sys

import numpy as np
from PIL import Image, ImageOps

from data_prep.child import Message, Say, serve
from data_prep.looking.contact_sheet import BLANK, FRAME_PX, MOMENTS
from vjepa.data.clip_index import ClipIndex
from vjepa.data.decode import read_frames
from vjepa.data.media import DecodeError


def strip(frames: np.ndarray) -> bytes:
    """Put uint8 [n, H, W, 3] frames side by side into a JPEG, each in a box of FRAME_PX."""
    picture = Image.new("RGB", (len(frames) * FRAME_PX[0], FRAME_PX[1]))
    for i, frame in enumerate(frames):
        picture.paste(ImageOps.pad(Image.fromarray(frame), FRAME_PX, color=BLANK), (i * FRAME_PX[0], 0))
    with io.BytesIO() as buffer:
        picture.save(buffer, "JPEG", quality=85)
        return buffer.getvalue()


def _shown(frames: np.ndarray) -> np.ndarray:
    """Show [n, H, W, C] as uint8 [n, H, W, 3]: of a stack the first three channels, else the first, stretched."""
    if frames.shape[-1] == 3 and frames.dtype == np.uint8:
        return frames
    some = frames[..., :3] if frames.shape[-1] >= 3 else frames[..., :1].repeat(3, axis=-1)
    low, high = (limit(axis=(0, 1, 2)).astype(np.float32) for limit in (some.min, some.max))
    return ((some - low) * (255 / np.maximum(high - low, 1))).round().astype(np.uint8)  # type: ignore[no-any-return]


def main() -> None:
    """Answer with the strip of each row of an index that is asked for, or the reason why it cannot be read."""
    index = ClipIndex.open(sys.argv[1])

    def answer(request: Message, say: Say) -> None:
        row = index.row(request["row"])
        try:
            frames = read_frames(row, np.unique([int(moment * row.num_frames) for moment in MOMENTS]))
        except DecodeError as error:
            say(reason=str(error))
        else:
            say(jpeg=base64.b64encode(strip(_shown(frames))).decode(), frames=len(frames))

    serve(answer)


if __name__ == "__main__":
    main()
