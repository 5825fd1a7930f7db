"""Make a clip index of whatever sources there are.

Every video and image is decoded once, in processes that can be killed. A file that cannot be used stays in the index
with the reason in its `status`. What was scanned before, by a scan that was interrupted or for the index that is to be
replaced, and has not changed since, is not scanned again.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from data_prep.listing.entry import Entry
from data_prep.listing.places import first, shown
from data_prep.listing.sources import list_entries
from data_prep.scanning.answers import (
    PART,
    Answers,
    counted,
    file_states,
    is_filtered,
    is_unusable,
    part_of,
    short_hash,
)
from data_prep.scanning.engines import ENGINES, Work, check_engine
from data_prep.scanning.journal import Journal
from data_prep.scanning.options import DEADLINE_S, FIRST_OF_SEVERAL, ScanOptions
from vjepa.command import progress_bar
from vjepa.data.clip_index import SCHEMA, SCHEMA_VERSION, ClipIndex, index_metadata, index_version, write_index
from vjepa.errors import UserError

ANSWERS_VERSION: Final = 3  # raise it where a scan of the same file with the same options gives other rows
_HEADER_KEY: Final = b"vjepa_scan"
_NUM_NAMED: Final = 3

AnyPath = str | os.PathLike[str]


def build_index(
    sources: AnyPath | Sequence[AnyPath],
    out: AnyPath,
    labels: AnyPath | None = None,
    workers: int | None = None,
    progress: bool = True,
    *,
    layout: str = "auto",
    options: ScanOptions | None = None,
    deadline_s: float = DEADLINE_S,
    engine: str = "processes",
    rescan: bool = False,
) -> ClipIndex:
    """Scan every video and image of `sources` and write the clip index `out`.

    sources, layout, labels: see `list_entries`. workers: files scanned at a time; None: as many as there are cores.
    rescan: also what has not changed. Interrupted, the same call continues from the journal beside `out`. Raises
    UserError for sources or labels that cannot be used, no usable file, an `out` that is no clip index.
    """
    if "://" in os.fspath(out):
        raise UserError(f"{out}: the index is written to this machine; choose a path for --out")
    out, options = Path(os.path.abspath(out)), options or ScanOptions()
    if workers is not None and workers < 1:
        raise UserError(f"workers {workers}: at least 1 is needed")
    if not 0 < deadline_s < math.inf:
        raise UserError(f"deadline_s {deadline_s:g}: must be more than 0")
    check_engine(engine)
    _check_out(out)
    names = [os.fspath(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    listing = list_entries(names, layout, os.fspath(labels) if labels else None)
    header = {"version": f"{SCHEMA_VERSION}.{ANSWERS_VERSION}", "options": asdict(options)}
    with _folder(out.parent), Journal(out.with_name(f".{out.name}.scan.jsonl"), header | {"rescan": rescan}) as journal:
        answers = Answers(listing.entries, journal)
        notes = [*listing.notes, *_take_over(answers, journal, None if rescan else _previous(out), header)]
        if progress and notes:
            print("\n".join(notes))
        _scan(answers, Work(options, deadline_s, workers), engine, progress)
        if not answers.statuses["ok"]:
            journal.remove()
            raise UserError(_none_usable(names, answers))
        rows = _IndexRows(answers, out.parent)
        try:
            write_index(out, rows, extra=rows.text_columns, metadata={_HEADER_KEY: json.dumps(header).encode()})
        except OSError as error:
            raise UserError(
                f"{shown(str(out))}: cannot be written ({error}); the scan is kept, and the same command "
                "continues from it"
            ) from None
        journal.remove()
    if progress:
        print("\n".join(_summary(answers, rows)))
    return ClipIndex.open(out)


def _check_out(out: Path) -> None:
    """Raise UserError where `out` cannot be written: before the scan, because that may take hours."""
    try:
        if out.is_dir() or (out.exists() and index_version(out) is None):
            raise UserError(
                f"{shown(str(out))}: exists and is not a clip index, so it is not replaced; choose another --out"
            )
        parent = next(place for place in out.parents if place.exists())
    except OSError as error:
        raise UserError(f"{shown(str(out))}: {error.strerror}; choose another --out") from None
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{shown(str(out))}: {parent} cannot be written to; choose another --out")


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder; those that were made and are empty in the end go again."""
    made = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for place in made:
                place.rmdir()


def _previous(out: Path) -> ClipIndex | None:
    """Open the index that is to be replaced; None where there is none that can be read."""
    try:
        return ClipIndex.open(out) if out.exists() else None
    except UserError:
        return None


def _take_over(answers: Answers, journal: Journal, previous: ClipIndex | None, header: dict[str, Any]) -> list[str]:
    """Take over the answers of an interrupted scan and of the previous index; give notes on it, one line each."""
    notes = []
    if journal.was_other:
        notes.append(f"{journal.path}: an interrupted scan with other options, or of another version, is not continued")
    is_alike = previous is not None and index_metadata(previous.path).get(_HEADER_KEY) == json.dumps(header).encode()
    if not is_alike and not journal.has_answers:
        if previous:
            notes.append(f"{previous.path}: was made with other options, or by another version; every file is scanned")
        return notes
    states = file_states(answers.entries)
    answers.continue_scan(states)
    if answers.num_answered:
        notes.append(
            f"{journal.path}: {answers.num_answered} of {len(answers.entries)} files were scanned before the "
            "interruption"
        )
    if previous and is_alike:
        changes = answers.take_over(previous, states)
        kept = f" ({changes.same_unusable} not usable; --rescan tries them again)" if changes.same_unusable else ""
        notes.append(
            f"{previous.path}: {changes.same} files are as they were{kept}, {changes.changed} changed, "
            f"{changes.new} new, {changes.vanished} gone"
        )
    return notes


def _scan(answers: Answers, work: Work, engine: str, progress: bool) -> None:
    """Scan what has no answer yet. An interruption loses nothing but the files that were being scanned."""
    missing, total = answers.missing(), len(answers.entries)
    if not missing:
        return  # an engine would start for nothing
    found = ENGINES[engine]((answers.entries[number] for number in missing), work)
    bar = progress_bar(shown=progress, total=total, initial=total - len(missing), unit="file", desc="index")
    with bar, closing(found):
        try:
            for place, rows in found:
                answers.add(missing[place], rows)
                if is_unusable(rows[0]["status"]):
                    bad = _some(answers.statuses, is_unusable)
                    bar.set_postfix_str(f"{bad.total()} bad: {counted(bad, _NUM_NAMED)}", refresh=False)
                bar.update()
        except (KeyboardInterrupt, SystemExit):
            if answers.num_answered:
                print(
                    f"\ninterrupted: {answers.num_answered} of {total} files are scanned; the same command "
                    "continues from there",
                    file=sys.stderr,
                )
            raise


class _IndexRows:
    """Yield the rows of the index, in the order of the entries, and count on the way."""

    def __init__(self, answers: Answers, folder: Path) -> None:
        self.num_rows = 0
        self.num_duplicates = 0
        self.num_images = self.num_first_of_several = self.num_jumping = 0  # files
        self._answers, self._folder = answers, os.path.join(folder, "")
        entries = answers.entries
        labels = sorted({entry.columns.get("label") or "" for entry in entries} - {""})
        self._label_ids = {label: i for i, label in enumerate(labels)}
        own = {PART} if any(part_of(entry) for entry in entries) else set()
        self.text_columns = sorted({name for entry in entries for name in entry.columns} - set(SCHEMA.names) | own)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # uri, offset and length of the first file with a content that several may have
        originals: dict[str, tuple[Any, ...]] = {}
        repeated = self._answers.repeated_hashes()
        for number, entry in enumerate(self._answers.entries):
            rows, columns = self._answers[number], self._columns(entry)
            content = rows[0].get("content_hash")
            if content and short_hash(content) in repeated:
                file = columns["uri"], entry.offset, entry.length
                original = originals.setdefault(content, file)
                columns["duplicate_of"] = None if original == file else original[0]
                self.num_duplicates += original != file
            self.num_rows += len(rows)
            self.num_images += rows[0].get("decoder") == "image"
            self.num_first_of_several += str(rows[0].get("codec")).endswith(FIRST_OF_SEVERAL)
            self.num_jumping += any(row.get("cut_at") == "clock" for row in rows)
            yield from (row | columns for row in rows)

    def _columns(self, entry: Entry) -> dict[str, Any]:
        """Collect what the sources know of a file."""
        return {
            **entry.columns,
            "uri": entry.uri.removeprefix(self._folder),
            "offset": entry.offset,
            "length": entry.length,
            "label_id": self._label_ids.get(entry.columns.get("label") or "", -1),
            PART: part_of(entry),
        }


def _summary(answers: Answers, rows: _IndexRows) -> list[str]:
    lines = []
    if rows.num_duplicates:
        lines.append(
            f"files with the content of another: {rows.num_duplicates}; they stay usable, the column "
            "duplicate_of names the first"
        )
    if rows.num_jumping:
        lines.append(
            f"files whose timestamps jump (several recordings in one, pauses): {rows.num_jumping}; no clip crosses a "
            "jump, the column cut_at says clock"
        )
    if rows.num_first_of_several:
        lines.append(
            f"images with several frames or pages: {rows.num_first_of_several}; the first is used, the column codec "
            "says so"
        )
    statuses, num_files = answers.statuses, len(answers.entries)
    filtered, unusable = _some(statuses, is_filtered), _some(statuses, is_unusable)
    if 0 < rows.num_images < num_files - unusable.total():
        lines.append(f"images beside videos: {rows.num_images} of {num_files} files; each is a clip of one frame")
    clips = f", {rows.num_rows} clips" if rows.num_rows != num_files else ""
    line = f"{num_files} files{clips}: {statuses['ok']} ok"
    if filtered:
        line += f", {filtered.total()} left out ({counted(filtered)})"
    line += f", {unusable.total()} not usable" + (f": {counted(unusable)}" if unusable else "")
    return [*lines, line]


def _none_usable(names: Sequence[str], answers: Answers) -> str:
    start, num_files, counts = f"{first(names)}: none of its", len(answers.entries), counted(answers.statuses)
    if any(is_filtered(status) for status in answers.statuses):
        return f"{start} {num_files} files gives a clip that is left: {counts}; loosen the filters"
    return f"{start} {num_files} files can be decoded: {counts}; give a folder with videos or images"


def _some(statuses: Counter[str], is_meant: Callable[[str], bool]) -> Counter[str]:
    return Counter({status: count for status, count in statuses.items() if is_meant(status)})
