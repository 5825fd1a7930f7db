"""Tracks as an NPZ beside the film that they belong to: clip.npz beside clip.mp4.

It holds, of F frames, `state` [F, S], `action` [F, A], or [F - 1, A] between the frames, and `times_s` [F]; and as
texts `state_names`, `state_units` [S], `action_names`, `action_units` [A], and `state_rotations`, such as ["3:euler"].
Any of them may lack.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Final

import numpy as np

from vjepa.data.media import DecodeError
from vjepa.data.tracks import RowTracks, Tracks
from vjepa.files import whole_file

ARRAYS: Final = ("action", "state")


def save_tracks(film: Path, tracks: Tracks, row: RowTracks) -> Path:
    """Write the tracks of a film beside it, for `data_prep.index`, and give the path.

    row: action float32 [F, A] or [F - 1, A]. tracks: their names, units and rotations.
    """
    told: dict[str, np.ndarray] = {}
    for name in ARRAYS:
        info, values = getattr(tracks, name), getattr(row, name)
        if info is not None and values is not None:
            told |= {name: values, f"{name}_names": np.array(info.names), f"{name}_units": np.array(info.units)}
    if tracks.state and tracks.state.rotations:
        told["state_rotations"] = np.array([f"{first}:{kind}" for first, kind in tracks.state.rotations.items()])
    if row.times_s is not None:
        told["times_s"] = row.times_s
    path = film.with_suffix(".npz")
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **told)  # type: ignore[arg-type]
    return path


def names_in(file: IO[bytes]) -> list[str]:
    """List the arrays of an NPZ by the directory at its end; none where it is no NPZ."""
    try:
        with zipfile.ZipFile(file) as arrays:
            return [name.removesuffix(".npy") for name in arrays.namelist()]
    except (OSError, zipfile.BadZipFile):
        return []


def read_arrays(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Read every array of an NPZ. Raises DecodeError where it is damaged, or holds Python objects."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DecodeError(f"its tracks cannot be read: {error}") from None
