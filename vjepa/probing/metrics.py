"""Measure an interval of a share, and two signs of collapse. Pure numpy."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Classes = NDArray[np.str_]

# Below either bound the features no longer tell clips apart, whatever the loss says.
COLLAPSED_STD = 0.05
COLLAPSED_RANK = 3.0


def wilson_interval(correct: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """Compute the confidence interval of a share (Wilson 1927).

    Unlike the normal one it stays within 0..1 and is honest near both ends.
    """
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    # the interval holds the share and stays within 0..1; rounding must not break either
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def is_collapsed(effective_rank: float, feature_std: float) -> bool:
    """Tell whether features use fewer than COLLAPSED_RANK directions, or spread less than COLLAPSED_STD."""
    return effective_rank < COLLAPSED_RANK or feature_std < COLLAPSED_STD
