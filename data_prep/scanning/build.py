"""Make a clip index of whatever sources there are.

Every video and image is decoded once, however many parts of it are wanted, in processes that can be killed. A file that
cannot be used stays in the index with the reason in its `status`. What was scanned before, by a scan that was
interrupted or for the index that is to be replaced, and has not changed since, is not scanned again.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, Final

from data_prep.engines import Engine
from data_prep.listing.entry import Entry
from data_prep.listing.places import first, shown
from data_prep.listing.sources import list_entries
from data_prep.listing.tracks import TrackChoice
from data_prep.scanning.alignment import TrackColumns
from data_prep.scanning.answers import (
    PART,
    Answers,
    counted,
    is_filtered,
    is_unusable,
    part_of,
    short_hash,
)
from data_prep.scanning.journal import Journal
from data_prep.scanning.known_files import KnownFiles
from data_prep.scanning.options import DEADLINE_S, FIRST_OF_SEVERAL, ScanOptions
from data_prep.scanning.scanner import Scan
from vjepa.command import progress_bar
from vjepa.data.clip_index import SCHEMA, SCHEMA_VERSION, ClipIndex, index_metadata, index_version, write_index
from vjepa.data.media import is_zarr
from vjepa.errors import UserError

ANSWERS_VERSION: Final = 4  # raise it where a scan of the same file with the same options gives other rows
_HEADER_KEY: Final = b"vjepa_scan"
_SAMPLE_KEY: Final = b"vjepa_sample"  # what an index is a sample of; empty where it is none
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
    sample: int | None = None,
    tracks: TrackChoice | None = None,
) -> ClipIndex:
    """Scan every video and image of `sources` and write the clip index `out`.

    sources, layout, labels, sample, tracks: see `list_entries`. workers: files scanned at a time; None: one for each
    core. engine: see `data_prep.engines`. rescan: also what has not changed. Interrupted, the same call continues from
    the journal beside `out`. Raises UserError for sources or labels that cannot be used, no usable file, an `out` that
    is no clip index.
    """
    names = [os.fspath(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    at, work = Engine(engine, workers), Scan(options or ScanOptions(), deadline_s)
    out = _checked(out, sample, work, at)
    listing = list_entries(names, layout, os.fspath(labels) if labels else None, sample, tracks)
    _check_libraries(listing.entries)
    track_columns = TrackColumns(listing.entries)
    version = f"{SCHEMA_VERSION}.{ANSWERS_VERSION}"
    header = {"version": version, "options": asdict(work.options)}
    with (
        _folder(out.parent),
        Journal(out.with_name(f".{out.name}.scan.jsonl"), header | {"rescan": rescan}) as journal,
        _known_files(out, listing.entries, {"version": version, "measured_with": work.options.measured_with}) as known,
    ):
        if known and rescan and not journal.has_answers:
            known.clear()
        answers = Answers(listing.entries, work.options, journal, known)
        notes = _take_over(answers, journal, None if rescan else _previous(out), header)
        _say([*listing.notes, *notes], progress)
        _scan(answers, work, at, progress)
        if not answers.statuses["ok"]:
            journal.remove()
            raise UserError(_none_usable(names, answers))
        metadata = {_HEADER_KEY: json.dumps(header), _SAMPLE_KEY: listing.sample}
        rows = _write(out, answers, metadata, track_columns)
        journal.remove()
    _say(_summary(answers, rows, listing.sample), progress)
    return ClipIndex.open(out)


def _say(lines: Sequence[str], progress: bool) -> None:
    if progress and lines:
        print("\n".join(lines))


def _checked(out: AnyPath, sample: int | None, work: Scan, engine: Engine) -> Path:
    """Give the absolute path of the index. Raises UserError for whatever can be known to be wrong before the scan."""
    if "://" in os.fspath(out):
        raise UserError(f"{out}: the index is written to this machine; choose a path for --out")
    if not 0 < work.deadline_s < math.inf:
        raise UserError(f"deadline_s {work.deadline_s:g}: must be more than 0")
    engine.check()
    if importlib.util.find_spec("av") is None:
        raise UserError("no decoder: PyAV, which measures every video, is not installed; pip install 'av>=17,<19'")
    path = Path(os.path.abspath(out))
    _check_out(path, sample)
    return path


def _check_libraries(entries: Sequence[Entry]) -> None:
    """Raise UserError for Zarr stores where nothing can open them."""
    store = next((entry.uri for entry in entries if is_zarr(entry.uri)), None)
    if store and importlib.util.find_spec("zarr") is None:
        raise UserError(f"{shown(store)}: needs the library zarr: pip install 'video-jepa[zarr]'")


def _write(out: Path, answers: Answers, metadata: Mapping[bytes, str], tracks: TrackColumns) -> _IndexRows:
    """Write the index; give its rows, which have been counted. Raises UserError where it cannot be written."""
    rows = _IndexRows(answers, out.parent, tracks)
    try:
        told = {key: text.encode() for key, text in metadata.items()}
        write_index(out, rows, extra=rows.text_columns, metadata=told, tracks=tracks.tracks)
    except OSError as error:
        raise UserError(
            f"{shown(str(out))}: cannot be written ({error}); the scan is kept, and the same command continues from it"
        ) from None
    return rows


def _check_out(out: Path, sample: int | None) -> None:
    """Raise UserError where `out` cannot be written: before the scan, because that may take hours."""
    try:
        if out.is_dir() or (out.exists() and index_version(out) is None):
            raise UserError(
                f"{shown(str(out))}: exists and is not a clip index, so it is not replaced; choose another --out"
            )
        if sample and out.exists() and not index_metadata(out).get(_SAMPLE_KEY):
            raise UserError(f"{shown(str(out))}: is an index of all files; choose another --out for a sample of them")
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


def _known_files(out: Path, entries: Sequence[Entry], header: dict[str, Any]) -> KnownFiles | nullcontext[None]:
    """Open what is known of files of which a list names parts; None where none does."""
    return KnownFiles(out, header) if any(part_of(entry) for entry in entries) else nullcontext()


def _take_over(answers: Answers, journal: Journal, previous: ClipIndex | None, header: dict[str, Any]) -> list[str]:
    """Take over the answers of an interrupted scan and of the previous index, and look up what is known of the other
    files; give notes on it, one line each.
    """
    notes = []
    if journal.was_other:
        notes.append(f"{journal.path}: an interrupted scan with other options, or of another version, is not continued")
    is_alike = previous is not None and index_metadata(previous.path).get(_HEADER_KEY) == json.dumps(header).encode()
    if not (is_alike or journal.has_answers or answers.knows_files):
        if previous:
            notes.append(f"{previous.path}: was made with other options, or by another version; every file is scanned")
        return notes
    states = answers.states()
    answers.continue_scan(states)
    if answers.num_answered:
        counts = f"{answers.num_answered} of {answers.num_files} files"
        notes.append(f"{journal.path}: {counts} were scanned before the interruption")
    if previous and is_alike:
        notes.append(f"{previous.path}: {answers.take_over(previous, states)}")
    if num_known := answers.look_up(states):
        notes.append(f"files that were scanned for other parts of them: {num_known}; these are cut without a scan")
    return notes


def _scan(answers: Answers, work: Scan, engine: Engine, progress: bool) -> None:
    """Cut what is known, and scan what has no answer yet.

    An interruption loses nothing but the files that were being scanned.
    """
    missing, total = answers.missing(), answers.num_files
    bar = progress_bar(shown=progress, total=total, initial=total - len(missing), unit="file", desc="index")
    with bar:
        try:
            for _ in chain(answers.cut_known(), _scanned(answers, work, engine)):
                if bad := _some(answers.statuses, is_unusable):
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


def _scanned(answers: Answers, work: Scan, engine: Engine) -> Iterator[int]:
    """Scan the files without an answer; yield the number of each that has one now."""
    missing = answers.missing()
    if not missing:
        return  # an engine would start for nothing
    with closing(engine.work_off(enumerate(map(answers.first_entry, missing)), work)) as found:
        for place, scan in found:
            answers.add_file(missing[place], scan)
            yield missing[place]


class _IndexRows:
    """Yield the rows of the index, in the order of the entries, and count on the way."""

    def __init__(self, answers: Answers, folder: Path, tracks: TrackColumns) -> None:
        self._tracks = tracks
        self.num_rows = 0
        self.num_duplicates = 0
        self.num_images = self.num_videos = self.num_first_of_several = 0  # files
        self.jumping: set[tuple[str, int | None]] = set()
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
            is_first = self._answers.is_first(number)
            if content and short_hash(content) in repeated:
                file = columns["uri"], entry.offset, entry.length
                original = originals.setdefault(content, file)
                columns["duplicate_of"] = None if original == file else original[0]
                self.num_duplicates += is_first and original != file
            self.num_rows += len(rows)
            self.num_images += is_first and rows[0].get("decoder") == "image"
            self.num_videos += is_first and rows[0].get("decoder") not in (None, "image", "stack")
            self.num_first_of_several += is_first and str(rows[0].get("codec")).endswith(FIRST_OF_SEVERAL)
            if any(row.get("cut_at") == "clock" for row in rows):
                self.jumping.add((entry.uri, entry.offset))
            tracked = self._tracks.of(entry, rows)
            self._answers.statuses.update(row["status"] for row in tracked)
            self._answers.statuses.subtract(row["status"] for row in rows)
            yield from (row | columns for row in tracked)
        if not self._answers.statuses["ok"]:
            raise UserError(f"no film goes with its track: {counted(+self._answers.statuses)}")

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


def _summary(answers: Answers, rows: _IndexRows, sample: str) -> list[str]:
    lines = [f"this is a sample: {sample}; without --sample the same command scans the others"] if sample else []
    if rows.num_duplicates:
        lines.append(
            f"files with the content of another: {rows.num_duplicates}; they stay usable, the column "
            "duplicate_of names the first"
        )
    if rows.jumping:
        lines.append(
            f"files whose timestamps jump (several recordings in one, pauses): {len(rows.jumping)}; no clip crosses a "
            "jump, the column cut_at says clock"
        )
    if rows.num_first_of_several:
        lines.append(
            f"images with several frames or pages: {rows.num_first_of_several}; the first is used, the column codec "
            "says so"
        )
    statuses, num_files = answers.statuses, answers.num_files
    filtered, unusable = _some(statuses, is_filtered), _some(statuses, is_unusable)
    if rows.num_images and rows.num_videos:
        lines.append(f"images beside videos: {rows.num_images} of {num_files} files; each is a clip of one frame")
    clips = f", {rows.num_rows} clips" if rows.num_rows != num_files else ""
    line = f"{num_files} files{clips}: {statuses['ok']} ok"
    if filtered:
        line += f", {filtered.total()} left out ({counted(filtered)})"
    line += f", {unusable.total()} not usable" + (f": {counted(unusable)}" if unusable else "")
    return [*lines, line]


def _none_usable(names: Sequence[str], answers: Answers) -> str:
    start, num_files, counts = f"{first(names)}: none of its", answers.num_files, counted(answers.statuses)
    if any(is_filtered(status) for status in answers.statuses):
        return f"{start} {num_files} files gives a clip that is left: {counts}; loosen the filters"
    return f"{start} {num_files} files can be decoded: {counts}; give a folder with videos or images"


def _some(statuses: Counter[str], is_meant: Callable[[str], bool]) -> Counter[str]:
    return Counter({status: count for status, count in statuses.items() if is_meant(status)})
