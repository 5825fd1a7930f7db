"""Answers as they come: one JSON line for each, in a file beside the index that is being made.

A scan that was interrupted, by a signal, a crash or a power cut, continues from it.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from data_prep.listing.places import shown
from vjepa.errors import UserError

Key = tuple[str | float | None, ...]  # what an answer is about
_FIRST_LINE_LIMIT: Final = 1 << 16


class JournalLine(NamedTuple):
    place: int  # in the journal, for `Journal.read`
    key: Key
    answer: Any  # JSON


class Journal:
    """Keep an open journal; use as a context manager.

    The same `header` continues it, any other begins it anew. Without answers nothing stays.
    was_other: whether it held answers under another header, which are gone now.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Open or begin a journal. Raises UserError where another process has it open, or it cannot be written."""
        self.path = path
        self._first_line = _line(header)
        try:
            self._sink = path.open("ab", buffering=0)
            self._reader = path.open("rb")
        except OSError as error:
            raise UserError(f"{shown(str(path))}: cannot be written ({error.strerror}); choose another --out") from None
        try:
            fcntl.flock(self._sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise UserError(
                f"{shown(str(path))}: another scan is writing it; wait for that one, or choose another --out"
            ) from None
        except OSError as error:
            self._close()
            raise UserError(f"{shown(str(path))}: cannot be locked ({error.strerror}); choose another --out") from None
        found = self._reader.readline(_FIRST_LINE_LIMIT)
        self.was_other = found != self._first_line and bool(self._reader.readline(1))
        self._end = path.stat().st_size
        if found != self._first_line:
            self._cut(0)
            self._write(self._first_line)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.has_answers:
            self.remove()
        self._close()

    @property
    def has_answers(self) -> bool:
        return self._end > len(self._first_line)

    def _close(self) -> None:
        self._reader.close()
        self._sink.close()

    def answers(self) -> Iterator[JournalLine]:
        """Yield every answer so far. The first line that is not whole is cut off with all that follows."""
        place = len(self._first_line)
        self._reader.seek(place)
        while line := self._reader.readline():
            answer = _parsed(line)
            if answer is None:
                self._cut(place)
                return
            yield JournalLine(place, tuple(answer[0]), answer[1])
            place += len(line)

    def append(self, key: Key, answer: Any) -> int:
        """Keep an answer and return its place. It outlives this process from now on."""
        return self._write(_line([key, answer]))

    def read(self, place: int) -> Any:
        """Read the answer at `place`."""
        self._reader.seek(place)
        return json.loads(self._reader.readline())[1]

    def clear(self) -> None:
        """Forget every answer."""
        self._cut(len(self._first_line))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _cut(self, end: int) -> None:
        self._sink.truncate(end)
        self._end = end
        self._reader.close()  # it may have read ahead what is gone now
        self._reader = self.path.open("rb")

    def _write(self, line: bytes) -> int:
        """Write straight to the file, so that the line survives the death of this process."""
        place, rest = self._end, memoryview(line)
        try:
            while rest:
                rest = rest[self._sink.write(rest) :]
        except OSError as error:
            raise UserError(
                f"{shown(str(self.path))}: cannot be written ({error.strerror}); what it holds is kept, and "
                "the same command continues from it"
            ) from None
        self._end += len(line)
        return place


def _parsed(line: bytes) -> Any:
    """Parse a line; None where it is not whole."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
