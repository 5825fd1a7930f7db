"""Encode training-ready copies of the clips of one file.

A decoder may hang or crash in native code, so this belongs into a process that can be killed:
`python -m data_prep.copying.encode` is the program that `data_prep.copying.transcode` asks. It says {"alive": frames
read} now and then, and {"row": i, "columns": {...}} or {"row": i, "failed": reason} for each copy.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Final

import av
import numpy as np
from PIL import Image

from data_prep.child import Message, Say, serve
from data_prep.copying.job import CopyJob, CopyOptions
from data_prep.listing.entry import Entry
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scan import scan
from vjepa.data.clip_index import IndexRow
from vjepa.data.decode import turned
from vjepa.data.frame_times import frame_ids_at
from vjepa.data.media import DecodeError, open_media, plain
from vjepa.data.pyav import open_video
from vjepa.data.stacks import open_stack
from vjepa.data.stills import read_image
from vjepa.files import whole_file

_MEMORY_BYTES: Final = 8 << 30  # beside the decoder, x264 holds as many frames as it looks ahead
_CLOCK: Final = 90_000  # ticks a second: exact for 24, 25, 30, 50, 60 fps and 30000/1001
_EPS_S: Final = 1e-6
_ALIVE_EVERY_S: Final = 1.0
_JPEG_QUALITY: Final = 95
_ITU601: Final = 5  # for RGB: what every decoder takes for granted where a file says nothing
_LIMITED_RANGE: Final = 1
_ANY_TYPE: Final = 0


def copy_size(width: int, height: int, short_side_px: int) -> tuple[int, int]:
    """Choose (width, height) of the copy of a video, px: even, the short side as wanted, never enlarged.

    A side of 1 px alone is enlarged, to 2.
    """
    scale = min(1.0, short_side_px / min(width, height))
    return _even(width, scale), _even(height, scale)


def _even(side: int, scale: float) -> int:
    return max(2, min(2 * round(side * scale / 2), side - side % 2))


def timeline(row: IndexRow, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Order the frames of the clip as the copy shows them: int64 [n], and when: float64 [n] in seconds from its start.

    fps 0: every frame at its own time; else at a constant rate, each instant showing the frame on screen then.
    """
    times = row.times() - row.times()[0]
    if not fps:
        return np.arange(len(times)), times
    length_s = max(row.end_s - row.start_s, float(times[-1]))
    seconds = np.arange(max(1, int(np.ceil(length_s * fps - _EPS_S)))) / fps
    return frame_ids_at(times, seconds), seconds


def encode_copies(job: CopyJob, alive: Callable[[int], None]) -> Iterator[tuple[IndexRow, str | None]]:
    """Make every copy of a job; yield each row when it is done, with None or the reason why there is no copy.

    A video is decoded once, in order, and no more than a frame of it is held. alive: called with the number of frames
    read.
    """
    if job.rows[0].decoder in ("image", "stack"):
        for row, path in zip(job.rows, map(Path, job.paths), strict=True):
            is_still = row.decoder == "image"
            yield row, _copy_image(row, path, job.options) if is_still else _copy_stack(row, path, job.options, alive)
        return
    copies = [_Copy(row, Path(path), job.options) for row, path in zip(job.rows, job.paths, strict=True)]
    try:
        yield from _copy_video(sorted(copies, key=lambda copy: copy.row.first_frame), alive)
    finally:
        for copy in copies:
            copy.abandon()


def _copy_video(copies: Sequence[_Copy], alive: Callable[[int], None]) -> Iterator[tuple[IndexRow, str | None]]:
    later, current = deque(copies), list[_Copy]()
    num_read, reason = 0, None
    try:
        with open_video(_open(copies[0].row)) as (container, stream):
            for i, frame in enumerate(container.decode(stream)):
                num_read = i + 1
                alive(num_read)
                while later and later[0].row.first_frame <= i:
                    current.append(later.popleft())
                for copy in tuple(current):
                    copy.add(frame)
                    if copy.complete:
                        current.remove(copy)
                        copy.finish()
                        yield copy.row, None
                if not current and not later:
                    return
    except DecodeError as error:
        reason = str(error)
    for copy in (*current, *later):
        yield (
            copy.row,
            reason
            or f"ends after {num_read} frames, the index says {copy.row.first_frame + copy.row.num_frames}: "
            "changed since its scan?",
        )


class _Copy:
    """Encode one copy: frames of the source go in, in order; it takes those that it shows."""

    def __init__(self, row: IndexRow, path: Path, options: CopyOptions) -> None:
        self.row, self.options = row, options
        self._path, self._files = path, ExitStack()
        self._ids, seconds = timeline(row, options.fps)
        self._ticks = _ascending(np.round(seconds * _CLOCK).astype(np.int64))
        end = round((len(seconds) / options.fps if options.fps else row.end_s - row.start_s) * _CLOCK)
        self._durations = np.diff(self._ticks, append=max(end, int(self._ticks[-1]) + 1))
        self._num_seen = self._num_shown = 0
        self._size = copy_size(row.width, row.height, options.short_side_px)
        self._output: Any = None
        self._stream: Any = None
        self._reformatter = av.video.reformatter.VideoReformatter()

    @property
    def complete(self) -> bool:
        return self._num_shown == len(self._ids)

    def add(self, frame: Any) -> None:
        """Take the next frame of the source, from the first one of the clip on."""
        times_shown = int(np.searchsorted(self._ids, self._num_seen, side="right")) - self._num_shown
        self._num_seen += 1
        if not times_shown:
            return
        if self._output is None:
            self._check_size(frame)
        picture = self._upright(frame)
        if self._output is None:
            self._open(picture.colorspace)
        for _ in range(times_shown):
            picture.pts, picture.time_base = int(self._ticks[self._num_shown]), Fraction(1, _CLOCK)
            self._num_shown += 1
            self._mux(self._stream.encode(picture))

    def _check_size(self, frame: Any) -> None:
        aspect, turned = self.row.sample_aspect, self.row.rotation % 180 != 0
        size = round(frame.width * max(1.0, aspect)), round(frame.height * max(1.0, 1 / aspect))
        if (size[::-1] if turned else size) != (self.row.width, self.row.height):
            raise DecodeError(
                f"has frames of {size[0]}x{size[1]} px, the index says {self.row.width}x{self.row.height} px: "
                "changed since its scan?"
            )

    def _open(self, matrix: int) -> None:
        options = self.options
        partial = str(self._files.enter_context(whole_file(self._path)))
        output = av.open(partial, "w", options={"movflags": "+faststart"})
        self._output = self._files.enter_context(output)
        # The rate only guides x264; timestamps are those of the frames.
        rate = Fraction(options.fps or self.row.fps or 25.0).limit_denominator(1001)
        gop = str(options.gop_frames)
        settings = {"crf": str(options.crf), "g": gop, "keyint_min": gop, "sc_threshold": "0", "bf": "0"}
        self._stream = self._output.add_stream("libx264", rate=max(rate, Fraction(1, 1001)), options=settings)
        context = self._stream.codec_context
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt, context.time_base, context.thread_count = "yuv420p", Fraction(1, _CLOCK), 1
        context.colorspace, context.color_range = matrix, _LIMITED_RANGE

    def _upright(self, frame: Any) -> Any:
        """Bring a frame to the size of the copy, and upright.

        Its colour matrix stays as it is, so that copy and source are read alike.
        """
        width, height = self._size[::-1] if self.row.rotation % 180 else self._size
        matrix = _ITU601 if frame.format.is_rgb else None
        picture = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="yuv420p",
            dst_colorspace=matrix,
            dst_color_range=_LIMITED_RANGE,
            threads=1,
        )
        if self.row.rotation:
            picture = _turned(picture, self.row.rotation)
        picture.pict_type = _ANY_TYPE  # a keyframe of the source would become one of the copy
        return picture

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            packet.duration = int(self._durations[np.searchsorted(self._ticks, packet.pts)])
            self._output.mux(packet)

    def finish(self) -> None:
        """Let the file appear under its name, whole."""
        self._mux(self._stream.encode())
        self._files.close()

    def abandon(self) -> None:
        """Leave nothing of a copy that was not finished."""
        with suppress(_Abandoned, av.error.FFmpegError, OSError), self._files:
            raise _Abandoned  # to what writes the file; closing it may fail besides, where the disk is full


class _Abandoned(Exception):
    """Tell that a copy is not to be finished."""


def _open(row: IndexRow) -> str | BinaryIO:
    return open_media(row.uri, row.offset, row.length)


def _turned(picture: Any, rotation: int) -> Any:
    """Bring a yuv420p picture of even sides upright, by `rotation` as the clip index has it."""
    width, height = picture.width, picture.height
    samples = picture.to_ndarray().ravel()
    luma, chroma = (
        samples[: width * height].reshape(height, width),
        samples[width * height :].reshape(2, height // 2, width // 2),
    )
    planes = [turned(luma, rotation), *(turned(plane, rotation) for plane in chroma)]
    copy = type(picture).from_ndarray(
        np.concatenate([plane.ravel() for plane in planes]).reshape(-1, planes[0].shape[1]), format="yuv420p"
    )
    copy.colorspace = picture.colorspace
    return copy


def _ascending(ticks: np.ndarray) -> np.ndarray:
    """Raise each tick to at least one later than the one before.

    A muxer asks for it, where a source shows two frames at one time.
    """
    steps = np.arange(len(ticks))
    raised: np.ndarray = np.maximum.accumulate(ticks - steps) + steps
    return raised


def _copy_image(row: IndexRow, path: Path, options: CopyOptions) -> str | None:
    """Copy a still at the same size or smaller, upright; give the reason where there is no copy.

    It is a JPEG or PNG by the extension of `path`.
    """
    kind: dict[str, Any] = {"format": "PNG"} if path.suffix == ".png" else {"format": "JPEG", "quality": _JPEG_QUALITY}
    try:
        image = Image.fromarray(read_image(_open(row)))
        scale = min(1.0, options.short_side_px / min(image.size))
        if scale < 1:
            image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
        with whole_file(path) as partial:
            image.save(partial, **kind)
    except (DecodeError, OSError) as error:
        return plain(error)
    return None


def _copy_stack(row: IndexRow, path: Path, options: CopyOptions, alive: Callable[[int], None]) -> str | None:
    """Copy a stack into one array [T, H, W, C] of the same values, at the same size or smaller; see `_copy_image`.

    It is mapped into memory where it is read, so that a clip costs its own frames alone, however it was packed before.
    """
    ids, _ = timeline(row, options.fps)
    scale = min(1.0, options.short_side_px / min(row.height, row.width))
    size = max(1, round(row.height * scale)), max(1, round(row.width * scale))
    try:
        stack = open_stack(_open(row), row.axes)
        kind, num = np.dtype(f"u{stack.bits // 8}"), stack.num_at_once
        with whole_file(path) as partial:
            copy = np.lib.format.open_memmap(partial, "w+", kind, (len(ids), *size, row.channels))
            for start in range(0, len(ids), num):
                wanted, places = np.unique(row.first_frame + ids[start : start + num], return_inverse=True)
                found = np.stack([_resized(frame, size) for frame in stack.frames(wanted)])
                copy[start : start + num] = found[places]
                alive(start)
            copy.flush()
    except (DecodeError, OSError, IndexError, ValueError) as error:
        return plain(error)
    return None


def _resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduce whole numbers [H, W, C] to `size`, each channel for itself, as `_copy_image` does."""
    if frame.shape[:2] == size:
        return frame
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(frame, -1, 0)]
    reduced = np.stack([plane.resize(size[::-1], Image.Resampling.LANCZOS) for plane in planes], axis=-1)
    whole: np.ndarray = np.clip(reduced.round(), 0, np.iinfo(frame.dtype).max).astype(frame.dtype)
    return whole


def _verdict(row: IndexRow, path: Path, reason: str | None, options: CopyOptions) -> dict[str, Any]:
    """Say what a scan of the copy finds, as the new index has it; a copy that is not as it should be does not stay."""
    if reason is None:
        of_stacks = ScanOptions(axes="thwc", stack_fps=options.fps or row.fps)
        columns = scan(Entry(str(path), path.name), of_stacks if row.decoder == "stack" else ScanOptions())[0]
        wanted = len(timeline(row, options.fps)[0])
        if columns["status"] == "ok" and columns["num_frames"] == wanted:
            return {"row": row.clip_id, "columns": columns}
        path.unlink(missing_ok=True)
        reason = (
            f"its copy has {columns['num_frames']} frames in place of {wanted} (scan of the copy: {columns['status']})"
        )
    return {"row": row.clip_id, "failed": reason}


def main() -> None:
    """Do the jobs of data_prep.copying.transcode."""
    last_s = 0.0

    def answer(request: Message, say: Say) -> None:
        def alive(num_frames: int) -> None:
            nonlocal last_s
            if time.monotonic() - last_s > _ALIVE_EVERY_S:
                last_s = time.monotonic()
                say(alive=num_frames)

        job = CopyJob.from_json(request)
        paths = {row.clip_id: Path(path) for row, path in zip(job.rows, job.paths, strict=True)}
        for row, reason in encode_copies(job, alive):
            say(**_verdict(row, paths[row.clip_id], reason, job.options))

    serve(answer, _MEMORY_BYTES)


if __name__ == "__main__":
    main()
