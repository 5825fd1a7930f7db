"""Write the page of a run beside its files, or of several into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vjepa.errors import UserError
from vjepa.files import write_text
from vjepa.page.document import check_page
from vjepa.reporting import finetuned, run_page, tables, worlds
from vjepa.reporting.record import RunRecord
from vjepa.run_folder import RunFolder


def write_page(run: RunFolder) -> None:
    """Write report.html of a run that this process has just ended."""
    write_text(run.page, run_page.page([replace(RunRecord.read(run), is_running=False)]))


def report(runs: Sequence[Path], out: Path | None) -> str:
    """Write a page for each run, or with `out` one with all of them overlaid; give what to print. Raises UserError."""
    if out is not None:
        check_page("--out", out)
    records = [RunRecord.read(RunFolder(path)) for path in runs]
    if out is not None:
        write_text(out, run_page.page(records))
        return "\n".join([*_tables(records), f"-> {out}"])
    written = []
    for one in records:
        try:
            write_text(one.folder.page, run_page.page([one]))
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{one.folder.page}: cannot be written ({reason}); give --out") from None
        written.append(f"-> {one.folder.page}")
    return "\n".join([*_tables(records), *written])


def _tables(records: Sequence[RunRecord]) -> list[str]:
    """Give the closing table of each run that has ended, and of the others how they do."""
    told = []
    for one in records:
        if "kinds" in one.summary:
            told.append(finetuned.closing_table(one.summary))
        elif "foresight" in one.summary:
            told.append(worlds.closing_table(one.summary))
        elif one.summary:
            told.append(tables.closing_table(tables.read_summary(one.folder)))
        else:
            told.append(f"{one.folder.path}: {one.headline()}")
    return told
