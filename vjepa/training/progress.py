"""The progress bar of a run."""

from __future__ import annotations

from time import perf_counter

from vjepa import command

_LAYOUT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}, {remaining} left{postfix}]"


class Progress:
    """Show clips/s, loss and time left; where nobody watches, a line now and then."""

    def __init__(self, done: int, total: int, shown: bool) -> None:
        self.bar = command.progress_bar(shown=shown, total=total, initial=done, desc="train", bar_format=_LAYOUT)
        self.clips, self.since = 0, perf_counter()

    def advance(self, num_clips: int) -> None:
        """Count one step, of `num_clips` clips."""
        self.clips += num_clips
        self.bar.update()

    def recent_clips_per_s(self) -> float:
        """Give the rate since the last call, so that a slow-down shows when it happens."""
        now = perf_counter()
        rate = self.clips / max(now - self.since, 1e-9)
        self.clips, self.since = 0, now
        return round(rate, 2)

    def show(self, loss: float, clips_per_s: float) -> None:
        """Write loss and rate beside the bar."""
        self.bar.set_postfix_str(f"loss {loss:.4f}, {clips_per_s:.1f} clips/s", refresh=False)

    def close(self) -> None:
        self.bar.close()
