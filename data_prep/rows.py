"""Which rows of an index are meant, usable or not."""

from __future__ import annotations

import numpy as np

from vjepa.config.row_filter import Where, quoted
from vjepa.data.clip_index import ClipIndex


def matching(index: ClipIndex, where: Where) -> np.ndarray:
    """Tell which rows have a wanted value in each column: bool [n]. Raises UserError for an unknown column."""
    kept = np.ones(len(index), dtype=bool)
    for name in where:
        kept &= np.isin(np.arange(len(index)), index.find(name, _values(where, name)))
    return kept


def written(where: Where) -> str:
    """Write a filter as it is given on a command line."""
    return " ".join(f"{name}={','.join(map(quoted, _values(where, name)))}" for name in where)


def _values(where: Where, name: str) -> list[str]:
    wanted = where[name]
    return wanted if isinstance(wanted, list) else [wanted]
