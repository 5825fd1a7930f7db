"""Make training-ready copies of the clips of an index.

Copies are upright, with square pixels and even sides, H.264 in MP4 with a short GOP and no B-frames, without sound;
stills are JPEG or PNG, stacks arrays (.npy). Films with a companion, and these, stay where they are: their clock joins
them. FOLDER/index.parquet is their clip index, measured on the copies, with the labels of the source.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

from data_prep.child import Child, ChildLost
from data_prep.copying import output
from data_prep.copying.job import CopyJob, CopyOptions
from data_prep.engines import Engine
from data_prep.listing.places import bytes_at_hand
from data_prep.scanning.answers import counted
from data_prep.scanning.journal import Journal
from vjepa.command import progress_bar
from vjepa.config.row_filter import Where
from vjepa.data.clip_index import SOURCE, ClipIndex, IndexRow, resolve, write_index
from vjepa.data.tracks import Tracks
from vjepa.errors import UserError
from vjepa.files import remove_partials

DEADLINE_S: Final = 60.0
# the first frame of a clip deep in a file, and the scan of a long copy, take their time
_DEADLINE_S_PER_BYTE: Final = 0.5e-6
_PROGRAM: Final = ("-m", "data_prep.copying.encode")
_MARKER: Final = ".transcode.json"
_JOURNAL: Final = ".transcode.jsonl"
_KEPT: Final = ("label", "label_id", "split", "group")
_JPEG: Final = frozenset({".jpg", ".jpeg"})
_ROWS_PER_FOLDER: Final = 1000
_STEM_CHARS: Final = 60


def transcode(
    index: str | Path | ClipIndex,
    out: str | Path,
    options: CopyOptions | None = None,
    where: Where | None = None,
    workers: int | None = None,
    deadline_s: float = DEADLINE_S,
    progress: bool = True,
    *,
    engine: str = "processes",
) -> ClipIndex:
    """Write a copy of every usable row of `index` that matches `where` to the folder `out`, and their clip index.

    where: wanted values by column. workers: files at a time (None: one for each core). deadline_s: how long a file may
    take for no more than a frame before its process is killed, plus 0.5 s for each MB. engine: see `data_prep.engines`.
    The same call goes on where it was. Raises UserError for settings out of range, an `out` that holds other things, no
    usable row, or where nothing could be copied.
    """
    index = index if isinstance(index, ClipIndex) else ClipIndex.open(index)
    options, where, out = options or CopyOptions(), where or {}, Path(os.path.abspath(out))
    at = Engine(engine, workers)
    at.check()
    _check(options)
    if options.fps and index.tracks != Tracks():
        raise UserError(f"--fps {options.fps:g}: {index.path} has a state or an action of each frame; leave --fps out")
    chosen, unusable = output.choose_rows(index, where)
    paired = output.paired(index, chosen)
    rows = [i for i in chosen.tolist() if i not in paired]
    facts = output.index_facts(index, where) | asdict(options)
    with output.claim_folder(out, _MARKER, facts), Journal(out / _JOURNAL, facts) as journal:
        places = {line.answer["row"]: line.place for line in journal.answers()}
        wanted = [i for i in rows if i not in places or not (out / copy_name(index.row(i))).is_file()]
        done = len(rows) - len(wanted)
        with (
            progress_bar(shown=progress, total=len(rows), initial=done, unit="clip", desc="transcode") as bar,
            closing(at.work_off(_jobs(index, wanted, out, options), _Copying(deadline_s))) as copying,
        ):
            failed = _take_in(copying, index, journal, places, bar)
        copied = {i: places[i] for i in rows if i not in failed}
        if not copied and not paired:
            raise UserError(
                f"{index.path}: none of its {len(rows)} clips could be copied: {counted(Counter(failed.values()))}"
            )
        records = _index_rows(index, journal, copied, paired)
        write_index(out / output.INDEX_NAME, records, output.extra_columns(index), tracks=index.tracks)
    if progress:
        lost = [(index.row(i).uri, failed[i]) for i in sorted(failed)]
        told = f"{out / output.INDEX_NAME}: {len(copied)} clips copied"
        if paired:
            told += f"; {len(paired)} stay as they are, where they are: films with a companion, and these"
        print(output.closing_lines(index, told, "not copied", lost, unusable))
    return ClipIndex.open(out / output.INDEX_NAME)


def _take_in(
    copying: Iterable[_Copied], index: ClipIndex, journal: Journal, places: dict[int, int], bar: Any
) -> dict[int, str]:
    """Note in the journal what was copied, and its place there in `places`; give why the other rows were not."""
    failed: dict[int, str] = {}
    for row, columns, reason in copying:
        if columns is None:
            failed[row] = reason
            bar.set_postfix(failed=len(failed))
        else:
            places[row] = journal.append((copy_name(index.row(row)),), {"row": row, **columns})
        bar.update()
    return failed


def _check(options: CopyOptions) -> None:
    """Raise UserError for what x264 or the arithmetic cannot do."""
    ranges = {"short_side_px": (2, 8192), "fps": (0, 1000), "gop_frames": (1, 10_000), "crf": (0, 51)}
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a number from {low} to {high}")
    if options.short_side_px % 2:
        raise UserError(
            f"--short-side-px {options.short_side_px}: H.264 in yuv420p has even sides; give an even number"
        )


def _jobs(index: ClipIndex, rows: Iterable[int], out: Path, options: CopyOptions) -> Iterator[CopyJob]:
    """Make one job of neighbouring rows of one file, so that it is decoded once."""
    for _, group in groupby(map(index.row, rows), key=lambda row: (row.uri, row.offset, row.length)):
        same = list(group)
        paths = [out / copy_name(row) for row in same]
        for folder in {path.parent for path in paths}:
            folder.mkdir(exist_ok=True)
        yield CopyJob(same, [str(path) for path in paths], options)


def copy_name(row: IndexRow) -> str:
    """Name the copy of a row in its folder: by its number, and the letters and digits of its name alone."""
    name = row.uri.rsplit("/", 1)[-1]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name.rsplit(".", 1)[0])[:_STEM_CHARS]
    of_stills = ".jpg" if os.path.splitext(name)[1].lower() in _JPEG else ".png"
    suffix = {"image": of_stills, "stack": ".npy"}.get(row.decoder, ".mp4")
    return f"{row.clip_id // _ROWS_PER_FOLDER:06d}/{row.clip_id:09d}-{stem}{suffix}"


class _Copied(NamedTuple):
    """Tell what became of a row. columns: of the index of the copies; None where `reason` says why there is no copy."""

    row: int
    columns: dict[str, Any] | None
    reason: str


@dataclass(frozen=True)
class _Copying:
    """Make the copies of a job, and answer for each of its rows, whatever becomes of the child."""

    deadline_s: float

    def new_child(self) -> Child:
        return Child(*_PROGRAM)

    def do(self, child: Child, task: CopyJob) -> Iterator[_Copied]:
        missing = {row.clip_id: Path(path) for row, path in zip(task.rows, task.paths, strict=True)}
        deadline_s = self.deadline_s + bytes_at_hand(task.rows[0].uri, task.rows[0].length) * _DEADLINE_S_PER_BYTE
        try:
            for message in child.ask(task.to_json(), deadline_s):
                if "row" in message:
                    del missing[message["row"]]
                    yield _Copied(message["row"], message.get("columns"), message.get("failed", ""))
        except ChildLost as lost:
            reason = {
                "late": f"no frame within {deadline_s:.0f} s: stopped",
                "crashed": "the decoder or encoder crashed",
                "failed": f"encoding failed: {lost}",
            }[lost.how]
            for row, path in missing.items():
                remove_partials(path.parent, path.name)
                yield _Copied(row, None, reason)

    def lost(self, task: CopyJob, reason: str) -> Iterator[_Copied]:
        for row in task.rows:
            yield _Copied(row.clip_id, None, f"the machine that copied it was lost ({reason})")


def _index_rows(
    index: ClipIndex, journal: Journal, places: Mapping[int, int], paired: Collection[int]
) -> Iterator[dict[str, Any]]:
    """Join what the scan of each copy found and what the index knew of its source beside measurements.

    Rows that are `paired` stay as they are.
    """
    originals: dict[str, str] = {}
    extra, folder = output.extra_columns(index), os.path.abspath(index.path.parent)
    for i, record in enumerate(index.records()):
        if i in paired:
            uri, first = resolve(record["uri"], folder), record["duplicate_of"]
            yield record | {"uri": uri, "duplicate_of": first and resolve(first, folder), SOURCE: uri}
        elif i in places:
            row, columns = index.row(i), journal.read(places[i])
            kept = {name: record.get(name) for name in (*_KEPT, *output.TRACKS, *extra)}
            kept[SOURCE] = record.get(SOURCE) or row.uri
            name = copy_name(row)
            original = originals.setdefault(columns["content_hash"], name)
            del columns["row"]
            yield columns | kept | {"uri": name, "duplicate_of": None if original == name else original}
