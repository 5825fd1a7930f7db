"""The data sets that a config may ask for, written where it looks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from data_prep.first_run import pictures, video_set
from data_prep.first_run.demo import Demo
from data_prep.first_run.worlds.bricks import Bricks
from data_prep.first_run.worlds.camera import Camera
from data_prep.first_run.worlds.paddles import Paddles
from data_prep.first_run.worlds.rooms import Rooms
from data_prep.first_run.worlds.shapes import Shapes
from vjepa import config
from vjepa.probing.datasets_images import open_images

VIDEO_SETS: Final = {videos.name: videos for videos in (Demo, Paddles, Bricks, Shapes, Camera, Rooms)}


def write_data(data: config.Data, progress: bool) -> None:
    """Write the data set that `data.prepare` names, beside its index, unless it is there.

    Images have the splits that the probe knows.
    """
    path = Path(*data.train.paths)  # one, which `Data` sees to
    if data.prepare in VIDEO_SETS:
        video_set.prepare(path, VIDEO_SETS[data.prepare](), progress)
        return
    found = open_images(data.prepare)
    split = {int(i): name for name, rows in found.splits.items() for i in rows}
    columns = {"label": found.labels, "split": [split[i] for i in range(len(found.images))]}
    pictures.prepare(path, map(found.images.read, range(len(found.images))), columns, progress)
