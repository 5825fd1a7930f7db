"""HDF5 of robots: DROID's raw episodes, and robomimic's demonstrations.

An episode of DROID is a folder with trajectory.h5 and the films of its cameras (recordings/MP4/SERIAL.mp4). Its state
is the pose of the gripper in the frame of the base, as V-JEPA 2-AC has it: position in m, angles about x, y, z in
radians, opening from 0 to 1. A film says 60 fps and was taken at some 15 Hz; the time of each frame is in the track.
robomimic keeps pictures as arrays in one file (data/demo_N/obs), of which `data_prep.transcode` makes films.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from data_prep.listing.entry import VIDEO_EXTENSIONS, Entry
from data_prep.listing.places import join, open_bytes, read_text, shown, suffix
from data_prep.listing.tracks import FileTracks, Numbers, TrackChoice, film_tracks, side_by_side
from vjepa.data.media import DecodeError
from vjepa.errors import UserError

try:
    import h5py
except ImportError:  # the extra `robots`
    h5py = None

HDF5_EXTENSIONS: Final = frozenset({".hdf5", ".h5"})
DROID_FILE: Final = "trajectory.h5"
_ROBOT: Final = "observation/robot_state"
_DROID_STATE: Final = (f"{_ROBOT}/cartesian_position", f"{_ROBOT}/gripper_position")
_DROID_ACTION: Final = ("action/cartesian_velocity", "action/gripper_position")
_POSE: Final = ("x", "y", "z", "roll", "pitch", "yaw")
_DIMENSIONS: Final = {  # names and units of what DROID and robomimic keep
    "cartesian_position": (_POSE, ("m",) * 3 + ("rad",) * 3),
    "cartesian_velocity": (tuple(f"d{name}" for name in _POSE), ("",) * 6),
    "gripper_position": (("gripper",), ("",)),
    "eef_pos": (("x", "y", "z"), ("m",) * 3),
    "eef_quat": (("qx", "qy", "qz", "qw"), ("",) * 4),
}
_CAMERAS: Final = ("wrist", "ext1", "ext2")
_MS: Final = 1e-3
_ROBOT_STATE: Final = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")  # of robomimic, where they are there


def list_droid(root: str, names: Sequence[str], choice: TrackChoice) -> tuple[list[Entry], list[str]]:
    """List the films of DROID's episodes among the files of a folder, with notes; the left picture of each camera.

    Label: the task; group: the episode; column camera. Raises UserError without h5py.
    """
    episodes = {posixpath.dirname(name): name for name in names if posixpath.basename(name) == DROID_FILE}
    require_h5py(join(root, next(iter(episodes.values()))))
    about = {posixpath.dirname(name): name for name in names if _is_metadata(name)}
    films: dict[str, list[str]] = {folder: [] for folder in episodes}
    for name in names:
        is_left = suffix(name) in VIDEO_EXTENSIONS and not posixpath.splitext(name)[0].endswith("-stereo")
        if is_left and (folder := _episode_of(name, episodes)) is not None:
            films[folder].append(name)
    entries = []
    for folder, name in episodes.items():
        told = _metadata(join(root, about[folder])) if folder in about else {}
        cameras = {str(told.get(f"{camera}_cam_serial")): camera for camera in _CAMERAS}
        common = {"label": told.get("current_task") or None, "group": str(told.get("uuid") or folder or name)}
        for film in films[folder]:
            serial = posixpath.splitext(posixpath.basename(film))[0]
            tracks = partial(_read_droid, join(root, name), serial, choice)
            columns = {**common, "camera": cameras.get(serial, serial)}
            entries.append(Entry(join(root, film), film, columns=columns, tracks=tracks))
    return entries, [f"{shown(root)}: read as episodes of DROID"]


def _episode_of(film: str, folders: Collection[str]) -> str | None:
    """Find the nearest folder above a film that is an episode."""
    folder = film
    while folder:
        folder = posixpath.dirname(folder)
        if folder in folders:
            return folder
    return None


def _is_metadata(name: str) -> bool:
    base = posixpath.basename(name)
    return base.startswith("metadata") and base.endswith(".json")


def _metadata(place: str) -> dict[str, Any]:
    try:
        found = json.loads(read_text(place))
    except ValueError as error:
        raise UserError(f"{shown(place)}: is not JSON ({error}); give the episode as DROID publishes it") from None
    return found if isinstance(found, dict) else {}


def _read_droid(place: str, serial: str, choice: TrackChoice) -> FileTracks:
    with _opened(place) as file:
        state, action = (
            _chosen(file, what, chosen, usual)
            for what, chosen, usual in (("state", choice.state, _DROID_STATE), ("action", choice.action, _DROID_ACTION))
        )
        captured = f"observation/timestamp/cameras/{serial}_estimated_capture"
        times_s = np.asarray(file[captured], np.float64).reshape(-1) * _MS if captured in file else None
    return film_tracks(state, action, times_s, choice)


@dataclass(frozen=True)
class Demonstration:
    """Hold an episode of robomimic. cameras: name -> its pictures in the file, read when they are wanted."""

    name: str
    split: str | None
    cameras: tuple[str, ...]
    tracks: FileTracks


def demonstrations(place: str, choice: TrackChoice) -> Iterator[Demonstration]:
    """Read the episodes of a file of robomimic (data/demo_N/{obs/*, actions, states}), in the order of their numbers.

    The state is the pose of the first arm where it is there, else `states`. Raises UserError where it is none.
    """
    require_h5py(place)
    with _opened(place, UserError) as file:
        data = file.get("data")
        demos = sorted(data or (), key=lambda name: (len(name), name))
        if not demos or "obs" not in data[demos[0]]:
            raise UserError(f"{shown(place)}: holds no data/demo_N/obs; give a file of robomimic with pictures")
        splits = {
            _text(demo): {"valid": "val"}.get(split, split)
            for split in ("train", "valid", "test")
            if f"mask/{split}" in file
            for demo in file[f"mask/{split}"]
        }
        for name in demos:
            demo = data[name]
            cameras = tuple(key for key, values in demo["obs"].items() if _are_pictures(values))
            if not cameras:
                raise UserError(f"{shown(place)}: {name} has no pictures in obs; render them with robomimic")
            robot = tuple(f"obs/{key}" for key in _ROBOT_STATE if key in demo["obs"])
            try:
                state = _chosen(demo, "state", choice.state, robot or ("states",))
                action = _chosen(demo, "action", choice.action, ("actions",))
                yield Demonstration(name, splits.get(name), cameras, film_tracks(state, action, None, choice))
            except DecodeError as error:
                raise UserError(
                    f"{shown(place)}: {name}: {error}; mend it, or choose with --state and --action"
                ) from None


def control_fps(place: str) -> float:
    """Read the rate at which the pictures of a file of robomimic were taken; 0 where it does not say."""
    require_h5py(place)
    with _opened(place, UserError) as file:
        try:
            return float(json.loads(file["data"].attrs["env_args"])["env_kwargs"]["control_freq"])
        except (KeyError, ValueError, TypeError):
            return 0.0


def pictures(place: str, demo: str, camera: str) -> np.ndarray:
    """Read the pictures of a camera in an episode of robomimic: uint8 [F, H, W, 3]."""
    with _opened(place, UserError) as file:
        return np.asarray(file[f"data/{demo}/obs/{camera}"])


def require_h5py(place: str) -> None:
    """Raise UserError where h5py, which reads HDF5, is not installed."""
    if h5py is None:
        raise UserError(
            f"{shown(place)}: HDF5 is read by h5py, which is not installed; pip install 'video-jepa[robots]'"
        )


@contextmanager
def _opened(place: str, kind: type[Exception] = DecodeError) -> Iterator[Any]:
    """Open a file of HDF5. Raises `kind` where it cannot be read."""
    try:
        with open_bytes(place) as bytes_of, h5py.File(bytes_of, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise kind(f"{shown(place)}: cannot be read as HDF5: {' '.join(str(error).split())}") from None


def _chosen(group: Any, what: str, chosen: Sequence[str], usual: Sequence[str]) -> Numbers | None:
    """Read arrays by their paths in a group: those that are chosen, or the usual ones that are there."""
    names = chosen or [name for name in usual if name in group]
    if missing := [name for name in names if name not in group]:
        raise DecodeError(f"its tracks have no array {missing[0]}")
    return side_by_side(what, {name: _numbers(name, np.asarray(group[name])) for name in names})


def _numbers(name: str, values: np.ndarray) -> Numbers:
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise DecodeError(f"its {name} is {values.dtype} {list(values.shape)}, no numbers of frames x size")
    known = next((told for key, told in _DIMENSIONS.items() if name.endswith(key)), ((), ()))
    return Numbers(values, *(known if len(known[0]) == values.shape[1] else ((), ())))


def _are_pictures(values: Any) -> bool:
    return len(values.shape) == 4 and values.shape[-1] == 3 and values.dtype == np.uint8


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
