"""Measure an interval of a share."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Texts = NDArray[np.str_]


def wilson_interval(correct: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """Compute the confidence interval of a share (Wilson 1927).

    Unlike the normal one it stays within 0..1 and is honest near both ends.
    """
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    # the interval holds the share and stays within 0..1; rounding must not break either
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
