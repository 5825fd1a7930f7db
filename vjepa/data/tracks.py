"""Numbers that belong to the frames of a film: what was done (the action) and how things stood (the state).

Sample number k goes with frame number k of a row of the clip index. An action is what was commanded at its frame: it
leads to the next one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from vjepa.errors import UserError

ROTATION_SIZES: Final = {"euler": 3, "quaternion": 4, "rotation6d": 6}  # numbers of a rotation, see `poses`
TRACKS_KEY: Final = b"vjepa_tracks"  # of the metadata of an index


@dataclass(frozen=True)
class TrackInfo:
    """Name the dimensions of an action or a state, and say what their numbers are like over the usable rows.

    names, units: one for each dimension; a unit may be empty. rotations: first dimension of each rotation -> its kind,
    of ROTATION_SIZES; all other dimensions are plain numbers. mean, std: of each dimension over `num_frames` frames;
    empty before they are measured.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    rotations: Mapping[int, str] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    num_frames: int = 0

    @property
    def size(self) -> int:
        return len(self.names)

    @property
    def kind(self) -> tuple[Any, ...]:
        """Give what must be the same where rows share batches."""
        return self.names, self.units, dict(self.rotations)

    def measured(self, moments: Moments) -> TrackInfo:
        return replace(self, mean=moments.mean, std=moments.std, num_frames=moments.num)


@dataclass(frozen=True)
class Tracks:
    """Say what the tracks of an index are; None: its rows have none."""

    action: TrackInfo | None = None
    state: TrackInfo | None = None

    def to_json(self) -> str:
        return json.dumps({name: info and vars(info) for name, info in vars(self).items()})

    @classmethod
    def from_json(cls, text: str | bytes) -> Tracks:
        def info(found: dict[str, Any] | None) -> TrackInfo | None:
            if not found:
                return None
            lists = {name: tuple(found[name]) for name in ("names", "units", "mean", "std")}
            rotations = {int(first): kind for first, kind in found["rotations"].items()}
            return TrackInfo(**{**found, **lists, "rotations": rotations})

        return cls(**{name: info(found) for name, found in json.loads(text).items()})


@dataclass(frozen=True)
class RowTracks:
    """Hold the tracks of the F frames of a row.

    action: float32 [F, A]; the last is nan where none followed the last frame. state: float32 [F, S]. times_s: float64
    [F], ascending, when each frame was taken, on the clock of the track; None: as the film says. rotations: of the
    state, as of `TrackInfo`.
    """

    action: np.ndarray | None = None
    state: np.ndarray | None = None
    times_s: np.ndarray | None = None
    rotations: Mapping[int, str] = field(default_factory=dict)


class Moments:
    """Count samples, and keep their mean and mean square deviation, dimension by dimension, as they come."""

    def __init__(self, size: int) -> None:
        self.num = 0
        self._mean, self._square = np.zeros(size), np.zeros(size)

    def add(self, values: np.ndarray) -> None:
        """Add samples [n, size]; those that are no numbers count as none."""
        values = values[np.isfinite(values).all(axis=1)].astype(np.float64)
        if len(values):
            mean = values.mean(axis=0)
            self.join(len(values), mean, ((values - mean) ** 2).sum(axis=0))

    def join(self, num: int, mean: np.ndarray, square: np.ndarray) -> None:
        """Add `num` samples by their mean and sum of squared deviations, float64 [size] each (Chan et al. 1979)."""
        total, apart = self.num + num, mean - self._mean
        self._square = self._square + square + apart**2 * (self.num * num / max(1, total))
        self._mean = self._mean + apart * (num / max(1, total))
        self.num = total

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self._mean.tolist())

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(np.sqrt(self._square / max(1, self.num)).tolist())


def joined_tracks(found: Sequence[tuple[str, Tracks]]) -> Tracks:
    """Describe the tracks of several indexes, each with its name for messages, as those of one.

    Raises UserError where two have tracks of other names, units or rotations.
    """
    return Tracks(**{which: _joined(which, found) for which in ("action", "state")})


def _joined(which: str, found: Sequence[tuple[str, Tracks]]) -> TrackInfo | None:
    infos: list[tuple[str, TrackInfo]] = [(name, info) for name, tracks in found if (info := getattr(tracks, which))]
    if not infos:
        return None
    first_name, first = infos[0]
    moments = Moments(first.size)
    for name, info in infos:
        if info.kind != first.kind:
            raise UserError(
                f"{name}: its {which} is {', '.join(info.names)}, that of {first_name} is {', '.join(first.names)}, or "
                "their units or rotations differ; index them with the same names, or read them in runs of their own"
            )
        if info.mean:
            moments.join(info.num_frames, np.array(info.mean), np.array(info.std) ** 2 * info.num_frames)
    return first.measured(moments)
