"""Make films of the pictures that robomimic keeps as arrays in HDF5, with their tracks beside them, and an index."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from data_prep.child import Child, ChildLost
from data_prep.copying import output
from data_prep.copying.job import CopyOptions
from data_prep.engines import Engine
from data_prep.listing.places import file_facts, folder_files, suffix
from data_prep.listing.robot_files import HDF5_EXTENSIONS, Demonstration, control_fps, demonstrations
from data_prep.listing.tracks import TrackChoice
from data_prep.scanning.build import build_index
from vjepa.command import progress_bar
from vjepa.data.clip_index import ClipIndex
from vjepa.data.track_files import save_tracks
from vjepa.errors import UserError
from vjepa.files import whole_file

_MARKER: Final = ".films.json"
_LABELS: Final = "labels.csv"
_PROGRAM: Final = ("-m", "data_prep.copying.films")
DEADLINE_S: Final = 60.0  # without a sign of progress


@dataclass(frozen=True)
class _Film:
    """Name a film that is to be made: a camera in an episode of a file."""

    source: str
    demo: Demonstration
    camera: str
    fps: float
    name: str


def is_hdf5(place: Path) -> bool:
    """Tell whether a source is a file of HDF5, or a folder of some."""
    return bool(_files(place)) if place.is_dir() else suffix(str(place)) in HDF5_EXTENSIONS


def films_of_demonstrations(
    source: Path,
    out: Path,
    options: CopyOptions | None = None,
    choice: TrackChoice | None = None,
    workers: int | None = None,
    progress: bool = True,
    *,
    engine: str = "processes",
) -> ClipIndex:
    """Write a film of each camera in each episode of robomimic's files to the folder `out`, and their clip index.

    source: a file, or a folder of them. options: of the films; fps is the rate at which the pictures were taken, 0: as
    the file says. Label: the file; group: the episode; split: its mask. engine: see `data_prep.engines`. The same call
    goes on where it was. Raises UserError for files that are none of robomimic, or say no rate, and an `out` that holds
    other things.
    """
    options, choice, out = options or CopyOptions(), choice or TrackChoice(), Path(os.path.abspath(out))
    source, at = Path(os.path.abspath(source)), Engine(engine, workers)
    at.check()
    files = _files(source) if source.is_dir() else [str(source)]
    films = [film for place in files for film in _films(place, options, choice)]
    facts = {"sources": {place: asdict(file_facts(place)) for place in files}, **asdict(options), **_chosen(choice)}
    with output.claim_folder(out, _MARKER, facts):
        making = at.work_off(films, _Making(out, options))
        with closing(making):
            for _ in progress_bar(making, shown=progress, total=len(films), unit="film", desc="transcode"):
                pass
        _write_labels(out / _LABELS, films)
        return build_index(out, out / output.INDEX_NAME, out / _LABELS, workers, progress, engine=engine)


def _files(folder: Path) -> list[str]:
    return [
        str(folder / name) for name in folder_files(os.path.abspath(folder)).names if suffix(name) in HDF5_EXTENSIONS
    ]


def _chosen(choice: TrackChoice) -> dict[str, Any]:
    return {"state": list(choice.state), "action": list(choice.action), "rotations": dict(choice.rotations)}


def _films(place: str, options: CopyOptions, choice: TrackChoice) -> Iterator[_Film]:
    fps = options.fps or control_fps(place)
    if not fps:
        raise UserError(f"{place}: does not say at which rate its pictures were taken (control_freq); give --fps")
    stem = Path(place).stem
    for demo in demonstrations(place, choice):
        for camera in demo.cameras:
            yield _Film(place, demo, camera, fps, f"{stem}/{demo.name}-{camera}.mp4")


@dataclass(frozen=True)
class _Making:
    """Write films and their tracks to the folder `out`, where they are not there yet."""

    out: Path
    options: CopyOptions

    def new_child(self) -> Child:
        return Child(*_PROGRAM)

    def do(self, child: Child, task: _Film) -> Iterator[_Film]:
        path, demo = self.out / task.name, task.demo
        path.parent.mkdir(exist_ok=True)
        if not path.with_suffix(".npz").exists():
            save_tracks(path, demo.tracks.tracks, demo.tracks.row)
        if not path.exists():
            request = {"source": task.source, "demo": demo.name, "camera": task.camera, "fps": task.fps}
            try:
                for _ in child.ask(request | {"path": str(path), "options": asdict(self.options)}, DEADLINE_S):
                    pass
            except ChildLost as lost:
                why = f"{lost.how}{f': {lost}' if str(lost) else ''}"
                raise UserError(f"{path}: its film cannot be made ({why})") from None
        yield task

    def lost(self, task: _Film, reason: str) -> Iterator[_Film]:
        raise UserError(f"{self.out / task.name}: the machine that made it was lost ({reason}); give the command again")


def _write_labels(path: Path, films: Sequence[_Film]) -> None:
    with whole_file(path) as partial, partial.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "split", "group", "camera"])
        for film in films:
            stem = Path(film.source).stem
            table.writerow([film.name, stem, film.demo.split or "", f"{stem}/{film.demo.name}", film.camera])
