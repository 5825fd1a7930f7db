"""A run under torchrun whose ranks are killed at random moments, some of them inside a save."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vjepa.run_folder import RunFolder

PATIENCE_S = 1800


def killed_run(
    folder: Path,
    words: Sequence[str],
    run_folder: RunFolder,
    num_ranks: int,
    kills: int,
    seed: int,
    most_s: float = 6.0,
) -> int:
    """Train with `vjepa.train WORDS` in `folder`, and kill a random rank `kills` times, as torchrun starts it anew.

    A kill comes up to `most_s` after the first checkpoint of a start; every other one waits for a save to begin, which
    is a folder that is written. Gives how many ranks were killed, fewer than `kills` where the run was over before.
    Raises RuntimeError where it does not end well.
    """
    draws, done = random.Random(seed), 0
    flags = ["--standalone", f"--nproc-per-node={num_ranks}", f"--max-restarts={kills}", "--monitor-interval=0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "vjepa.train", *words]
    with (
        (folder / "torchrun.log").open("w") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as run,
    ):
        before, reached = set[int](), None
        while run.poll() is None and done < kills:
            ranks, newest = _children(run.pid), _newest(run_folder)
            if len(ranks) < num_ranks or ranks & before or newest == reached:
                time.sleep(0.01)
                continue
            at = time.monotonic() + draws.uniform(0, most_s)
            inside = done % 2 == 1
            while run.poll() is None and (time.monotonic() < at or (inside and not _is_saving(run_folder))):
                time.sleep(0.002)
            if run.poll() is None:
                _kill(draws.choice(sorted(ranks)))
                before, reached, done = ranks, _newest(run_folder), done + 1
        if run.wait(PATIENCE_S):
            raise RuntimeError(f"{folder / 'torchrun.log'}: exit {run.returncode}")
    return done


def _children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _newest(run: RunFolder) -> str | None:
    return run.newest.path.name if run.newest else None


def _is_saving(run: RunFolder) -> bool:
    return any(run.checkpoints.glob(".partial-*"))


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
