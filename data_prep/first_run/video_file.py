"""Small videos as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vjepa.data.track_files import save_tracks
from vjepa.data.tracks import RowTracks, Tracks


class VideoSet(Protocol):
    """Name videos that can be drawn. `recipe` holds everything that the files depend on, as JSON keeps it."""

    @property
    def name(self) -> str: ...

    @property
    def fps(self) -> int: ...

    @property
    def keyframe_frames(self) -> int | None: ...

    @property
    def lossless(self) -> bool: ...

    @property
    def recipe(self) -> dict[str, Any]: ...

    @property
    def tracks_info(self) -> Tracks | None:
        """Say what `tracks` gives; None: these videos have none."""
        ...

    def videos(self) -> list[Any]: ...

    @property
    def things(self) -> Sequence[str]: ...

    def tracks(self, video: Any) -> tuple[np.ndarray, np.ndarray]:
        """Give action and state of each frame of a video, fp32 [T, A] and [T, S]."""
        ...

    def draw_row(self, video: Any) -> tuple[np.ndarray, dict[str, str]]:
        """Draw a video, uint8 [T, S, S, 3], and give its columns of the clip index."""
        ...

    def draw_marks(self, video: Any) -> np.ndarray | None:
        """Say which thing is where: uint8 [T, S, S], 0 for the ground, k for things[k - 1]; None: nothing is marked."""
        ...


def write_row(videos: VideoSet, video: Any, path: Path) -> dict[str, str]:
    """Write a video, and beside it its tracks and what is where in it, as far as it has them.

    Gives its columns of the clip index; the column `things` names the picture of what is where, from its folder.
    """
    frames, columns = videos.draw_row(video)
    write_video(frames, videos.fps, path, videos.keyframe_frames, videos.lossless)
    if videos.tracks_info is not None:
        save_tracks(path, videos.tracks_info, RowTracks(*videos.tracks(video)))
    marks = videos.draw_marks(video)
    if marks is None:
        return columns
    place = path.parent.with_name("things") / f"{path.stem}.png"
    write_marks(marks, videos.things, place)
    return {**columns, "things": f"{place.parent.name}/{place.name}"}


def write_marks(marks: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Write uint8 [T, H, W] as one grey PNG, the frames one under the other; `names` of 1, 2, ... stand in its text."""
    words = PngInfo()
    words.add_text("things", "|".join(names))
    Image.fromarray(marks.reshape(-1, marks.shape[2])).save(path, pnginfo=words, optimize=True)


def write_video(
    frames: np.ndarray, fps: int, path: Path, keyframe_frames: int | None = None, lossless: bool = False
) -> None:
    """Encode uint8 [T, S, S, 3] as H.264, with a keyframe at least every so many frames; None: as x264 likes.

    lossless: with all colours of all pixels, which lose no more than their rounding.
    """
    with av.open(str(path), "w") as container:
        options = {"crf": "0" if lossless else "16", "preset": "veryfast", "bf": "0", "threads": "1"}
        options |= {} if keyframe_frames is None else {"g": str(keyframe_frames)}
        stream: Any = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p" if lossless else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
