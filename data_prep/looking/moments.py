"""The program that `data_prep.looking.channels` asks for the mean and mean square of the channels of a clip."""

from __future__ import annotations

import sys

import numpy as np

from data_prep.child import Message, Say, serve
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.decode import read_frames
from vjepa.data.media import DecodeError


def moments(row: IndexRow) -> np.ndarray:
    """Measure the middle frame: float64 [2, C], mean and mean square, in shares of full scale.

    A companion follows, in grey where it has colours. Raises DecodeError.
    """
    parts = [_shares(row)]
    if row.companion:
        more = _shares(row.companion)
        parts.append(more.mean(-1, keepdims=True) if row.companion.channels == 3 else more)
    flat = [part.reshape(-1, part.shape[-1]) for part in parts]
    return np.concatenate([np.stack([values.mean(0), np.square(values).mean(0)]) for values in flat], axis=1)


def _shares(row: IndexRow) -> np.ndarray:
    """Read the middle frame: float64 [H, W, C] from 0 to 1."""
    frame = read_frames(row, np.array([row.num_frames // 2]))[0]
    shares: np.ndarray = frame / float(np.iinfo(frame.dtype).max)
    return shares


def main() -> None:
    """Answer for each row of an index that is asked for, or with the reason why it cannot be read."""
    index = ClipIndex.open(sys.argv[1])

    def answer(request: Message, say: Say) -> None:
        row = index.row(request["row"])
        try:
            found = moments(row)
        except DecodeError as error:
            say(reason=str(error))
        else:
            say(moments=found.tolist(), bits=max(row.bits, row.companion.bits if row.companion else 8))

    serve(answer)


if __name__ == "__main__":
    main()
