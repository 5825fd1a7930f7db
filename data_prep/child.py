"""A program in a process of its own that can be killed: decoders spin for ever in native code, crash, or ask for all
memory, and one bad file must stop nothing.

`Child` is the side that asks, `serve` the side that answers; requests and messages are JSON, one object a line.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from queue import Full, Queue
from threading import Event, Lock, Thread
from time import monotonic
from types import TracebackType
from typing import Any, Final, Literal, Protocol, TypeVar

from vjepa.data.media import plain

MEMORY_BYTES: Final = 4 << 30  # of a child: a header that lies may ask for any size
_START_S: Final = 120.0  # for a program to load its libraries; the clock of a request starts after that
_AHEAD: Final = 8  # results for each child that may wait to be taken
_PUT_S: Final = 0.1
_PR_SET_PDEATHSIG: Final = 1  # of linux/prctl.h

_NOTHING: Final = object()

Task = TypeVar("Task")
Result = TypeVar("Result")
Message = dict[str, Any]


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Count the cores that this process may use: of its affinity, and within the quota of its container (cgroup 2).

    The machine may have many more.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, quota_file.read_text().split())
    except (OSError, ValueError):  # no cgroup, or "max"
        return cores
    return max(1, min(cores, math.ceil(quota / period)))


class ChildLost(Exception):
    """Report a request without a whole answer. how: `late` and killed, `crashed`, or `failed` with an error."""

    def __init__(self, how: Literal["late", "crashed", "failed"], message: str = "") -> None:
        super().__init__(message or how)
        self.how = how


class Child:
    """Run a program that starts when it is first asked, and anew after it was lost; use as a context manager.

    It is no fork: it imports neither PyTorch nor the script of the caller.
    """

    def __init__(self, *program: str) -> None:
        """Take what follows `python` on the command line of a program that calls `serve`."""
        self._command = [sys.executable, *program]
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""  # of messages that have not ended
        self._late = False
        self._lock = Lock()
        self._killed = False  # for good

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, request: Mapping[str, Any], deadline_s: float) -> Generator[Message]:
        """Yield what the child says to a request; one that is not listened to up to the end is ended.

        deadline_s: for each message. Raises ChildLost.
        """
        process, ended = self._running(), False
        try:
            self._write(process, request)
            while not (message := self._read(process, deadline_s)).get("end"):
                yield message
            ended = not self._late
        finally:
            if not ended:
                _end(process)
        if message.get("error"):
            raise ChildLost("failed", message["error"])

    def kill(self) -> None:
        """Kill the program for good, from any thread: whoever waits for its answer finds it crashed."""
        with self._lock:
            self._killed = True
            if self._process:
                self._process.kill()

    def close(self) -> None:
        """Kill the program for good and wait for its end, where no other thread asks it."""
        self.kill()
        if self._process:
            _end(self._process)

    def _running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._killed:
                raise ChildLost("crashed")
            if self._process and self._process.poll() is None:
                return self._process
            process = self._process = _start(self._command)
            self._heard, self._late = b"", False
        try:
            self._read(process, _START_S)
        except ChildLost:
            _end(process)
            raise
        return process

    def _write(self, process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> None:
        """Write a line in ASCII, in which names of any bytes pass. A child that died is found out by reading."""
        if process.stdin is None:
            raise RuntimeError("a child without a pipe to it")
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()

    def _read(self, process: subprocess.Popen[bytes], deadline_s: float) -> Message:
        """Read the next message. Raises ChildLost."""
        if process.stdout is None:
            raise RuntimeError("a child without a pipe from it")
        pipe, begin_s = process.stdout.fileno(), monotonic()
        while b"\n" not in self._heard:
            if not wait([pipe], max(0.0, begin_s + deadline_s - monotonic())):
                self._late = True
                process.kill()
            block = os.read(pipe, 1 << 16)
            if not block:
                raise ChildLost("late" if self._late else "crashed")
            self._heard += block
        line, _, self._heard = self._heard.partition(b"\n")
        message: Message = json.loads(line)
        return message


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(place or "." for place in sys.path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


class Say(Protocol):
    """Send a message, JSON by name, to whoever waits for the answer."""

    def __call__(self, **message: Any) -> None: ...


def serve(answer: Callable[[Message, Say], None], memory_bytes: int = MEMORY_BYTES) -> None:
    """Answer requests, in a program that `Child` runs, until standard input ends or the parent dies.

    answer: takes a request, and a function that says a message. memory_bytes: what the program may hold at most; on
    Linux, as other kernels do not count what is mapped.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its children itself
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a decoder that spins would outlive its parent
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = memory_bytes if most == resource.RLIM_INFINITY else min(memory_bytes, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print must not mix with the answers

        def say(**message: Any) -> None:
            print(json.dumps(message), file=answers, flush=True)

        say(ready=True)
        for line in sys.stdin:
            error = None
            try:
                answer(json.loads(line), say)
            except Exception as caught:  # noqa: BLE001 - the boundary of the process: one file must not stop the others
                error = f"{type(caught).__name__}: {plain(caught)}"
            say(end=True, error=error)


def work_off(
    tasks: Iterable[Task], children: Sequence[Child], work: Callable[[Child, Task], Iterable[Result]]
) -> Generator[Result]:
    """Yield the results of all tasks as they come; each child works at one task at a time, and few are taken ahead.

    work: yields the results of a task, with the help of a child.
    """
    crew = _Crew(iter(tasks), work, _AHEAD * len(children))
    threads = [Thread(target=crew.run, args=(child,), daemon=True) for child in children]
    try:
        for thread in threads:
            thread.start()
        yield from crew.results(len(threads))
    finally:  # also when the caller was interrupted: nobody waits for a decoder then
        crew.left.set()
        for child in children:
            child.kill()
        for thread in threads:
            if thread.is_alive():
                thread.join()
        for child in children:
            child.close()


class _Crew:
    """Hand tasks to threads, and their results to the caller; few results wait at a time."""

    def __init__(self, tasks: Iterator[Any], work: Callable[[Child, Any], Iterable[Any]], num_waiting: int) -> None:
        self.left = Event()  # by the caller
        self._tasks, self._work = tasks, work
        self._next = Lock()
        self._waiting: Queue[Any] = Queue(num_waiting)

    def run(self, child: Child) -> None:
        """Work off tasks until there is none, or the caller has left."""
        try:
            while not self.left.is_set():
                with self._next:
                    task = next(self._tasks, _NOTHING)
                if task is _NOTHING:
                    break
                for result in self._work(child, task):
                    self._hand_over(result)
            self._hand_over(_NOTHING)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of the caller
            self._hand_over(error)

    def _hand_over(self, result: Any) -> None:
        while not self.left.is_set():
            with suppress(Full):
                return self._waiting.put(result, timeout=_PUT_S)

    def results(self, num_at_work: int) -> Iterator[Any]:
        """Yield results until all threads have ended; what one of them raised is raised here."""
        while num_at_work:
            result = self._waiting.get()
            if isinstance(result, BaseException):
                raise result
            if result is _NOTHING:
                num_at_work -= 1
            else:
                yield result
