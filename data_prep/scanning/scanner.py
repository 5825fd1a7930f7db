"""Scans in a child process that can be killed, because a decoder may spin for ever in native code, or crash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from time import monotonic
from typing import Any, Final

from data_prep.child import Child, ChildLost
from data_prep.listing.entry import Entry
from data_prep.listing.places import bytes_at_hand
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.track import FileScan, unusable

_DEADLINE_S_PER_BYTE: Final = 0.1e-6  # more: opening a film of 1 GB may take 100 s
_SLOWEST_FPS: Final = 1.0  # decoding in order that comes below it by then does not end in reasonable time
_PROGRAM: Final = ("-m", "data_prep.scanning.scan")
LOST: Final = "the machine that scanned it was lost"


@dataclass(frozen=True)
class Scan:
    """Scan numbered entries, for an engine: each gives its number and what is in its file."""

    options: ScanOptions
    deadline_s: float

    def new_child(self) -> Child:
        return Child(*_PROGRAM)

    def do(self, child: Child, task: tuple[int, Entry]) -> Iterator[tuple[int, FileScan]]:
        yield task[0], scan_file(child, task[1], self.options, self.deadline_s)

    def lost(self, task: tuple[int, Entry], reason: str) -> Iterator[tuple[int, FileScan]]:
        yield task[0], unusable(f"{LOST} ({reason})")


def scan_file(scanner: Child, entry: Entry, options: ScanOptions, deadline_s: float) -> FileScan:
    """Say what is in the file of an entry, whatever befalls the decoders.

    Where a decoder that was tried on random access hangs or crashes, the file is scanned again without that decoder.
    Where decoding in order does, its frames up to there are scanned again, for the parts that end before; the file is
    given up beside these. deadline_s: without a sign of progress; more for large files.
    """
    deadline_s += bytes_at_hand(entry.uri, entry.length) * _DEADLINE_S_PER_BYTE
    excluded: list[str] = []
    most, reason = None, None
    while True:
        attempt = _attempt(scanner, entry, options, excluded, most, deadline_s)
        if attempt.found:
            found = FileScan.from_json(attempt.found)
            return replace(found, status=reason) if reason else found
        if attempt.trying is not None:
            excluded.append(attempt.trying)
        elif attempt.is_lost and attempt.num_frames and most is None:
            most, reason = attempt.num_frames, attempt.failure
        else:
            return unusable(reason or attempt.failure, attempt.facts)


@dataclass
class _Attempt:
    """Collect what a child said of one file.

    trying: the decoder that it tried last, on random access. is_lost: it hung or crashed.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    num_frames: int = 0
    trying: str | None = None
    found: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    is_lost: bool = False


def _attempt(
    scanner: Child, entry: Entry, options: ScanOptions, excluded: Sequence[str], most: int | None, deadline_s: float
) -> _Attempt:
    columns = {name: getattr(entry, name) for name in ("uri", "name", "offset", "length")}
    request = {"entry": columns, "options": asdict(options), "excluded": excluded, "most": most}
    attempt, begin_s = _Attempt(), None
    try:
        with closing(scanner.ask(request, deadline_s)) as messages:
            for message in messages:
                vars(attempt).update(message)
                begin_s = begin_s or monotonic()  # the program may have had to start before
                taken_s = monotonic() - begin_s
                too_slow = taken_s > deadline_s and attempt.num_frames < taken_s * _SLOWEST_FPS
                if "num_frames" in message and too_slow:
                    attempt.failure = f"decoding came to {attempt.num_frames} frames in {taken_s:.0f} s and was stopped"
                    break
    except ChildLost as lost:
        attempt.is_lost = lost.how != "failed"
        attempt.failure = {
            "late": f"decoding stood still for {deadline_s:.0f} s and was stopped",
            "crashed": "the decoder crashed",
            "failed": f"the scan failed: {lost}",
        }[lost.how]
    return attempt
