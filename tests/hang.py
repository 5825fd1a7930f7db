"""What decoders do to their process on some files. A module of its own, so that a process can import it."""

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vjepa.data.decode import read_frames
from vjepa.data.plan_training import TrainPlan


@dataclass(frozen=True)
class Trouble:
    """Reading the row number `bad_row` spins holding the GIL, crashes, or is killed (once, then it can be read); each
    time is noted in `notes`.
    """

    notes: Path
    how: str = "spin"
    bad_row: int = 2
    read: Callable = read_frames

    def __call__(self, row, frame_ids, size):
        if row.clip_id == self.bad_row:
            with self.notes.open("a") as file:
                file.write(f"{os.getpid()}\n")
            if self.how == "spin":
                re.match(r"(a+)+$", "a" * 64 + "b")  # for centuries, in C, with the GIL
            elif self.how == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif len(self.notes.read_text().splitlines()) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.read(row, frame_ids, size)


@dataclass(frozen=True)
class Timed:
    """Notes in a file when each decode begins and ends; every second one of a process takes longer."""

    log: Path

    def __call__(self, row, frame_ids, size):
        begin = time.monotonic()
        frames = read_frames(row, frame_ids, size)
        time.sleep(0.02 * (row.clip_id % 2))
        with self.log.open("a") as file:
            file.write(f"{begin} {time.monotonic()}\n")
        return frames


class DeadOnArrival(TrainPlan):
    def batch(self, step):
        os._exit(3)
