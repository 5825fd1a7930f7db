"""Say how sure a measure is: 95 % percentile bootstrap (Efron 1979), over clips or over whole groups.

Where clips of one group (a scene, a person) resemble each other there is only as much evidence as there are groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.sparse import csr_array

from vjepa.counter_rng import generator
from vjepa.probing.metrics import Floats, wilson_interval

NUM_RESAMPLES: Final = 2000
_AT_ONCE: Final = 1 << 22  # numbers of clips times resamples, 8 bytes each, and a few times that


@dataclass(frozen=True)
class Share:
    """Hold a measure with its 95 % interval, low <= value <= high. Shares are in 0..1; an R2 is at most 1."""

    value: float
    low: float
    high: float


# what a statistic makes of weights [R, N], how often each of N clips was drawn in each of R resamples: name -> [R], NaN
# where it is not defined
Statistic = Callable[[Floats], Mapping[str, Floats]]


def unit_numbers(groups: Sequence[str | None] | None, num_clips: int) -> np.ndarray | None:
    """Give each group a number from 0, without a gap: int64 [N]; a clip without a group is one of its own."""
    if groups is None:
        return None
    if len(groups) != num_clips:
        raise ValueError(f"{len(groups)} groups for {num_clips} clips")
    keys = [("row", str(i)) if group is None else ("group", str(group)) for i, group in enumerate(groups)]
    numbers: dict[tuple[str, str], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def count_units(units: np.ndarray | None) -> int | None:
    """Count the groups of `unit_numbers`; None where each clip is one."""
    return int(units.max()) + 1 if units is not None else None


def resample(cells: np.ndarray, num_cells: int, units: np.ndarray | None, seed: int) -> np.ndarray:
    """Count how often each cell occurs in each resample: int [NUM_RESAMPLES, num_cells].

    cells: [N], that of each clip.
    """
    rng = generator(seed, "bootstrap", 0)
    if units is None:  # only counts matter, and those of N draws from N clips are multinomial: no clip need be drawn
        return rng.multinomial(len(cells), np.bincount(cells, minlength=num_cells) / len(cells), size=NUM_RESAMPLES)
    num_units = int(units.max()) + 1
    clips = csr_array((np.ones(len(cells), dtype=np.int64), (cells, units)), shape=(num_cells, num_units))
    drawn = np.stack(
        [np.bincount(rng.integers(num_units, size=num_units), minlength=num_units) for _ in range(NUM_RESAMPLES)],
        axis=1,
    )
    counts: np.ndarray = (clips @ drawn).T
    return counts


def interval_of_share(value: float, resampled: np.ndarray, num_units: int) -> Share:
    # all right, all wrong, or one group: the bootstrap sees no spread, where Wilson's interval still does
    if np.ptp(resampled) < 1e-12:
        low, high = wilson_interval(value * num_units, num_units)
    else:
        low, high = np.quantile(resampled, (0.025, 0.975))
    return Share(float(value), float(min(low, value)), float(max(high, value)))


def several_units(groups: Sequence[str | None] | None, num_clips: int) -> np.ndarray | None:
    """Give `unit_numbers`, but None for a single group, which has no spread: then clips are drawn."""
    units = unit_numbers(groups, num_clips)
    return None if count_units(units) == 1 else units


def measure(statistic: Statistic, num_clips: int, units: np.ndarray | None, seed: int) -> dict[str, Share | None]:
    """Compute `statistic` on the clips, with intervals; None for what is not defined on them.

    units: see `several_units`.
    """
    values = statistic(np.ones((1, num_clips)))
    parts = [statistic(weights) for weights in _weights(num_clips, units, seed)]
    found: dict[str, Share | None] = {}
    for name, (value,) in values.items():
        drawn = np.concatenate([part[name] for part in parts])
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) else (value, value)
        known = Share(float(value), float(min(low, value)), float(max(high, value)))
        found[name] = known if np.isfinite(value) else None
    return found


def _weights(num_clips: int, units: np.ndarray | None, seed: int) -> Iterator[Floats]:
    """Yield how often each clip is drawn, [R, N], a part of the resamples at a time."""
    units = np.arange(num_clips) if units is None else units
    num, rng = int(units.max()) + 1, generator(seed, "bootstrap", 0)
    size = max(1, _AT_ONCE // num_clips)
    for start in range(0, NUM_RESAMPLES, size):
        rows = min(size, NUM_RESAMPLES - start)
        drawn = rng.integers(num, size=(rows, num)) + num * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num).reshape(rows, num)[:, units].astype(np.float64)
