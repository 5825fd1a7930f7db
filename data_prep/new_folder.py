"""Data sets that are written on the first run: whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vjepa.errors import UserError


@contextmanager
def new_folder(folder: Path, otherwise: str) -> Iterator[Path]:
    """An empty folder beside `folder`, to fill; it takes the place of `folder` when all went well.

    Raises UserError for the working directory, and where there is something already: `otherwise` says what that is.
    """
    if not folder.name:
        raise UserError("data.train.index: the data set needs a folder of its own; write data/demo/index.parquet, say")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: {otherwise}; choose another data.train.index, nothing was changed")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if folder.exists():
        folder.rmdir()
    os.replace(partial, folder)
