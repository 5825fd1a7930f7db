"""Where the work of `data_prep` is done. Each engine works off tasks and yields results as they come, whatever befalls
one of them.

`processes`: children of this process. `ray`: a Ray cluster, one child in each actor; the one that RAY_ADDRESS names,
else a local one.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from data_prep.child import Child, Result, Task, usable_cores, work_off
from vjepa.errors import UserError

_Task = TypeVar("_Task", contravariant=True)
_Result = TypeVar("_Result", covariant=True)
_REASON_LENGTH: Final = 300  # of the messages of Ray, which have many lines
_CONNECT_S: Final = 10.0  # for an address to answer; Ray itself goes on asking for minutes
_MAX_RETRIES: Final = 2  # of a task whose machine was lost


class Work(Protocol[_Task, _Result]):
    """Say what is done with a task. Ray copies this, tasks and results to other machines by pickle."""

    def new_child(self) -> Child:
        """Make the child that one worker keeps; it starts when it is first asked."""

    def do(self, child: Child, task: _Task) -> Iterable[_Result]:
        """Yield the results of a task, with the help of the child."""

    def lost(self, task: _Task, reason: str) -> Iterable[_Result]:
        """Yield the results of a task that no machine lived to end."""


@dataclass(frozen=True)
class Engine:
    """Name where work is done. workers: tasks at a time; None: as many as there are cores."""

    name: str = "processes"
    workers: int | None = None

    def check(self) -> None:
        """Raise UserError for an unknown engine, one that is not installed, or no worker."""
        if self.name not in ENGINES:
            raise UserError(f"engine {self.name}: no such engine; there are {', '.join(ENGINES)}")
        if self.name == "ray" and importlib.util.find_spec("ray") is None:
            raise UserError("engine ray: Ray is not installed; pip install 'video-jepa[ray]'")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: at least 1 is needed")

    def work_off(self, tasks: Iterable[Task], work: Work[Task, Result]) -> Generator[Result]:
        """Yield the results of all tasks as they come."""
        return ENGINES[self.name](tasks, work, self.workers)


def in_processes(tasks: Iterable[Task], work: Work[Task, Result], workers: int | None) -> Generator[Result]:
    """Work in child processes on this machine."""
    yield from work_off(tasks, [work.new_child() for _ in range(workers or usable_cores())], work.do)


def on_ray(tasks: Iterable[Task], work: Work[Task, Result], workers: int | None) -> Generator[Result]:
    """Work in actors of a Ray cluster, which must see the files under the same names.

    A lost machine costs nothing but time: Ray starts its actors elsewhere and repeats what they were at. Raises
    UserError where none of the actors can start.
    """
    import ray  # here: an extra of its own

    ours = not ray.is_initialized()
    if ours:
        _connect(ray)
    try:
        yield from _hand_out(ray, iter(tasks), work, workers)
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS")
    try:
        _reach(address or "")
        ray.init(address="auto" if address else "local", log_to_driver=False, configure_logging=False)
    except (OSError, ray.exceptions.RayError) as error:
        raise UserError(
            f"engine ray: no Ray cluster answers at {address or 'this machine'}; see `ray status` ({_short(error)})"
        ) from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[-_REASON_LENGTH:]


def _reach(address: str) -> None:
    """Raise OSError where nothing answers at host:port, or at ray://host:port.

    Other kinds of address are left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()


def _hand_out(ray: Any, tasks: Iterator[Task], work: Work[Task, Result], workers: int | None) -> Generator[Result]:
    """Give the next task to whichever actor is free.

    An actor that still waits for a place gets none: a crowded cluster is merely slower.
    """
    remote = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=_MAX_RETRIES)(_Actor)
    actors = [remote.remote(work) for _ in range(workers or max(1, int(ray.cluster_resources().get("CPU", 1))))]
    running: dict[Any, tuple[Any, tuple[Task, ...]]] = {
        actor.ready.remote(): (actor, ()) for actor in actors
    }  # answer -> who works at it, at which task; at none while it starts
    num_ready, ahead = 0, tuple(islice(tasks, 1))
    try:
        while ahead or any(given for _, given in running.values()):
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, given = running.pop(done)
            if not given and not _is_ready(ray, done, is_last=not num_ready and not running):
                continue
            num_ready += not given
            if ahead:
                running[actor.do.remote(*ahead)] = actor, ahead
                ahead = tuple(islice(tasks, 1))
            for task in given:
                yield from _results(ray, done, work, task)
    finally:
        for actor in actors:
            ray.kill(actor)


def _results(ray: Any, done: Any, work: Work[Task, Result], task: Task) -> Iterable[Result]:
    """Take what an actor found. Raises what the work raised there, as it would here."""
    try:
        found: list[Result] = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        return work.lost(task, type(error).__name__)
    return found


def _is_ready(ray: Any, done: Any, is_last: bool) -> bool:
    """Tell whether an actor has started. Raises UserError where it was the last that could have."""
    try:
        ray.get(done)
    except ray.exceptions.RayError as error:
        if is_last:
            raise UserError(
                f"engine ray: no actor could start; install video-jepa on every node of the cluster ({_short(error)})"
            ) from None
        return False
    return True


class _Actor:
    """Do one task after the other, with a child that can be killed."""

    def __init__(self, work: Work[Any, Any]) -> None:
        self._work, self._child = work, work.new_child()

    def ready(self) -> None:
        """Show by an answer that the actor has a place, and that this node can import what it needs."""

    def do(self, task: Any) -> list[Any]:
        return list(self._work.do(self._child, task))


ENGINES: Final[dict[str, Callable[[Iterable[Any], Work[Any, Any], int | None], Generator[Any]]]] = {
    "processes": in_processes,
    "ray": on_ray,
}
