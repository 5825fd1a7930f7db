"""What a decoding process is reading, told to the process that waits for it (`loader.py` kills one that hangs)."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from vjepa.data.media import DecodeError


class BeingRead(NamedTuple):
    """Name the clip that is being read, and since when on the clock `time.monotonic`."""

    source: int
    clip_id: int
    since_s: float


@dataclass
class Watch:
    """Tell what a process reads; each process that reads clips has one.

    quarantine: (source, clip id) -> why this clip must not be read.
    beat: three numbers in memory that the waiting process shares: since when, source, clip id; since 0: reads nothing.
    """

    quarantine: dict[tuple[int, int], str] = field(default_factory=dict)
    beat: MutableSequence[float] | None = None

    @contextmanager
    def reading(self, source: int, clip_id: int) -> Iterator[None]:
        """Watch one decode. Raises DecodeError, with the reason, for a clip in quarantine."""
        if (source, clip_id) in self.quarantine:
            raise DecodeError(self.quarantine[source, clip_id])
        if self.beat is None:
            yield
            return
        self.beat[1], self.beat[2] = source, clip_id
        self.beat[0] = time.monotonic()
        try:
            yield
        finally:
            self.beat[0] = 0.0

    def now(self) -> BeingRead | None:
        """Tell what is being read, as the waiting process sees it."""
        since_s, source, clip_id = self.beat or (0.0, 0, 0)
        return BeingRead(int(source), int(clip_id), since_s) if since_s else None
