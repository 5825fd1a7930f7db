"""How a run is asked to stop: by SIGTERM (Slurm, systemd, kill), SIGHUP (a terminal that closes) or Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any] | signal.Handlers

_unheeded: list[int] = []  # signals whose exit did not end this process, or not yet


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Note signals in the list given, so that the step in hand ends first.

    Another Ctrl-C ends at once; of the others several may come: to the process, to its group, from its parent. In
    another thread than the main one no signal arrives, and none is waited for.
    """
    received = _unheeded[:]

    def note(number: int, _frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = _handle(note, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_when_stopped(code: int) -> None:
    """Have the first SIGTERM or SIGHUP end this process with an exit code of its own, as `sys.exit` does.

    Python drops what a handler raises inside of a callback of a library; then `interruptible` ends the run.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        _handle(signal.SIG_IGN, signal.SIGTERM, signal.SIGHUP)
        _unheeded.append(number)
        os.write(2, b"\nstopped; the same command goes on from there\n")  # print may be what was interrupted
        sys.exit(code)

    _handle(leave, signal.SIGTERM, signal.SIGHUP)


def _handle(handler: _Handler, *numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Set a handler, and give those before it. A SIGHUP that is ignored, as by `nohup`, stays so."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}
