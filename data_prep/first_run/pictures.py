"""Pictures in memory as files with a clip index, so that a run can learn from them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.first_run.new_folder import new_folder
from data_prep.scanning.build import build_index


def prepare(
    index_path: Path, pictures: Iterable[np.ndarray], columns: Mapping[str, Sequence[str]], progress: bool = True
) -> None:
    """Write pictures as PNG into the folder of `index_path`, and that index; nothing where it is there.

    pictures: uint8 [H, W, 3] each. columns: of the index, one value a picture.
    Raises UserError where the folder holds something else.
    """
    if index_path.is_file():
        return
    with new_folder(index_path.parent, f"exists without {index_path.name}") as partial:
        (partial / "pictures").mkdir()
        with (partial / "labels.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("file", *columns))
            for number, (picture, *values) in enumerate(zip(pictures, *columns.values(), strict=True)):
                Image.fromarray(picture).save(partial / "pictures" / f"{number:05d}.png")
                table.writerow((f"{number:05d}.png", *values))
        build_index(partial / "pictures", partial / index_path.name, labels=partial / "labels.csv", progress=progress)
