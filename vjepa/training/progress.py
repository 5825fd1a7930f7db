"""The progress bar of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TypeVar

from vjepa import command

LoadedT = TypeVar("LoadedT")
_LAYOUT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}, {remaining} left{postfix}]"


class Progress:
    """Show clips/s, loss and time left; where nobody watches, a line now and then."""

    def __init__(self, done: int, total: int, shown: bool) -> None:
        self.bar = command.progress_bar(shown=shown, total=total, initial=done, desc="train", bar_format=_LAYOUT)
        self.shown, self.clips, self.waited_s, self.since = shown, 0, 0.0, perf_counter()

    def waiting(self, loader: Iterable[LoadedT]) -> Iterator[LoadedT]:
        """Pass on what `loader` gives for each step, and sum up how long it has to be waited for."""
        batches = iter(loader)
        while True:
            began = perf_counter()
            batch = next(batches, None)
            self.waited_s += perf_counter() - began
            if batch is None:
                return
            yield batch

    def advance(self, num_clips: int) -> None:
        """Count one step, of `num_clips` clips."""
        self.clips += num_clips
        self.bar.update()

    def recent(self) -> dict[str, float]:
        """Give clips/s, and the share of the time that the loader was waited for, since the last call.

        So a slow-down shows when it happens.
        """
        now = perf_counter()
        passed_s = max(now - self.since, 1e-9)
        found = {"clips_per_s": round(self.clips / passed_s, 2), "loader_wait": round(self.waited_s / passed_s, 4)}
        self.clips, self.waited_s, self.since = 0, 0.0, now
        return found

    def show(self, loss: float, clips_per_s: float) -> None:
        """Write loss and rate beside the bar."""
        self.bar.set_postfix_str(f"loss {loss:.4f}, {clips_per_s:.1f} clips/s", refresh=False)

    def say(self, line: str) -> None:
        """Write a line above the bar, where it is shown."""
        if self.shown:
            self.bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
