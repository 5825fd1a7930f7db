"""Clips whose decoder does to its process what decoders do on some files. A module of its own, so that a process can
import it.
"""

import os
import re
import signal
from pathlib import Path

from vjepa.data.clips import EvalClips, TrainClips


class Trouble:
    """Reading the row number `bad_row` spins holding the GIL, crashes, or is killed (once, then it can be read); each
    time is noted in `notes`.
    """

    bad_row, how, notes = 2, "spin", Path()

    def read(self, row, frame_ids, size):
        if row.clip_id == self.bad_row:
            with self.notes.open("a") as file:
                file.write(f"{os.getpid()}\n")
            if self.how == "spin":
                re.match(r"(a+)+$", "a" * 64 + "b")  # for centuries, in C, with the GIL
            elif self.how == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif len(self.notes.read_text().splitlines()) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().read(row, frame_ids, size)


class TroubledTrainClips(Trouble, TrainClips):
    pass


class TroubledEvalClips(Trouble, EvalClips):
    pass


class DeadOnArrival(TrainClips):
    def __getitem__(self, step):
        os._exit(3)
