"""LeRobot data sets, v2.0, v2.1 and v3.0, as their folders are published: a row is an episode of one camera.

The numbers of frame k are the state at it, and the action that was commanded there. In v3.0 a film holds many episodes,
each with its times there, which differ by camera.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.listing import places
from data_prep.listing.entry import Entry
from data_prep.listing.places import join, open_bytes, shown
from data_prep.listing.tracks import FileTracks, Numbers, TrackChoice, film_tracks, side_by_side
from vjepa.data.media import DecodeError
from vjepa.errors import UserError

LEROBOT_FILE: Final = "meta/info.json"
_STATE, _ACTION = "observation.state", "action"
_VERSIONS: Final = ("v2.0", "v2.1", "v3.0")
_REMEDY: Final = "give the folder as LeRobot publishes it, or --layout flat for its films alone"


def list_lerobot(root: str, choice: TrackChoice) -> tuple[list[Entry], str]:
    """List the episodes of every camera of a data set, episode by episode, and say what was read.

    Label: the task; group: the episode; split: as the data set says; column camera. Raises UserError for another
    version, features that it does not have, and where no camera has films.
    """
    _table.cache_clear()  # files may have changed since another listing
    info = _info(root)
    version, fps, features = info["codebase_version"], float(info["fps"]), info["features"]
    if version not in _VERSIONS:
        known = ", ".join(_VERSIONS)
        raise UserError(f"{shown(root)}: LeRobot {version}, of which {known} are read; {_REMEDY}")
    cameras = [name for name, feature in features.items() if feature["dtype"] == "video"]
    if not cameras:
        raise UserError(f"{shown(root)}: no feature of it is a video (images in Parquet are not read); {_REMEDY}")
    numbers = _features(root, features, choice)
    read = _episodes_v3 if version == "v3.0" else _episodes_v2
    entries = []
    for episode in read(root, info, cameras):
        number, tasks = int(episode["episode_index"]), [str(task) for task in episode.get("tasks") or []]
        about = {
            "label": " / ".join(tasks) or None, "group": f"{places.base_name(root)}/{number}",
            "split": _split(info.get("splits") or {}, number), "episode": str(number),
        }  # fmt: skip
        for camera in cameras:
            film, start_s, end_s = episode["films"][camera]
            place = join(root, film)
            tracks = partial(
                _read, join(root, episode["data"]), number, int(episode["length"]), start_s, numbers, choice
            )
            # the frames that are nearest, whatever the rounding
            begin_s, stop_s = (None if time_s is None else max(0.0, time_s - 0.5 / fps) for time_s in (start_s, end_s))
            columns = {**about, "camera": camera}
            entries.append(Entry(place, film, start_s=begin_s, end_s=stop_s, columns=columns, tracks=tracks))
    return entries, f"{shown(root)}: read as LeRobot {version}, {len(entries)} episodes of {len(cameras)} cameras"


def _info(root: str) -> dict[str, Any]:
    place = join(root, LEROBOT_FILE)
    try:
        info = json.loads(places.read_text(place))
        if not isinstance(info["features"], dict):
            raise TypeError("features is no object")
        return {"codebase_version": "of an unknown version", **info, "fps": float(info["fps"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shown(place)}: is not that of a LeRobot data set ({error}); {_REMEDY}") from None


def _features(root: str, features: Mapping[str, Any], choice: TrackChoice) -> dict[str, dict[str, tuple[str, ...]]]:
    """Choose the features that are state and action: of each the names of its numbers."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for what, chosen, usual in (("state", choice.state, _STATE), ("action", choice.action, _ACTION)):
        names = chosen or tuple(name for name in (usual,) if name in features)
        for name in names:
            if name not in features or not str(features[name]["dtype"]).startswith(("float", "int", "bool")):
                some = ", ".join(key for key in features if str(features[key]["dtype"]).startswith("float"))
                raise UserError(f"{shown(root)}: no feature {name} of numbers for the {what}; it has {some}")
        found[what] = {name: _names(features[name].get("names")) for name in names}
    return found


def _names(names: Any) -> tuple[str, ...]:
    """Take names of the numbers of a feature, which may stand below the kind of axis."""
    if isinstance(names, dict):
        names = [name for some in names.values() if isinstance(some, list) for name in some]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _split(splits: Mapping[str, Any], episode: int) -> str | None:
    """Find the split of an episode by ranges such as 0:40."""
    for name, span in splits.items():
        start, _, end = str(span).partition(":")
        if start.isdigit() and end.isdigit() and int(start) <= episode < int(end):
            return name
    return None


def _episodes_v2(root: str, info: Mapping[str, Any], cameras: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read episodes with their files: a table, and a film of each camera."""
    place = join(root, "meta/episodes.jsonl")
    with _as_published(place):
        for line in filter(str.strip, places.read_text(place).splitlines()):
            episode = json.loads(line)
            number = int(episode["episode_index"])
            at = {"episode_chunk": number // int(info["chunks_size"]), "episode_index": number}
            films = {camera: (info["video_path"].format(**at, video_key=camera), None, None) for camera in cameras}
            yield episode | {"data": info["data_path"].format(**at), "films": films}


def _episodes_v3(root: str, info: Mapping[str, Any], cameras: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Read episodes with their files: a table of several, and a film of each camera, in which it has its times."""
    of_film = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    columns = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{camera}/{name}" for camera in cameras for name in of_film]
    for name in places.folder_files(join(root, "meta/episodes")).names:
        place = join(root, f"meta/episodes/{name}")
        with _as_published(place), open_bytes(place) as file:
            for episode in pq.read_table(file, columns=columns).to_pylist():
                films = {}
                for camera in cameras:
                    chunk, number, start_s, end_s = (episode[f"videos/{camera}/{name}"] for name in of_film)
                    at = {"video_key": camera, "chunk_index": chunk, "file_index": number}
                    films[camera] = (info["video_path"].format(**at), float(start_s), float(end_s))
                at = {"chunk_index": episode["data/chunk_index"], "file_index": episode["data/file_index"]}
                yield episode | {"data": info["data_path"].format(**at), "films": films}


@contextmanager
def _as_published(place: str) -> Iterator[None]:
    """Turn what is not as published into a UserError about a file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        raise UserError(f"{shown(place)}: is not as LeRobot writes it ({error!r}); {_REMEDY}") from None


def _read(
    place: str,
    episode: int,
    length: int,
    start_s: float | None,
    features: Mapping[str, Mapping[str, tuple[str, ...]]],
    choice: TrackChoice,
) -> FileTracks:
    """Read the tracks of an episode. start_s: of it in its film; None: the film is its own."""
    keys = tuple(key for some in features.values() for key in some)
    table = _table(place, (*dict.fromkeys(keys), "timestamp", "episode_index"))
    table = table.filter(pc.equal(table["episode_index"], episode))
    if table.num_rows != length:
        raise DecodeError(f"its table has {table.num_rows} rows of episode {episode}, its length is {length}")
    state, action = (
        side_by_side(what, {key: Numbers(_values(table, key), names) for key, names in some.items()})
        for what, some in features.items()
    )
    times_s = np.asarray(table["timestamp"]).astype(np.float64).reshape(-1) + (start_s or 0.0)
    return film_tracks(state, action, times_s, choice, "start" if start_s is None else "film")


@lru_cache(maxsize=2)  # the episodes of a file follow each other
def _table(place: str, columns: tuple[str, ...]) -> pa.Table:
    try:
        with open_bytes(place) as file:
            return pq.read_table(file, columns=list(columns))
    except (pa.ArrowException, UserError, OSError) as error:
        raise DecodeError(f"its table cannot be read: {' '.join(str(error).split())}") from None


def _values(table: pa.Table, key: str) -> np.ndarray:
    """Take a feature of numbers, of one or of several a frame: [F, n]."""
    if key not in table.column_names:
        raise DecodeError(f"its table has no column {key}")
    column = table[key].combine_chunks()
    while not (
        pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)
    ):
        if not hasattr(column, "flatten"):
            raise DecodeError(f"its {key} holds {column.type}, no numbers")
        column = column.flatten()
    values = np.asarray(column).astype(np.float32)
    if len(values) % max(1, table.num_rows):
        raise DecodeError(f"its {key} has not the same number of values at each frame")
    return values.reshape(table.num_rows, -1)
