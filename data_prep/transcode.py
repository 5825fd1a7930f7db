"""Make training-ready copies of the clips of an index: `python -m data_prep.transcode x.parquet --out FOLDER`.

Copies are upright, with square pixels and even sides, H.264 in MP4 with a short GOP and no B-frames, without sound;
stills are JPEG or PNG. FOLDER/index.parquet is their clip index, measured on the copies, with the labels of the source.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread, Timer
from typing import Any, Final

from data_prep.encode import CopyOptions, Job
from data_prep.journal import Journal
from data_prep.output import (
    INDEX_NAME,
    SOURCE,
    Where,
    choose_rows,
    claim_folder,
    counts,
    extra_columns,
    first_of,
    index_facts,
    parse_where,
)
from vjepa.command import progress_bar, run
from vjepa.data.clip_index import ClipIndex, IndexRow, write_index
from vjepa.errors import UserError

DEADLINE_S: Final = 60.0
_DEADLINE_S_PER_BYTE: Final = (
    0.5e-6  # the first frame of a clip deep in a file, and the scan of a long copy, take their time
)
_CHILD: Final = [sys.executable, "-m", "data_prep.encode"]
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
) -> ClipIndex:
    """Write a copy of every usable row of `index` that matches `where` to the folder `out`, and their clip index beside
    them.

    where: wanted values by column. workers: files at a time (None: one for each core). deadline_s: how long a file may
    take for no more than a frame before its process is killed, plus 0.5 s for each MB. The same call goes on where it
    was. Raises UserError for settings out of range, an `out` that holds other things, no usable row, or where nothing
    could be copied.
    """
    index = index if isinstance(index, ClipIndex) else ClipIndex.open(index)
    options, where, out = options or CopyOptions(), where or {}, Path(os.path.abspath(out))
    _check(options, workers)
    rows, unusable = choose_rows(index, where)
    facts = index_facts(index, where) | asdict(options)
    failed: dict[int, str] = {}
    with claim_folder(out, _MARKER, facts), Journal(out / _JOURNAL, facts) as journal:
        places = {answer.rows[0]["row"]: answer.place for answer in journal.answers()}
        wanted = [i for i in rows.tolist() if i not in places or not (out / copy_name(index.row(i))).is_file()]
        answers = _encode_all(_jobs(index, wanted, out, options), workers or os.cpu_count() or 1, deadline_s)
        with progress_bar(
            shown=progress, total=len(rows), initial=len(rows) - len(wanted), unit="clip", desc="transcode"
        ) as bar:
            for row, columns, reason in answers:
                if columns is None:
                    failed[row] = reason
                    bar.set_postfix(failed=len(failed))
                else:
                    places[row] = journal.append(
                        (copy_name(index.row(row)), None, None, None, None), [{"row": row, **columns}]
                    )
                bar.update()
        num_copies = len(rows) - len(failed)
        if not num_copies:
            raise UserError(
                f"{index.path}: none of its {len(rows)} clips could be copied: {counts(Counter(failed.values()))}"
            )
        copied = {i: places[i] for i in rows.tolist() if i not in failed}
        write_index(out / INDEX_NAME, _index_rows(index, journal, copied), extra_columns(index))
    if progress:
        print("\n".join(_closing(index, num_copies, failed, unusable, out)))
    return ClipIndex.open(out / INDEX_NAME)


def _check(options: CopyOptions, workers: int | None) -> None:
    """Raises UserError for what x264 or the arithmetic cannot do."""
    ranges = {"short_side_px": (2, 8192), "fps": (0, 1000), "gop_frames": (1, 10_000), "crf": (0, 51)}
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a number from {low} to {high}")
    if options.short_side_px % 2:
        raise UserError(
            f"--short-side-px {options.short_side_px}: H.264 in yuv420p has even sides; give an even number"
        )
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers}: at least 1 is needed")


def _jobs(index: ClipIndex, rows: Iterable[int], out: Path, options: CopyOptions) -> Iterator[Job]:
    """Neighbouring rows of one file make one job, so that it is decoded once."""
    for _, group in groupby(map(index.row, rows), key=lambda row: (row.uri, row.offset, row.length)):
        same = list(group)
        paths = [out / copy_name(row) for row in same]
        for folder in {path.parent for path in paths}:
            folder.mkdir(exist_ok=True)
        yield Job(same, [str(path) for path in paths], options)


def copy_name(row: IndexRow) -> str:
    """Where the copy of a row lies in the folder: made of its number and the letters and digits of its name alone."""
    name = row.uri.rsplit("/", 1)[-1]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", name.rsplit(".", 1)[0])[:_STEM_CHARS]
    suffix = ".mp4" if row.decoder != "image" else ".jpg" if os.path.splitext(name)[1].lower() in _JPEG else ".png"
    return f"{row.clip_id // _ROWS_PER_FOLDER:06d}/{row.clip_id:09d}-{stem}{suffix}"


def _encode_all(
    jobs: Iterator[Job], workers: int, deadline_s: float
) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """(row, columns of its copy, "") or (row, None, reason) of every row, as they come."""
    answers: SimpleQueue[Any] = SimpleQueue()
    children = [_Child(deadline_s) for _ in range(workers)]
    lock = Lock()

    def next_job() -> Job | None:
        with lock:
            return next(jobs, None)

    def work(child: _Child) -> None:
        try:
            while job := next_job():
                for answer in child.do(job):
                    answers.put(answer)
            answers.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of the caller
            answers.put(error)

    threads = [Thread(target=work, args=(child,), daemon=True) for child in children]
    try:
        for thread in threads:
            thread.start()
        at_work = workers
        while at_work:
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            if answer is None:
                at_work -= 1
            else:
                yield answer
    finally:  # also when the caller was interrupted
        with lock:
            jobs.close()  # type: ignore[attr-defined]
        for child, thread in zip(children, threads, strict=True):
            while thread.is_alive():
                child.end()
                thread.join(0.1)
            child.end()


class _Child:
    """A program that encodes; one that is late or dies is replaced by the next job."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[str] | None = None
        self._late = False

    def do(self, job: Job) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
        """An answer for each row of the job, whatever becomes of the child."""
        missing = {row.clip_id: path for row, path in zip(job.rows, job.paths, strict=True)}
        allowed_s = self._deadline_s + _size_bytes(job.rows[0]) * _DEADLINE_S_PER_BYTE
        pid = self._start()
        for answer in self._ask(job, allowed_s):
            row = answer["row"]
            del missing[row]
            yield row, answer.get("columns"), answer.get("failed", "")
        if missing:
            reason = f"no frame within {allowed_s:.0f} s: stopped" if self._late else "the decoder or encoder crashed"
            self.end()
            for row, path in missing.items():
                Path(path).with_name(f".{Path(path).name}.{pid}.tmp").unlink(missing_ok=True)
                yield row, None, reason

    def _start(self) -> int:
        if self._process is None:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(place or "." for place in sys.path)}
            self._process = subprocess.Popen(
                _CHILD,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            self._late = False
        return self._process.pid

    def _ask(self, job: Job, allowed_s: float) -> Iterator[dict[str, Any]]:
        """Answers up to the end of the job or of the child. Every line of it puts the deadline off."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("a child without pipes")
        killer = self._killer(process, allowed_s)
        try:
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
            for line in process.stdout:
                killer.cancel()
                answer = json.loads(line)
                if "end" in answer:
                    return
                if "row" in answer:
                    yield answer
                killer = self._killer(process, allowed_s)
        except BrokenPipeError:
            return
        finally:
            killer.cancel()

    def _killer(self, process: subprocess.Popen[str], allowed_s: float) -> Timer:
        def kill() -> None:
            self._late = True
            process.kill()

        killer = Timer(allowed_s, kill)
        killer.daemon = True
        killer.start()
        return killer

    def end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


def _size_bytes(row: IndexRow) -> int:
    if row.length is not None:
        return row.length
    try:
        return os.stat(row.uri).st_size
    except (OSError, ValueError):
        return 0  # remote, or missing: the child will say so


def _index_rows(index: ClipIndex, journal: Journal, places: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    """What the scan of each copy found, with what the index knew of its source beside the measurements."""
    originals: dict[str, str] = {}
    extra = extra_columns(index)
    for i, record in enumerate(index.records()):
        if i in places:
            row, columns = index.row(i), journal.read(places[i])[0]
            kept = {name: record.get(name) for name in (*_KEPT, *extra)} | {SOURCE: record.get(SOURCE) or row.uri}
            name = copy_name(row)
            original = originals.setdefault(columns["content_hash"], name)
            del columns["row"]
            yield columns | kept | {"uri": name, "duplicate_of": None if original == name else original}


def _closing(
    index: ClipIndex, num_copies: int, failed: Mapping[int, str], unusable: Counter[str], out: Path
) -> list[str]:
    lines = [f"{out / INDEX_NAME}: {num_copies} clips copied"]
    if failed:
        lines.append(
            f"not copied: {len(failed)}: {counts(Counter(failed.values()))} "
            f"({first_of([index.row(i).uri for i in sorted(failed)])})"
        )
    if unusable:
        lines.append(f"not usable in {index.path}: {sum(unusable.values())}: {counts(unusable)}")
    return lines


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.transcode", description="Make training-ready copies of the clips of an index."
    )
    default = CopyOptions()
    parser.add_argument("index", type=Path, metavar="INDEX", help="clip index of the sources (x.parquet)")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="new or empty folder, or one that this command was at work in",
    )
    parser.add_argument(
        "--short-side-px",
        type=int,
        default=default.short_side_px,
        metavar="N",
        help="at most; no copy is enlarged (default: %(default)s)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        default=default.fps,
        metavar="N",
        help="constant frame rate (default: 0, the times of the source)",
    )
    parser.add_argument(
        "--gop-frames",
        type=int,
        default=default.gop_frames,
        metavar="N",
        help="from one keyframe to the next (default: %(default)s)",
    )
    parser.add_argument(
        "--crf",
        type=float,
        default=default.crf,
        metavar="N",
        help="quality of x264, 0 best to 51 smallest (default: %(default)s)",
    )
    parser.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN=VALUE",
        help="rows that are meant; of several values any",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="files encoded at a time (default: the number of cores)"
    )
    given = parser.parse_args(arguments)
    options = CopyOptions(given.short_side_px, given.fps, given.gop_frames, given.crf)
    transcode(given.index, given.out, options, parse_where(given.where), given.workers)
    return 0


if __name__ == "__main__":
    run(main)
