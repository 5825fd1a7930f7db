"""What a trial is worth, read off what the log says of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from vjepa.health.verdict import Row

ScoreName = Literal["without labels", "k-NN"]


def without_labels(row: Row) -> float:
    """Score features that no label is known for."""
    return row["health/effective_rank"]


def by_labels(row: Row) -> float:
    """Score by the online probe: k-NN accuracy on selection clips, the mean over labels."""
    return row["knn"]


SCORES: Final[dict[ScoreName, Callable[[Row], float]]] = {"without labels": without_labels, "k-NN": by_labels}
