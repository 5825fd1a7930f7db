"""Scans in child processes that can be killed, because a decoder may spin for ever in native code, or crash,
and one bad file must never stop a scan.

`python -m data_prep.scan_pool` is such a child: one request a line on standard input; on standard output it says what
it is about to try, and then the rows, one JSON object a line.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from queue import SimpleQueue
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final

from data_prep.scan import Scannable, ScanOptions, scan
from vjepa.data.decode import plain

# without a sign of progress: a second of frames in order, or a clip by a decoder that is tried on random access
DEADLINE_S: Final = 60.0
_DEADLINE_S_PER_BYTE: Final = 0.1e-6  # more: opening a film of 1 GB may take 100 s
_SLOWEST_FPS: Final = 1.0  # decoding in order that comes below it by then does not end in reasonable time
_AHEAD: Final = 8  # files for each child that are asked for before their answers are taken
_MEMORY_BYTES: Final = 4 << 30  # of a child: a header that lies may ask for any size
_PR_SET_PDEATHSIG: Final = 1  # of linux/prctl.h
_CHILD: Final = [sys.executable, "-m", "data_prep.scan_pool"]


class ScanPool:
    """Scans files in child processes that live long; one that outlives its deadline or dies is replaced.

    Where a decoder that was tried on random access hangs or crashes, the file is scanned again without that decoder;
    it is given up where decoding in order does.
    """

    def __init__(self, workers: int, options: ScanOptions | None = None, deadline_s: float = DEADLINE_S) -> None:
        self.workers, self.options, self.deadline_s = workers, options or ScanOptions(), deadline_s
        self._idle: SimpleQueue[_Child] = SimpleQueue()
        self._children: list[_Child] = []
        self._closed = False

    def scan(self, entries: Iterable[Scannable]) -> Iterator[list[dict[str, Any]]]:
        """The rows of each file, in the order of `entries`, of which few are taken ahead; each thread waits for one
        child.
        """
        threads = ThreadPoolExecutor(self.workers)
        try:
            self.start()
            waiting: deque[Future[list[dict[str, Any]]]] = deque()
            for entry in entries:
                waiting.append(threads.submit(self.scan_one, entry))
                if len(waiting) > self.workers * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when the caller was interrupted: nobody waits for a decoder then
            self._closed = True
            threads.shutdown(wait=False, cancel_futures=True)
            for child in list(self._children):
                child.process.kill()
            threads.shutdown()
            for child in self._children:
                child.end()
            self._children.clear()
            self._idle = SimpleQueue()

    def start(self) -> None:
        """Start the children for `scan_one`; `scan` does so by itself."""
        self._closed = False
        for _ in range(self.workers):
            self._add_child()

    def _add_child(self) -> None:
        child = _Child()
        self._children.append(child)
        self._idle.put(child)

    def scan_one(self, entry: Scannable) -> list[dict[str, Any]]:
        """The rows of one file, by a child of a pool that was started; any number of threads may call it."""
        excluded: list[str] = []
        num_bytes = _num_bytes(entry)
        while not self._closed:
            child = self._idle.get()
            answer = child.ask(
                _request(entry, self.options, excluded), self.deadline_s + num_bytes * _DEADLINE_S_PER_BYTE
            )
            self._release(child)
            if answer.rows or answer.trying is None:
                return answer.rows or [{"first_frame": 0, "num_frames": 0, "status": answer.failure} | answer.facts]
            excluded.append(answer.trying)
        return []

    def _release(self, child: _Child) -> None:
        if child.is_idle:
            self._idle.put(child)
        elif not self._closed:
            child.end()
            self._children.remove(child)
            self._add_child()


@dataclass(frozen=True)
class _Answer:
    """What came of one request: rows, or why there are none and which decoder was tried then (None: decoding
    in order).
    """

    facts: dict[str, Any]
    trying: str | None
    rows: list[dict[str, Any]]
    failure: str


class _Child:
    """A program of its own, not a fork: it imports neither PyTorch nor the caller's script."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(place or "." for place in sys.path)}
        self.process = subprocess.Popen(
            _CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self._heard = b""  # of messages that have not ended
        self._late = False
        self.is_idle = True  # whether it can be asked

    def ask(self, request: str, deadline_s: float) -> _Answer:
        """Wait for rows or a failure, no longer than the deadline after each thing that the child says."""
        self.is_idle = False
        said: dict[str, Any] = {"facts": {}, "num_frames": 0, "trying": None, "rows": [], "failure": ""}
        self._write(request)
        begin_s = monotonic()
        while not said["rows"] and not said["failure"]:
            message = self._read(deadline_s)
            said |= message or {
                "failure": f"decoding stood still for {deadline_s:.0f} s and was stopped"
                if self._late
                else "the decoder crashed"
            }
            taken_s = monotonic() - begin_s
            if "num_frames" in message and taken_s > deadline_s and said["num_frames"] < taken_s * _SLOWEST_FPS:
                said["failure"] = f"decoding came to {said['num_frames']} frames in {taken_s:.0f} s and was stopped"
            self.is_idle = "rows" in message and not self._late
        return _Answer(said["facts"], said["trying"], said["rows"], said["failure"])

    def _write(self, request: str) -> None:
        """A child that is dead already is found out by reading."""
        if self.process.stdin is None:
            raise RuntimeError("a child without a pipe to it")
        with suppress(BrokenPipeError):
            self.process.stdin.write(request.encode() + b"\n")
            self.process.stdin.flush()

    def _read(self, limit_s: float) -> dict[str, Any]:
        """The next message; empty where the child died, by itself or because it was late."""
        if self.process.stdout is None:
            raise RuntimeError("a child without a pipe from it")
        pipe, begin_s = self.process.stdout.fileno(), monotonic()
        while b"\n" not in self._heard:
            if not wait([pipe], max(0.0, begin_s + limit_s - monotonic())):
                self._late = True
                self.process.kill()
            block = os.read(pipe, 1 << 16)
            if not block:
                return {}
            self._heard += block
        line, _, self._heard = self._heard.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def _num_bytes(entry: Scannable) -> int:
    """0 where it is not known: storage that may be slow is left to the child."""
    if entry.length is not None or "://" in entry.uri:
        return entry.length or 0
    try:
        return os.stat(entry.uri).st_size
    except (OSError, ValueError):  # ValueError: a null byte in a name
        return 0


def _request(entry: Scannable, options: ScanOptions, excluded: list[str]) -> str:
    """One line, in ASCII: names of any bytes and with line breaks pass."""
    columns = {name: getattr(entry, name) for name in ("uri", "name", "offset", "length", "start_s", "end_s")}
    return json.dumps({"entry": columns, "options": asdict(options), "excluded": excluded})


def main() -> None:
    """Answer until standard input ends. What libraries print must not mix with the answers."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends its children by itself
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(
            _PR_SET_PDEATHSIG, signal.SIGKILL
        )  # a decoder that spins would outlive a parent that was killed
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def say(**message: Any) -> None:
            print(json.dumps(message), file=answers, flush=True)

        for line in sys.stdin:
            request = json.loads(line)
            try:
                say(
                    rows=scan(
                        SimpleNamespace(**request["entry"]), ScanOptions(**request["options"]), request["excluded"], say
                    )
                )
            except Exception as error:  # noqa: BLE001  the boundary of the process: one file must not stop a scan
                say(failure=f"the scan failed: {type(error).__name__}: {plain(error)}")


if __name__ == "__main__":
    main()
