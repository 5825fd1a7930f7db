"""What the commands that write a folder share: which rows are meant, and a folder that holds nothing else."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.listing.places import first
from data_prep.rows import matching
from data_prep.scanning.answers import counted
from vjepa.config.row_filter import Where
from vjepa.data.clip_index import COMPANION, SCHEMA, SOURCE, ClipIndex
from vjepa.errors import UserError
from vjepa.files import remove_partials, write_text

INDEX_NAME: Final = "index.parquet"
TRACKS: Final = ("action", "state", "track_times_s")  # columns that go with the frames of a copy
_BLOCK_BYTES: Final = 1 << 20


def choose_rows(index: ClipIndex, where: Where) -> tuple[np.ndarray, Counter[str]]:
    """Choose the usable rows that match `where`: int64 [n], n >= 1; and count why others that match are not usable.

    Raises UserError for an unknown column, or where no usable row matches.
    """
    rows, statuses = index.select(where), index.arrow("status").fill_null("no status")
    bad = statuses.filter(pa.array(matching(index, where) & np.asarray(pc.not_equal(statuses, "ok"))))
    return rows, Counter(bad.to_pylist())


def paired(index: ClipIndex, rows: np.ndarray) -> set[int]:
    """Number the rows among `rows` that have a companion, and the rows of these companions, wherever they are."""
    if COMPANION not in index.names:
        return set()
    found = [row for row in map(index.row, rows.tolist()) if row.companion]
    return {part.clip_id for row in found for part in (row, row.companion) if part}


def extra_columns(index: ClipIndex) -> list[str]:
    """Name the text columns of an index that is made of `index`, beside those of the schema."""
    return sorted({name for name in index.names if name not in SCHEMA.names} | {SOURCE})


@contextmanager
def claim_folder(out: Path, name: str, facts: Mapping[str, Any]) -> Iterator[None]:
    """Make `out`, and note in its hidden file `name` what it is made from, so that the same command may go on in it.

    Nobody else may write there meanwhile. Raises UserError where somebody does, where it holds anything else, or was
    made from other facts.
    """
    marker = out / name
    try:
        out.mkdir(parents=True, exist_ok=True)
        known = json.loads(marker.read_text()) if marker.is_file() else None
        others = sorted(os.listdir(out)) if known is None else []
        if others:
            raise UserError(
                f"{out}: holds other things already ({first(others)}); choose a new or empty folder for --out"
            )
        if known is None:
            write_text(marker, json.dumps(facts))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: cannot be used as a folder for output: {error}; choose another --out") from None
    if known not in (None, facts):
        was = ", ".join(
            f"{key} {known.get(key)}, now {value}" for key, value in facts.items() if known.get(key) != value
        )
        raise UserError(f"{out}: was made otherwise ({was}); choose another --out, or remove the folder")
    with marker.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is writing there; wait for it, or choose another --out") from None
        for folder in (out, *filter(Path.is_dir, out.iterdir())):
            remove_partials(folder)  # of a run that was killed
        yield


def index_facts(index: ClipIndex, where: Where) -> dict[str, Any]:
    """Note what decides which rows are meant, whatever the place of the index."""
    digest = hashlib.sha256()
    with index.path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return {"index of sha256": digest.hexdigest(), "where": dict(where)}


def closing_lines(
    index: ClipIndex, copied: str, word: str, failed: Sequence[tuple[str, str]], unusable: Counter[str]
) -> str:
    """Say what a command copied, and what it did not.

    failed: (uri, reason) of what was not copied, as `word` puts it.
    """
    lines = [copied]
    if failed:
        reasons = counted(Counter(reason for _, reason in failed))
        lines.append(f"{word}: {len(failed)}: {reasons} ({first([uri for uri, _ in failed])})")
    if unusable:
        lines.append(f"not usable in {index.path}: {unusable.total()}: {counted(unusable)}")
    return "\n".join(lines)
