"""Processes that find each other as those of torchrun do, for tests."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

# forked from a process that has imported what they need, and has no threads that hold locks
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["vjepa.training.pretraining"])
PATIENCE_S = 1800


def on_ranks(num: int, work: Callable[..., Any], *given: Any, lost: int | None = None) -> list[Any]:
    """Call `work(*given)` in `num` processes; the result of each, by rank. An exception is one, of an exit too.

    lost: a rank that will not answer, and is not waited for.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(num):
        ours, theirs = _CONTEXT.Pipe()
        given_to = (theirs, list(sys.path), _variables(rank, num, port), work, given)
        processes.append(_CONTEXT.Process(target=_run, args=given_to))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        return [None if rank == lost else _received(pipe) for rank, pipe in enumerate(pipes)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _variables(rank: int, num: int, port: int) -> dict[str, str]:
    named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in named.items()}


def _received(pipe: Connection) -> Any:
    """What a process sent; None of one that was killed, or does not answer."""
    try:
        return pickle.loads(pipe.recv_bytes()) if pipe.poll(PATIENCE_S) else None  # noqa: S301 - it is ours
    except EOFError:
        return None


def _run(pipe: Connection, path: list[str], variables: dict[str, str], work: Callable[..., Any], given: Any) -> None:
    sys.path[:] = path
    os.environ.update(variables)
    torch.set_num_threads(1)
    try:
        pipe.send_bytes(pickle.dumps(work(*given)))  # with the numbers of tensors, not a handle of this process
    except BaseException as error:  # noqa: BLE001 - it goes to the test, whatever it is
        traceback.print_exc()
        pipe.send_bytes(pickle.dumps(error))
