"""Pictures in memory as files with a clip index, so that a run can learn from them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.new_folder import new_folder


def prepare(
    index_path: Path, pictures: Iterable[np.ndarray], columns: Mapping[str, Sequence[str]], progress: bool = True
) -> None:
    """Write `pictures`, uint8 [H, W, 3] each, as PNG into the folder of `index_path`, and that index with `columns`;
    nothing where it is there.

    Raises UserError where the folder holds something else.
    """
    if index_path.is_file():
        return
    from PIL import Image

    from data_prep.index import build_index

    with new_folder(index_path.parent, f"exists without {index_path.name}") as partial:
        (partial / "pictures").mkdir()
        with (partial / "labels.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("file", *columns))
            for number, (picture, *values) in enumerate(zip(pictures, *columns.values(), strict=True)):
                Image.fromarray(picture).save(partial / "pictures" / f"{number:05d}.png")
                table.writerow((f"{number:05d}.png", *values))
        build_index(partial / "pictures", partial / index_path.name, labels=partial / "labels.csv", progress=progress)
