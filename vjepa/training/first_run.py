"""The data sets that a config may ask for, written where it looks for them."""

from __future__ import annotations

from pathlib import Path

from data_prep.first_run import demo, pictures
from vjepa import config
from vjepa.probing.datasets_images import open_images


def write_data(data: config.Data, progress: bool) -> None:
    """Write the data set that `data.prepare` names, beside its index, unless it is there.

    Images have the splits that the probe knows.
    """
    path = Path(data.train.index)
    if data.prepare == "demo":
        demo.prepare(path, progress)
        return
    found = open_images(data.prepare)
    split = {int(i): name for name, rows in found.splits.items() for i in rows}
    columns = {"label": found.labels, "split": [split[i] for i in range(len(found.images))]}
    pictures.prepare(path, map(found.images.read, range(len(found.images))), columns, progress)
