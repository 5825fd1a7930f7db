"""What every format of tracks comes to: numbers for the frames of a film, their names and units, and times.

A reader raises DecodeError for a film whose tracks cannot be used, which then has the reason in its status.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

import numpy as np

from vjepa.data.media import DecodeError
from vjepa.data.tracks import ROTATION_SIZES, RowTracks, TrackInfo, Tracks
from vjepa.errors import UserError

PLAIN: Final = "plain"
_KNOWN_TURNS: Final = {("roll", "pitch", "yaw"): "euler", ("qx", "qy", "qz", "qw"): "quaternion"}
_DEGREES: Final = frozenset({"deg", "degree", "degrees", "°"})
_MOST_RAD: Final = 2 * np.pi + 1e-3  # of an angle in radians
_LENGTH_TOLERANCE: Final = 0.01  # of a quaternion

Clock = Literal["film", "start", "own"]


@dataclass(frozen=True)
class TrackChoice:
    """Say which numbers are the state and which the action, and which of the state are rotations.

    state, action: names of arrays, columns or features, whose numbers follow each other; empty: what the format calls
    so. rotations: name of the first dimension of a rotation -> its kind, of ROTATION_SIZES, or "plain"; dimensions
    called roll, pitch, yaw or qx, qy, qz, qw in this order are known without.
    """

    state: tuple[str, ...] = ()
    action: tuple[str, ...] = ()
    rotations: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in self.rotations.items():
            if kind not in (*ROTATION_SIZES, PLAIN):
                raise UserError(f"rotation {name}={kind}: give {', '.join((*ROTATION_SIZES, PLAIN))}")


@dataclass(frozen=True)
class Numbers:
    """Hold one track as a file has it. values: [F, n]; names, units: one for each of the n dimensions, or none."""

    values: np.ndarray
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileTracks:
    """Hold the tracks of a film, or of the part of it that an entry means, before they are held against its frames.

    row.times_s: by `clock` the same as those of the film; the same but for their start; or of a clock of their own.
    """

    tracks: Tracks
    row: RowTracks
    clock: Clock = "own"


def side_by_side(what: str, parts: Mapping[str, Numbers]) -> Numbers | None:
    """Join tracks of the same frames, each with the name of its source, into one; None of none.

    Names that two parts have are told apart by the source. Raises DecodeError where their lengths differ.
    """
    lengths = {name: len(numbers.values) for name, numbers in parts.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DecodeError(f"the parts of its {what} have different lengths: {told}")
    if not parts:
        return None
    named = {source: numbers.names or _numbered(source, numbers.values.shape[1]) for source, numbers in parts.items()}
    names = [name for some in named.values() for name in some]
    if len(set(names)) < len(names):
        names = [f"{source}.{name}" for source, some in named.items() for name in some]
    units = [unit for part in parts.values() for unit in part.units or ("",) * part.values.shape[1]]
    return Numbers(np.concatenate([part.values for part in parts.values()], axis=1), tuple(names), tuple(units))


def film_tracks(
    state: Numbers | None, action: Numbers | None, times_s: np.ndarray | None, choice: TrackChoice, clock: Clock = "own"
) -> FileTracks:
    """Make the tracks of a film of what a file says. Raises DecodeError for values that cannot be used.

    Angles in degrees, by their unit, become radians. Raises UserError where a rotation that was chosen is not there.
    """
    rotations: dict[int, str] = {}
    if state:
        rotations = _rotations(state, choice.rotations)
        state = _in_radians(state, rotations)
        _check_state(state, rotations)
    elif choice.rotations:
        raise UserError(f"rotation {next(iter(choice.rotations))}: there is no state that it could be of")
    if action and not np.isfinite(action.values[:-1]).all():
        raise DecodeError(f"its action is no number at frame {_first_bad(action.values)}")
    if times_s is not None and not (np.isfinite(times_s).all() and (np.diff(times_s) > 0).all()):
        raise DecodeError("the times of its track do not ascend")
    tracks = Tracks(
        TrackInfo(action.names, action.units) if action else None,
        TrackInfo(state.names, state.units, rotations) if state else None,
    )
    moves, places = (None if found is None else found.values.astype(np.float32) for found in (action, state))
    return FileTracks(tracks, RowTracks(moves, places, times_s), clock)


def _numbered(source: str, num: int) -> tuple[str, ...]:
    last = source.replace("/", ".").rpartition(".")[2]
    return (last,) if num == 1 else tuple(f"{last}_{number}" for number in range(num))


def _rotations(state: Numbers, chosen: Mapping[str, str]) -> dict[int, str]:
    """Find the first dimension and the kind of each rotation: those that are chosen, and those that names tell."""
    found = dict(_named_turns(state.names))
    for name, kind in chosen.items():
        if name not in state.names:
            raise UserError(
                f"rotation {name}={kind}: the state has no dimension {name}, it has {', '.join(state.names)}"
            )
        found[state.names.index(name)] = kind
    found = {first: kind for first, kind in sorted(found.items()) if kind != PLAIN}
    for first, following in pairwise([*found, len(state.names)]):
        kind, num = found[first], ROTATION_SIZES[found[first]]
        if num > following - first:
            raise UserError(f"rotation {state.names[first]}={kind}: takes {num} numbers, not {following - first}")
    return found


def _named_turns(names: Sequence[str]) -> Iterator[tuple[int, str]]:
    lasts = [name.lower().replace("_", ".").rpartition(".")[2] for name in names]
    for words, kind in _KNOWN_TURNS.items():
        for first in range(len(lasts) - len(words) + 1):
            if tuple(lasts[first : first + len(words)]) == words:
                yield first, kind


def _in_radians(state: Numbers, rotations: Mapping[int, str]) -> Numbers:
    turned = [place for first, kind in rotations.items() if kind == "euler" for place in range(first, first + 3)]
    degrees = [place for place in turned if state.units[place].lower() in _DEGREES]
    values = state.values.astype(np.float64)
    values[:, degrees] = np.deg2rad(values[:, degrees])
    units = tuple("rad" if place in turned else unit for place, unit in enumerate(state.units))
    return Numbers(values, state.names, units)


def _check_state(state: Numbers, rotations: Mapping[int, str]) -> None:
    """Raise DecodeError for numbers that are none, and rotations that cannot be."""
    if not np.isfinite(state.values).all():
        raise DecodeError(f"its state is no number at frame {_first_bad(state.values)}")
    for first, kind in rotations.items():
        numbers = state.values[:, first : first + ROTATION_SIZES[kind]]
        if kind == "euler" and len(numbers) and np.abs(numbers).max() > _MOST_RAD:
            most = f"{np.abs(numbers).max():.4g}"
            raise DecodeError(f"its angles from {state.names[first]} on come to {most}, which are no radians")
        lengths = np.linalg.norm(numbers, axis=1)
        if kind == "quaternion" and (np.abs(lengths - 1) > _LENGTH_TOLERANCE).any():
            frame = int(np.abs(lengths - 1).argmax())
            raise DecodeError(f"its quaternion {state.names[first]} has length {lengths[frame]:.3g} at frame {frame}")


def _first_bad(values: np.ndarray) -> int:
    return int((~np.isfinite(values).all(axis=1)).argmax())
