"""Pictures in memory as files with a clip index, so that a run can learn from them."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vjepa.errors import UserError


def prepare(index_path: Path, pictures: Iterable[np.ndarray], columns: Mapping[str, Sequence[str]], progress: bool = True) -> None:
    """Write `pictures`, uint8 [H, W, 3] each, as PNG into the folder of `index_path`, and that index with `columns`; nothing where it is there.

    Raises UserError where the folder holds something else.
    """
    folder = index_path.parent
    if index_path.is_file():
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: exists without {index_path.name}; choose another data.train.index, nothing was changed")
    from PIL import Image

    from data_prep.index import build_index

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "pictures").mkdir(parents=True)
    with (partial / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", *columns))
        for number, (picture, *values) in enumerate(zip(pictures, *columns.values(), strict=True)):
            Image.fromarray(picture).save(partial / "pictures" / f"{number:05d}.png")
            table.writerow((f"{number:05d}.png", *values))
    build_index(partial / "pictures", partial / index_path.name, labels=partial / "labels.csv", progress=progress)
    if folder.exists():
        folder.rmdir()
    os.replace(partial, folder)
