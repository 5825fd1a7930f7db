"""Data sets that are written on the first run: whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vjepa.errors import UserError
from vjepa.files import whole_folder


@contextmanager
def new_folder(folder: Path, otherwise: str) -> Iterator[Path]:
    """Give an empty folder beside `folder`, to fill; it takes the place of `folder` when all went well.

    Raises UserError for the working directory, and where there is something already: `otherwise` says what that is.
    """
    if not folder.name:
        raise UserError("data.train.index: the data set needs a folder of its own; write data/demo/index.parquet, say")
    _check_free(folder, otherwise)
    with whole_folder(folder) as partial:
        yield partial
        _check_free(folder, otherwise)  # another run may have been quicker


def _check_free(folder: Path, otherwise: str) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: {otherwise}; choose another data.train.index, nothing was changed")
