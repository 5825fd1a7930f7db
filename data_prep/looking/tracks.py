"""Describe the tracks of an index: what the numbers of each frame are, and how long they last."""

from __future__ import annotations

import numpy as np

from data_prep.looking.description import Table
from vjepa.data.clip_index import ClipIndex
from vjepa.data.tracks import Moments, TrackInfo

_HEADER = ("", "unit", "mean", "deviation", "least", "most")
_ROWS_AT_ONCE = 1024
_SAME_RATE = 0.05


def track_tables(index: ClipIndex, usable: np.ndarray) -> tuple[list[Table], list[str]]:
    """Describe the tracks of the rows `usable`, bool [n] of the index: a table of the action and one of the state.

    Mean and deviation are over the frames of these rows. Warns of usable rows without, and of films whose clock is not
    that of their track.
    """
    infos = {"action": index.tracks.action, "state": index.tracks.state}
    tables, warnings = [], []
    for name, info in infos.items():
        if info is None:
            continue
        rows = np.flatnonzero(usable & np.asarray(index.arrow(name).is_valid()))
        if num_without := int(usable.sum()) - len(rows):
            warnings.append(f"{num_without:,} of {int(usable.sum()):,} usable clips have no {name}")
        if len(rows):
            tables.append(_table(index, rows, name, info))
    return tables, [*warnings, *_other_clocks(index, usable)]


def _table(index: ClipIndex, rows: np.ndarray, name: str, info: TrackInfo) -> Table:
    moments, lengths = Moments(info.size), []
    least, most = np.full(info.size, np.inf), np.full(info.size, -np.inf)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = index.arrow(name).take(rows[start : start + _ROWS_AT_ONCE])
        lengths += [len(row) // info.size for row in some]
        values = np.concatenate([row.values.to_numpy() for row in some]).reshape(-1, info.size)
        values = values[np.isfinite(values).all(axis=1)]
        moments.add(values)
        least, most = np.minimum(least, values.min(0, initial=np.inf)), np.maximum(most, values.max(0, initial=-np.inf))
    shown = zip(info.names, info.units, *_written(moments.mean, moments.std, least, most), strict=True)
    short, middle, long = (f"{value:,.0f}" for value in np.quantile(lengths, [0, 0.5, 1]))
    notes = [f"{len(rows):,} clips of {short} to {long} frames (median {middle}), {sum(lengths):,} in all"]
    notes += [f"a rotation begins at {info.names[first]}: {kind}" for first, kind in info.rotations.items()]
    return Table(f"{name.capitalize()} of each frame", _HEADER, tuple(shown), tuple(notes))


def _written(*columns: np.ndarray | tuple[float, ...]) -> list[list[str]]:
    return [[f"{value:.4g}" for value in column] for column in columns]


def _other_clocks(index: ClipIndex, usable: np.ndarray) -> list[str]:
    """Tell of films whose rate is another than that of their track."""
    timed = np.flatnonzero(usable & np.asarray(index.arrow("track_times_s").is_valid()))
    ratios = []
    for i in timed.tolist():
        row = index.row(i)
        (times_s, _), film_s = row.clock(), row.times()
        if len(times_s) > 1:
            ratios.append(float((times_s[-1] - times_s[0]) / (film_s[-1] - film_s[0])))
    others = [ratio for ratio in ratios if abs(ratio - 1) > _SAME_RATE]
    if not others:
        return []
    times = f"{np.median(others):.3g} times (median) as fast as it was taken, by the times of its track"
    return [f"clips whose film runs {times}: {len(others):,}; frames are chosen by the track"]
