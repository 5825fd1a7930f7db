"""Where the scans of an index run. Each engine yields (number of the entry, what is in its file) as answers come,
whatever befalls a file.

`processes`: children of this process. `ray`: a Ray cluster, one child in each actor; the one that RAY_ADDRESS names,
else a local one.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from data_prep.child import Child, usable_cores, work_off
from data_prep.listing.entry import Entry
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scanner import new_scanner, scan_file
from data_prep.scanning.track import FileScan, unusable
from vjepa.errors import UserError

NumberedScans = Generator[tuple[int, FileScan]]
_REASON_LENGTH: Final = 300  # of the messages of Ray, which have many lines
_CONNECT_S: Final = 10.0  # for an address to answer; Ray itself goes on asking for minutes
_MAX_RETRIES: Final = 2  # of a file whose machine was lost
LOST: Final = "the machine that scanned it was lost"


@dataclass(frozen=True)
class Work:
    """Say how to scan. workers: files at a time; None: as many as there are cores."""

    options: ScanOptions
    deadline_s: float
    workers: int | None = None


def scan_in_processes(entries: Iterable[Entry], work: Work) -> NumberedScans:
    """Scan in child processes on this machine."""

    def scan(scanner: Child, task: tuple[int, Entry]) -> NumberedScans:
        yield task[0], scan_file(scanner, task[1], work.options, work.deadline_s)

    scanners = [new_scanner() for _ in range(work.workers or usable_cores())]
    yield from work_off(enumerate(entries), scanners, scan)


def scan_on_ray(entries: Iterable[Entry], work: Work) -> NumberedScans:
    """Scan in actors of a Ray cluster, which must see the files under the same names.

    A lost machine costs nothing but time: Ray starts its actors elsewhere and repeats what they were at. Raises
    UserError where none of the actors can start.
    """
    import ray  # here: an extra of its own

    ours = not ray.is_initialized()
    if ours:
        _connect(ray)
    try:
        yield from _hand_out(ray, iter(enumerate(entries)), work)
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS")
    try:
        _reach(address or "")
        ray.init(address="auto" if address else "local", log_to_driver=False, configure_logging=False)
    except (OSError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[-_REASON_LENGTH:]
        raise UserError(
            f"engine ray: no Ray cluster answers at {address or 'this machine'}; see `ray status` ({reason})"
        ) from None


def _reach(address: str) -> None:
    """Raise OSError where nothing answers at host:port, or at ray://host:port.

    Other kinds of address are left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()


def _hand_out(ray: Any, tasks: Iterator[tuple[int, Entry]], work: Work) -> NumberedScans:
    """Give the next file to whichever actor is free.

    An actor that still waits for a place gets none: a crowded cluster is merely slower.
    """
    remote = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=_MAX_RETRIES)(_Actor)
    actors = [remote.remote(work) for _ in range(work.workers or max(1, int(ray.cluster_resources().get("CPU", 1))))]
    running: dict[Any, tuple[Any, int | None]] = {
        actor.ready.remote(): (actor, None) for actor in actors
    }  # answer -> who works at it, at which file
    num_ready, task = 0, next(tasks, None)
    try:
        while task or any(number is not None for _, number in running.values()):
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, number = running.pop(done)
            if number is None and not _is_ready(ray, done, is_last=not num_ready and not running):
                continue
            num_ready += number is None
            if task:
                running[actor.scan.remote(task[1])] = actor, task[0]
                task = next(tasks, None)
            if number is not None:
                yield number, _found(ray, done)
    finally:
        for actor in actors:
            ray.kill(actor)


def _found(ray: Any, done: Any) -> FileScan:
    try:
        found: FileScan = ray.get(done)
    except ray.exceptions.RayError as error:
        return unusable(f"{LOST} ({type(error).__name__})")
    return found


def _is_ready(ray: Any, done: Any, is_last: bool) -> bool:
    """Tell whether an actor has started. Raises UserError where it was the last that could have."""
    try:
        ray.get(done)
    except ray.exceptions.RayError as error:
        if is_last:
            reason = " ".join(str(error).split())[-_REASON_LENGTH:]
            raise UserError(
                f"engine ray: no actor could start; install video-jepa on every node of the cluster ({reason})"
            ) from None
        return False
    return True


class _Actor:
    """Scan one file after the other in a child that can be killed."""

    def __init__(self, work: Work) -> None:
        self._work, self._scanner = work, new_scanner()

    def ready(self) -> None:
        """Show by an answer that the actor has a place, and that this node can import what it needs."""

    def scan(self, entry: Entry) -> FileScan:
        return scan_file(self._scanner, entry, self._work.options, self._work.deadline_s)


ENGINES: Final[dict[str, Callable[[Iterable[Entry], Work], NumberedScans]]] = {
    "processes": scan_in_processes,
    "ray": scan_on_ray,
}


def check_engine(name: str) -> None:
    """Raise UserError for an unknown engine, or one that is not installed."""
    if name not in ENGINES:
        raise UserError(f"engine {name}: no such engine; there are {', '.join(ENGINES)}")
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise UserError("engine ray: Ray is not installed; pip install 'video-jepa[ray]'")
