"""Videos that are drawn on the first run, as files with a clip index; afterwards they are verified by hash."""

from __future__ import annotations

import csv
import json
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from data_prep.first_run.new_folder import new_folder
from data_prep.first_run.video_file import VideoSet, write_row
from data_prep.scanning.build import build_index
from vjepa import files
from vjepa.command import progress_bar
from vjepa.data.clip_index import SCHEMA_VERSION, index_version
from vjepa.errors import UserError

MANIFEST: Final = "manifest.json"


def prepare(index_path: Path, videos: VideoSet, progress: bool = True) -> None:
    """Write videos into the folder of `index_path`, and that index, once; afterwards verify the files by hash.

    Raises UserError where the folder holds something else, or a file was changed.
    """
    folder = index_path.parent
    if (folder / MANIFEST).is_file():
        _verify(folder, index_path, videos)
        return
    with new_folder(folder, f"exists and is not the {videos.name} data set") as partial:
        for name in ("videos", "things"):
            (partial / name).mkdir()
        hashes = _write_videos(partial, videos, progress)
        build_index(partial / "videos", partial / index_path.name, labels=partial / "labels.csv", progress=progress)
        (partial / MANIFEST).write_text(json.dumps({"recipe": videos.recipe, "sha256": hashes}, indent=0))


def _write_videos(folder: Path, videos: VideoSet, progress: bool) -> dict[str, str]:
    """Write all videos and labels.csv, and give the sha256 of each video, and of its tracks, by name."""
    todo = videos.videos()
    paths = [folder / "videos" / f"{number:05d}.mp4" for number in range(len(todo))]
    # not of the fork server, which would then lack the PyTorch that the loader's processes are forked with
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        written = pool.map(write_row, repeat(videos), todo, paths, chunksize=16)
        told = {"total": len(todo), "desc": f"{videos.name} videos", "unit": "file"}
        rows = list(progress_bar(written, shown=progress, **told))
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ("file", *dict.fromkeys(name for row in rows for name in row)))
        table.writeheader()
        table.writerows({"file": path.name, **row} for path, row in zip(paths, rows, strict=True))
    written_files = [path for name in ("videos", "things") for path in sorted((folder / name).iterdir())]
    return {str(path.relative_to(folder)): files.sha256(path) for path in written_files}


def _verify(folder: Path, index_path: Path, videos: VideoSet) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    remedy = f"delete the folder {folder} to have the {videos.name} data set written anew"
    if manifest["recipe"] != videos.recipe or index_version(index_path) != SCHEMA_VERSION:
        raise UserError(
            f"{folder}: holds other data than {videos.name}, or those of another version of vjepa; {remedy}"
        )
    for name, sha256 in manifest["sha256"].items():
        path = folder / name
        if files.sha256(path) != sha256:
            raise UserError(f"{path}: is not the file that was written, or is gone; {remedy}")
