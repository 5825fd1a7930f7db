"""Row and frame ids to frames: with `pyav`, `stills`, `stacks` and `tiffs` the only importer of decoders in `vjepa`.

The index says which decoder is exact on a file, found by holding it against decoding in order from the start ("pyav"):
in the order in which the decoder yields frames, never sorted by timestamp, for packed B-frames make timestamps run
backwards while the frames are right. The others read at random, and are wrong on such files.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from vjepa.data.media import DecodeError, Media, Size, open_media, plain, rewound
from vjepa.data.pyav import av, open_video
from vjepa.data.stacks import open_stack
from vjepa.data.stills import read_image

try:
    import decord
except (ImportError, OSError, RuntimeError):  # not every machine has a wheel of it; the last two: nor its library
    decord = None

if TYPE_CHECKING:
    from vjepa.data.clip_index import IndexRow

if decord is not None:
    decord.logging.set_level(decord.logging.QUIET)  # what it has to say reaches the reader as DecodeError

# to narrower frames decord cannot always scale: it mistakes how its rows are padded (8, 12, 16, 24, 48, 72 px)
_DECORD_LEAST_PX: Final = 96
MIRRORED: Final = 360  # degrees; a whole turn, so that what counts quarters need not know
_UPRIGHT_MATRIX: Final = struct.pack("=9i", 1, 0, 0, 0, 1, 0, 0, 0, 1)
_TOLERANCE: Final = 0.3  # of the time to the nearest frame: the index rounds to a millisecond, a neighbour is 1 away
# how far before a frame to seek, until a keyframe at or before it is found
_BACK_S: Final = (0.0, 1.0, 4.0, 16.0, 64.0, 256.0)
_DELAY_FRAMES: Final = 4  # by which most files show a keyframe after its decoding time, at most
_FAR_S: Final = 4.0  # ahead of where a file without an index of keyframes is decoded: more than most groups of pictures


def read_frames(row: IndexRow, frame_ids: np.ndarray, size: Size | None = None) -> np.ndarray:
    """Decode int64 [T] frame ids, in any order and repeated or not, to uint8 [T, H, W, 3]: RGB, upright, square pixels.

    Of a stack, uint8 or uint16 [T, H, W, C], its channels as they are and always in full.

    frame_ids: count from the first frame of the clip.
    size: (H, W) that is wanted, if not that of the video: the decoder reduces, antialiased, for a part of the cost of
        full frames.
    Raises DecodeError, whatever goes wrong in the file or in a decoder.
    """
    ids, places = np.unique(frame_ids, return_inverse=True)
    if ids[0] < 0 or ids[-1] >= row.num_frames:
        raise DecodeError(f"frames {ids[0]} to {ids[-1]} are wanted, it has {row.num_frames}")
    if row.decoder not in READERS:
        raise DecodeError(f"decoder {row.decoder!r} is none of {', '.join(READERS)}: index it again")
    frames = READERS[row.decoder](row, ids, size)
    height, width = (row.height, row.width) if row.axes else size or (row.height, row.width)
    if frames.shape != (len(ids), height, width, row.channels):
        raise _changed_size(row, frames.shape[1], frames.shape[2])
    return frames if len(ids) == len(places) and (places[1:] > places[:-1]).all() else frames[places]


def _changed_size(row: IndexRow, height: int, width: int) -> DecodeError:
    return DecodeError(
        f"gives frames of {width}x{height} px, the index says {row.width}x{row.height} px: changed since its scan?"
    )


@lru_cache(maxsize=1)
def torchcodec_library() -> tuple[Any, Any] | None:
    """Load torchcodec's VideoDecoder and Resize.

    None where it is not installed, or cannot be loaded for want of FFmpeg's libraries.
    """
    try:
        from torchcodec import decoders, transforms  # optional, and it needs libraries of the system
    except (ImportError, OSError, RuntimeError):
        return None
    return decoders.VideoDecoder, transforms.Resize


def is_installed(decoder: str) -> bool:
    """Tell whether a decoder of `READERS` can be used on this machine; PyAV and Pillow always can."""
    if decoder == "torchcodec":
        return torchcodec_library() is not None
    return decoder != "decord" or decord is not None


def open_decord(media: Media, size: Size | None = None) -> Any:
    """Open a decord reader of one thread: workers are processes already. Raises DecodeError.

    Its frames are upright, of `size` where it is given.
    """
    height, width = size or (-1, -1)
    try:
        # a file object is copied by decord, whole: it has no other way to read bytes
        return decord.VideoReader(rewound(media), ctx=decord.cpu(0), num_threads=1, width=width, height=height)
    except (decord.DECORDError, AssertionError, OSError, RuntimeError, UnicodeError) as error:
        reason = plain(error)  # "Error reading FILE..." hides why
        raise DecodeError("decord cannot open it" if reason.startswith("Error reading") else reason) from None


def decord_frames(reader: Any, ids: np.ndarray) -> np.ndarray:
    """Read frames of a decord reader: uint8 [n, H, W, 3].

    Raises DecodeError, also for an id at which decord would spin for ever.
    """
    if ids.max() >= len(reader):
        raise DecodeError(f"frame {ids.max()} is wanted, decord counts {len(reader)}")
    try:
        frames: np.ndarray = reader.get_batch(ids.tolist()).asnumpy()
    except (decord.DECORDError, decord.DECORDLimitReachedError, OSError, RuntimeError) as error:
        raise DecodeError(plain(error)) from None
    return frames


def rotation_of(frame: Any) -> int:
    """Read how a PyAV frame is brought upright from its display matrix, as the column `rotation` has it.

    Degrees, counter-clockwise, in whole quarters; and MIRRORED more where left and right change places first.
    """
    sides = (bytes(side) for side in frame.side_data if side.type.name == "DISPLAYMATRIX")
    a, b, _, c, d, *_ = struct.unpack("=9i", next(sides, _UPRIGHT_MATRIX))
    is_mirrored = a * d - b * c < 0
    degrees = -math.degrees(math.atan2(-b, -a) if is_mirrored else math.atan2(b, a))
    return round(degrees / 90) * 90 % 360 + (MIRRORED if is_mirrored else 0)


def upright(reformatter: Any, frame: Any, rotation: int, sample_aspect: float, size: Size | None = None) -> np.ndarray:
    """Turn a PyAV frame upright: uint8 [H, W, 3], scaled to `size` in the same pass.

    Pixels are made square by stretching, never by losing any, then the picture is mirrored and rotated.

    swscale's bilinear filter, PyAV's default, widens with the reduction: of its filters that do not alias it is the
    nearest to PyTorch's antialiased bilinear. Mean levels away from it, 720p film to 128 px high: bilinear 0.93, area
    0.92, bicubic 0.93; 528p: 1.00, 1.22, 1.30.
    """
    height, width = size or _upright_size(frame, rotation, sample_aspect)
    if rotation % 180:
        height, width = width, height
    scaled = reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
    picture: np.ndarray = scaled.to_ndarray()
    return turned(picture, rotation) if rotation else picture


def turned(picture: np.ndarray, rotation: int) -> np.ndarray:
    """Bring [H, W, ...] upright, by `rotation` as the clip index has it."""
    return np.rot90(picture[:, ::-1] if rotation >= MIRRORED else picture, rotation // 90)


def _upright_size(frame: Any, rotation: int, sample_aspect: float) -> Size:
    height, width = round(frame.height * max(1.0, 1 / sample_aspect)), round(frame.width * max(1.0, sample_aspect))
    return (width, height) if rotation % 180 else (height, width)


def _open(row: IndexRow) -> str | BinaryIO:
    return open_media(row.uri, row.offset, row.length)


def _wanted_size(row: IndexRow, size: Size | None) -> Size | None:
    """Choose the size to ask a library for that does not make pixels square by itself; None: as they come."""
    return size or ((row.height, row.width) if row.sample_aspect != 1 else None)


def _read_decord(row: IndexRow, ids: np.ndarray, size: Size | None) -> np.ndarray:
    if decord is None:  # the index was made where it is installed
        return _read_exactly(row, ids, size)
    target = _wanted_size(row, size)
    if target is None or target[1] >= _DECORD_LEAST_PX:
        return decord_frames(open_decord(_open(row), target), row.first_frame + ids)
    reformatter = av.video.reformatter.VideoReformatter()
    found = decord_frames(open_decord(_open(row)), row.first_frame + ids)
    frames = (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in found)
    return np.stack([upright(reformatter, frame, 0, 1.0, target) for frame in frames])


def _read_torchcodec(row: IndexRow, ids: np.ndarray, size: Size | None) -> np.ndarray:
    library = torchcodec_library()
    if library is None:  # the index was made where it is installed
        return _read_exactly(row, ids, size)
    VideoDecoder, Resize = library
    target = _wanted_size(row, size)
    try:
        reader = VideoDecoder(
            _open(row),
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            device="cpu",
            seek_mode="exact",
            transforms=[Resize(target)] if target else None,
        )
        batch = reader.get_frames_at((row.first_frame + ids).tolist())
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise DecodeError(plain(error)) from None
    times_s, tolerances_s = _times(row, ids)
    wrong = np.abs(batch.pts_seconds.numpy() - times_s) >= tolerances_s
    if wrong.any():
        raise _no_frame(times_s[wrong][0])
    frames: np.ndarray = batch.data.numpy()
    return frames


def _read_pyav(row: IndexRow, ids: np.ndarray, size: Size | None) -> np.ndarray:
    wanted = row.first_frame + ids
    last, numbers = int(wanted[-1]), set(wanted.tolist())
    with open_video(_open(row)) as (container, stream):
        frames = (frame for i, frame in zip(range(last + 1), container.decode(stream), strict=False) if i in numbers)
        pictures = _pictures(row, frames, size)
    if len(pictures) < len(ids):
        raise DecodeError(
            f"ends before frame {last}, the index says {row.first_frame + row.num_frames} frames: changed "
            "since its scan?"
        )
    return np.stack(pictures)


def _pictures(row: IndexRow, frames: Iterator[Any], size: Size | None) -> list[np.ndarray]:
    reformatter = av.video.reformatter.VideoReformatter()
    pictures = []
    for frame in frames:
        found = _upright_size(frame, row.rotation, row.sample_aspect)
        if found != (row.height, row.width):
            raise _changed_size(row, *found)
        pictures.append(upright(reformatter, frame, row.rotation, row.sample_aspect, size))
    return pictures


def _read_pyav_seek(row: IndexRow, ids: np.ndarray, size: Size | None) -> np.ndarray:
    with open_video(_open(row)) as (container, stream):
        seeker = _Seeker(container, stream)
        return np.stack(_pictures(row, map(seeker.frame_at, *_times(row, ids)), size))


def _read_exactly(row: IndexRow, ids: np.ndarray, size: Size | None) -> np.ndarray:
    """Read in place of a decoder that is not installed: the same frames.

    Of frames that come in the order of their times, as in a file that another decoder reads exactly, PyAV finds the
    right one from the keyframe before, or none. Then it reads in order from the start.
    """
    try:
        return _read_pyav_seek(row, ids, size)
    except DecodeError:
        return _read_pyav(row, ids, size)


def _times(row: IndexRow, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give when the frames come on screen, and how far off a decoder's time may be: float64 [n] twice, in seconds."""
    times_s = row.times()
    gaps_s = np.diff(times_s) if len(times_s) > 1 else np.array([1 / row.fps])
    nearest_s = np.minimum(np.append(gaps_s, gaps_s[-1]), np.append(gaps_s[0], gaps_s))
    return times_s[ids], _TOLERANCE * nearest_s[ids]


def _no_frame(time_s: float) -> DecodeError:
    return DecodeError(f"no frame at {time_s:.3f} s, the index says one: changed since its scan?")


class _Seeker:
    """Find frames of an open video by their time.

    From the start, the last frame or, where it is nearer, the keyframe before them.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._start = stream.start_time or 0
        self._frames: Iterator[Any] = container.decode(stream)
        self._position: int | None = None  # of the last frame that was decoded, in the time base of the stream
        self._delay_s = _DELAY_FRAMES / float(stream.average_rate or 25)

    def frame_at(self, time_s: float, tolerance_s: float) -> Any:
        """Find the frame at `time_s`, later than at the call before.

        Raises DecodeError where there is none within `tolerance_s`.
        """
        latest_s = time_s + tolerance_s
        if self._is_far(latest_s):
            self._seek(latest_s)
        for frame in self._frames:
            if frame.pts is None:
                continue
            if self._position is not None and frame.pts < self._position:
                raise DecodeError(f"its timestamps run backwards, at {frame.time:.3f} s: it can only be read in order")
            self._position = frame.pts
            if abs(frame.time - time_s) < tolerance_s:
                return frame
            if frame.time > time_s:
                break
        raise _no_frame(time_s)

    def _is_far(self, time_s: float) -> bool:
        """Tell whether seeking is the shorter way.

        That is known where the file's index of keyframes, in decoding times, reaches that far; else it is likely.
        Seeking to a keyframe that is decoded before `time_s`, but shown after it, would end at the one before it.
        """
        position = self._start if self._position is None else self._position
        entries = self._stream.index_entries
        if len(entries) and entries[len(entries) - 1].timestamp > position:
            latest_s = time_s if self._position is None else time_s - self._delay_s
            found = entries.search_timestamp(self._timestamp(latest_s))
            return bool(found >= 0 and entries[found].timestamp > position)
        return bool(time_s - float(position * self._stream.time_base) > _FAR_S)

    def _seek(self, time_s: float) -> None:
        """Stand at a keyframe at or before `time_s`.

        A demuxer may land after it: it seeks in the order of decoding, or by bytes. Frames that come before the first
        keyframe lean on frames that were not decoded (open groups of pictures), so they do not count.
        """
        for back_s in _BACK_S:
            target = max(self._start, self._timestamp(time_s - back_s))
            self._container.seek(target, stream=self._stream)
            frames = self._container.decode(self._stream)
            key = next((frame for frame in frames if frame.key_frame and frame.pts is not None), None)
            if key is not None and key.time <= time_s:
                self._frames, self._position = chain([key], frames), None
                return
            if target == self._start:
                break
        raise DecodeError(f"no keyframe is found before {time_s:.3f} s")

    def _timestamp(self, time_s: float) -> int:
        return int(time_s // self._stream.time_base)


def _read_image(row: IndexRow, ids: np.ndarray, size: Size | None) -> np.ndarray:
    return read_image(_open(row), size)[None]


def _read_stack(row: IndexRow, ids: np.ndarray, size: Size | None) -> np.ndarray:
    stack, wanted = open_stack(_open(row), row.axes), row.first_frame + ids
    if wanted[-1] >= len(stack):
        raise DecodeError(f"frame {wanted[-1]} is wanted, it has {len(stack)}: changed since its scan?")
    return np.ascontiguousarray(stack.frames(wanted))


READERS: Final[dict[str, Callable[[IndexRow, np.ndarray, Size | None], np.ndarray]]] = {
    "decord": _read_decord,
    "torchcodec": _read_torchcodec,
    "pyav_seek": _read_pyav_seek,
    "pyav": _read_pyav,
    "image": _read_image,
    "stack": _read_stack,
}
