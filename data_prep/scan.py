"""Scan one file: measure by decoding what a header may lie about. Each scan runs in a child process that can be killed,
because a decoder may spin for ever in native code, or crash, and one bad file must never stop a scan.

`python -m data_prep.scan` is such a child: paths on standard input, one JSON answer a line on standard output.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from threading import Timer
from typing import Any, Final

import numpy as np

from vjepa.data.decode import DecodeError, av_library, decord_frames, open_decord, open_video, plain, read_image, upright

VIDEO_EXTENSIONS: Final = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m2ts", ".mts", ".ts", ".3gp", ".wmv", ".flv", ".ogv", ".gif"}
)
IMAGE_EXTENSIONS: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

DEADLINE_S: Final = 60.0
_DEADLINE_S_PER_BYTE: Final = 0.5e-6  # a film of 1 GB may take 500 s more
_RATE_TOLERANCE_S: Final = 1e-3  # two roundings to a millisecond, of a frame and of the first or last one (Matroska)
_NUM_CHECKS: Final = 8  # frames of a file that decord must get right by random access
_NEIGHBOURS: Final = 3  # it is known to be 1 to 3 frames early on packed B-frames
_MAX_DIFFERENCE: Final = 12.0  # mean levels of 255; decoders differ by a few in colour conversion
_TIE: Final = 0.05  # levels; frames that are this alike cannot be told apart
_CHILD: Final = [sys.executable, "-m", "data_prep.scan"]


def scan(path: Path) -> dict[str, Any]:
    """The columns of the clip index that a file decides. `status` is "ok" or the reason why it cannot be used."""
    columns: dict[str, Any] = {"first_frame": 0, "num_frames": 0, "rotation": 0, "sample_aspect": 1.0, "content_hash": None}
    try:
        if not path.stat().st_size:
            raise DecodeError("empty file")
        columns["content_hash"] = _sha256(path)
        columns |= _scan_image(path) if path.suffix.lower() in IMAGE_EXTENSIONS else _scan_video(path)
    except DecodeError as error:
        columns["status"] = _reason(error)
    except OSError as error:
        columns["status"] = plain(error)
    return columns


def _scan_image(path: Path) -> dict[str, Any]:
    """A still is a video of one frame that lasts one second."""
    height, width, _ = read_image(path).shape
    return {
        "start_s": 0.0, "end_s": 1.0, "num_frames": 1, "fps": 1.0, "keyframes_s": [0.0], "width": width, "height": height,
        "codec": path.suffix[1:].lower(), "decoder": "image", "status": "ok",
    }  # fmt: skip


def _scan_video(path: Path) -> dict[str, Any]:
    num_frames = _decord_count(path)
    clips = [np.unique(np.linspace(start, num_frames - 1, _NUM_CHECKS).astype(int)) for start in {0, max(0, num_frames - _NUM_CHECKS)} if num_frames]
    columns, samples, in_order = _decode_all(path, {near for ids in clips for i in ids.tolist() for near in range(i - _NEIGHBOURS, i + _NEIGHBOURS + 1)})
    exact = (
        in_order  # random access goes by timestamps: where they run backwards (packed B-frames) decord is wrong now and then
        and num_frames == columns["num_frames"]
        and columns["sample_aspect"] == 1  # decord does not make pixels square
        and all(_decord_is_exact(path, ids, samples) for ids in clips)
    )
    return columns | {"decoder": "decord" if exact else "pyav", "status": "ok"}


def _decord_count(path: Path) -> int:
    """How many frames decord counts; 0 where it cannot open the file."""
    try:
        return len(open_decord(path))
    except DecodeError:
        return 0


def _decode_all(path: Path, wanted: set[int]) -> tuple[dict[str, Any], dict[int, np.ndarray], bool]:
    """Decode in order up to the end or the first error: what was measured, `_points` of the wanted frames, and whether
    every timestamp is there and later than the one before.
    """
    seconds: list[float | None] = []
    keys: list[int] = []
    columns: dict[str, Any] = {}
    samples: dict[int, np.ndarray] = {}
    opened, rate = False, 0.0
    try:
        with open_video(path) as (container, stream):
            opened, rate = True, float(stream.average_rate or stream.guessed_rate or 0)
            reformatter = av_library().video.reformatter.VideoReformatter()
            for i, frame in enumerate(container.decode(stream)):
                if i == 0:
                    columns = {"codec": stream.codec_context.codec.canonical_name, **_geometry(stream, frame)}
                if i == 0 or i in wanted:
                    picture = upright(reformatter, frame, columns["rotation"], columns["sample_aspect"])
                    columns["height"], columns["width"] = picture.shape[:2]
                    samples[i] = _points(picture)
                seconds.append(frame.time)
                if frame.key_frame:
                    keys.append(i)
    except DecodeError as error:
        if not seconds:
            raise DecodeError("no decodable frame" if opened else str(error)) from None
    if not seconds:
        raise DecodeError("no decodable frame")
    times = _true_times(seconds, rate)
    known = [time for time in seconds if time is not None]
    in_order = len(known) == len(seconds) and all(before < after for before, after in pairwise(known))
    return columns | _rate(times, rate) | {"keyframes_s": times[keys].tolist()}, samples, in_order


def _geometry(stream: Any, frame: Any) -> dict[str, Any]:
    aspect = float(stream.sample_aspect_ratio or 1)
    return {"rotation": round(frame.rotation / 90) * 90 % 360, "sample_aspect": aspect if 0.1 < aspect < 10 else 1.0}


def _reason(error: DecodeError) -> str:
    return "not a video or image" if any(words in str(error) for words in ("Invalid data", "cannot identify")) else str(error)


def _true_times(seconds: list[float | None], rate: float) -> np.ndarray:
    """When each frame comes on screen: float64 [n], ascending, in the order of decoding.

    Timestamps that run backwards belong to frames in the right order (packed B-frames), so the instants are sorted
    and the frames are not. Where a timestamp is missing, the rate of the header is all there is.
    """
    known = [time for time in seconds if time is not None]
    if len(known) == len(seconds):
        return np.sort(np.array(known))
    return (known[0] if known else 0.0) + np.arange(len(seconds)) / (rate or 25.0)


def _rate(times: np.ndarray, header_rate: float) -> dict[str, Any]:
    """Start, end, mean rate, and the times themselves unless the rate is constant."""
    span_s = float(times[-1] - times[0])
    fps = (len(times) - 1) / span_s if span_s > 0 else header_rate or 1.0
    regular = np.abs(times[0] + np.arange(len(times)) / fps - times).max() <= _RATE_TOLERANCE_S
    return {
        "start_s": float(times[0]), "end_s": float(times[-1]) + 1 / fps, "num_frames": len(times), "fps": fps,
        "times_s": None if regular else times.tolist(),
    }  # fmt: skip


def _decord_is_exact(path: Path, ids: np.ndarray, samples: dict[int, np.ndarray]) -> bool:
    """Whether frames `ids`, read as the loader reads a clip, are those of decoding in order, and not a neighbour of them."""
    try:
        frames = decord_frames(open_decord(path), ids)
    except DecodeError:
        return False
    return all(_is_frame(_points(frame), i, samples) for frame, i in zip(frames, ids.tolist(), strict=True))


def _is_frame(points: np.ndarray, i: int, samples: dict[int, np.ndarray]) -> bool:
    if points.shape != samples[i].shape:
        return False  # another stream of the file, or rotated otherwise
    near = range(i - _NEIGHBOURS, i + _NEIGHBOURS + 1)
    away = {j: float(np.abs(points - samples[j]).mean()) for j in near if j in samples}
    return away[i] <= min(_MAX_DIFFERENCE, min(away.values()) + _TIE)


def _points(picture: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> float32 [<= 64, <= 64, 3]: small enough to keep, enough to tell a frame from the next."""
    height, width, _ = picture.shape
    return picture[:: -(-height // 64), :: -(-width // 64)].astype(np.float32)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class ScanPool:
    """Scans files in child processes that live long; one that outlives its deadline or dies is replaced."""

    def __init__(self, workers: int, deadline_s: float = DEADLINE_S) -> None:
        self.workers, self.deadline_s = workers, deadline_s
        self._idle: SimpleQueue[_Child] = SimpleQueue()
        self._children: list[_Child] = []

    def scan(self, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
        """The columns of each file, in the order of `paths`; each thread waits for one child."""
        threads = ThreadPoolExecutor(self.workers)
        try:
            for _ in range(self.workers):
                self._add_child()
            yield from threads.map(self._scan_one, paths)
        finally:  # also when the caller was interrupted: nobody waits for a decoder then
            threads.shutdown(wait=False, cancel_futures=True)
            for child in list(self._children):
                child.process.kill()
            threads.shutdown()
            for child in self._children:
                child.end()

    def _add_child(self) -> None:
        child = _Child()
        self._children.append(child)
        self._idle.put(child)

    def _scan_one(self, path: Path) -> dict[str, Any]:
        child = self._idle.get()
        try:
            size_bytes = path.stat().st_size
        except OSError:
            size_bytes = 0  # the child will say why
        deadline_s = self.deadline_s + size_bytes * _DEADLINE_S_PER_BYTE
        answer = child.ask(path, deadline_s)
        if answer:
            self._idle.put(child)
            return answer
        child.end()
        self._children.remove(child)
        self._add_child()
        return {"status": f"scan took longer than {deadline_s:.0f} s and was stopped" if child.late else "the decoder crashed"}


class _Child:
    """A program of its own, not a fork: it imports neither PyTorch nor the caller's script."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(place or "." for place in sys.path)}
        self.process = subprocess.Popen(_CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        self.late = False

    def ask(self, path: Path, deadline_s: float) -> dict[str, Any]:
        """The columns of a file; empty where the child died, by itself or because it was late."""
        killer = Timer(deadline_s, self._kill_late)
        killer.start()
        try:
            answer = self._exchange(str(path.absolute()))
        finally:
            killer.cancel()
        columns: dict[str, Any] = json.loads(answer or "{}")
        return columns

    def _exchange(self, path: str) -> str:
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("a child without pipes")
        try:
            stdin.write(json.dumps(path) + "\n")
            stdin.flush()
        except BrokenPipeError:
            return ""
        return stdout.readline()

    def _kill_late(self) -> None:
        self.late = True
        self.process.kill()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def main() -> None:
    """Answer until standard input ends. What libraries print must not mix with the answers."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            print(json.dumps(scan(Path(json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
