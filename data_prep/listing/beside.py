"""Tracks in a file beside each film: clip.npz (see `vjepa.data.track_files`) or clip.csv beside clip.mp4.

A CSV has a header and a line for each frame: columns `state.x`, `action.dx` with a unit in brackets where it has one,
`state.x [m]`, and perhaps `time_s`.
"""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np

from data_prep.listing.entry import VIDEO_EXTENSIONS, Entry
from data_prep.listing.places import join, open_bytes, open_text, suffix
from data_prep.listing.tracks import FileTracks, Numbers, TrackChoice, film_tracks, side_by_side
from vjepa.data.media import DecodeError
from vjepa.data.track_files import ARRAYS, names_in, read_arrays
from vjepa.errors import UserError

_TIMES: Final = ("times_s", "time_s", "timestamp")
_COLUMN: Final = re.compile(r"(?:(state|action)[._ ])?(.*?)\s*(?:\[(.*)\])?")


def with_tracks_beside(
    root: str, entries: Sequence[Entry], others: Sequence[str], choice: TrackChoice
) -> tuple[list[Entry], list[str], int]:
    """Give films the tracks that lie beside them: the entries, without those that are tracks; the other files that are
    none; and how many films have tracks.

    others: names of files that are neither film nor picture.
    """
    films = {_stem(entry): entry for entry in entries if _is_film(entry)}
    readers = {}
    for entry in entries:
        if suffix(entry.uri) == ".npz" and _stem(entry) in films and _are_tracks(entry.uri, choice):
            readers[_stem(entry)] = (entry.name, partial(read_npz, entry.uri, choice))
    for name in others:
        stem = posixpath.splitext(name)[0]
        if suffix(name) == ".csv" and stem in films and stem not in readers:
            place = join(root, name)
            if _header_has_tracks(place, choice):
                readers[stem] = (name, partial(read_csv, place, choice))
    taken = {name for name, _ in readers.values()}
    kept = [entry for entry in entries if entry.name not in taken]
    tracked = [
        replace(entry, tracks=readers[_stem(entry)][1]) if _is_film(entry) and _stem(entry) in readers else entry
        for entry in kept
    ]
    return tracked, [name for name in others if name not in taken], len(readers)


def read_npz(place: str, choice: TrackChoice) -> FileTracks:
    """Read the tracks of a film from an NPZ. Raises DecodeError where they cannot be used."""
    with _reading(), open_bytes(place) as file:
        arrays = read_arrays(file)
    found, rotations = {}, dict(choice.rotations)
    for what, chosen in (("state", choice.state), ("action", choice.action)):
        names = chosen or tuple(name for name in (what,) if name in arrays)
        if missing := [name for name in names if name not in arrays]:
            raise DecodeError(f"its tracks have no array {missing[0]}")
        found[what] = side_by_side(what, {name: _numbers(arrays, name) for name in names})
    for text in map(str, np.atleast_1d(arrays.get("state_rotations", np.array([], str)))):
        first, _, kind = text.partition(":")
        state = found["state"]
        if not state or not first.isdigit() or int(first) >= len(state.names):
            raise DecodeError(f"its state_rotations {text!r} is no number of a dimension with a kind, such as 3:euler")
        rotations.setdefault(state.names[int(first)], kind)
    times = next((arrays[name] for name in _TIMES if name in arrays), None)
    chosen_kinds = replace(choice, rotations=rotations)
    return film_tracks(found["state"], found["action"], None if times is None else _column(times), chosen_kinds)


def read_csv(place: str, choice: TrackChoice) -> FileTracks:
    """Read the tracks of a film from a CSV. Raises DecodeError where they cannot be used."""
    with _reading(), open_text(place) as text:
        header, *lines = list(csv.reader(text)) or [[]]
    try:
        table = np.array([line for line in lines if line], np.float64).reshape(-1, len(header))
    except ValueError:
        raise DecodeError("its tracks cannot be read: not every line has a number for each column") from None
    parts = _parts(header, choice)
    state, action = (_columns(what, parts, table) for what in ("state", "action"))
    times = next((table[:, number] for number, name in enumerate(header) if name.strip() in _TIMES), None)
    return film_tracks(state, action, times, choice)


@contextmanager
def _reading() -> Iterator[None]:
    """Turn what goes wrong with the file of a track into a DecodeError."""
    try:
        yield
    except (UserError, csv.Error) as error:
        raise DecodeError(f"its tracks cannot be read: {error}") from None


def _parts(header: Sequence[str], choice: TrackChoice) -> dict[str, list[tuple[int, str, str]]]:
    """Find number, name and unit of the columns of state and action."""
    found: dict[str, list[tuple[int, str, str]]] = {"state": [], "action": []}
    for number, cell in enumerate(header):
        match = _COLUMN.fullmatch(cell.strip())
        what, name, unit = match.groups() if match else (None, cell, None)
        whole = f"{what}.{name}" if what else name
        chosen = [which for which in ARRAYS if {whole, name} & set(getattr(choice, which))]
        what = what or (name if name in ARRAYS else None)
        belongs = chosen or ([what] if what and not getattr(choice, what) else [])
        for which in belongs:
            found[which].append((number, name, unit or ""))
    return found


def _columns(what: str, parts: Mapping[str, list[tuple[int, str, str]]], table: np.ndarray) -> Numbers | None:
    if not parts[what]:
        return None
    numbers, names, units = zip(*parts[what], strict=True)
    return Numbers(table[:, list(numbers)], names, units)


def _numbers(arrays: Mapping[str, np.ndarray], name: str) -> Numbers:
    values = _table(name, arrays[name])
    texts = {}
    for what in ("names", "units"):
        texts[what] = tuple(map(str, np.atleast_1d(arrays.get(f"{name}_{what}", np.array([], str)))))
        if len(texts[what]) not in (0, values.shape[1]):
            raise DecodeError(
                f"its {name}_{what} are {len(texts[what])}, its {name} has {values.shape[1]} numbers a frame"
            )
    return Numbers(values, texts["names"], texts["units"])


def _table(name: str, values: np.ndarray) -> np.ndarray:
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "fiub" or not values.shape[1]:
        raise DecodeError(f"its {name} is {values.dtype} {list(values.shape)}, no numbers of frames x size")
    return values


def _column(times: np.ndarray) -> np.ndarray:
    return _table("times_s", times).reshape(-1).astype(np.float64)


def _header_has_tracks(place: str, choice: TrackChoice) -> bool:
    with open_text(place) as text:
        header = next(csv.reader([text.readline()]), [])
    return any(_parts(header, choice).values())


def _are_tracks(place: str, choice: TrackChoice) -> bool:
    with open_bytes(place) as file:
        return bool({*ARRAYS, *choice.state, *choice.action} & set(names_in(file)))


def _stem(entry: Entry) -> str:
    return posixpath.splitext(entry.name)[0]


def _is_film(entry: Entry) -> bool:
    return suffix(entry.uri) in VIDEO_EXTENSIONS and entry.offset is None
