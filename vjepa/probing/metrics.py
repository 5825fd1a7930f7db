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


def effective_rank(features: Floats) -> float:
    """Count the directions that the features [N, D] use, by the entropy of the singular values of the centred features.

    RankMe (Garrido et al. 2023, eq. 1): exp of the entropy of the normalised singular values. Centred here, so that a
    mean shared by all clips counts for nothing. From 1 to min(N - 1, D), and 0 where all rows are equal up to rounding.
    """
    values = np.linalg.svd(features - features.mean(0), compute_uv=False)
    rounding = np.linalg.norm(features) * max(features.shape) * np.finfo(np.float32).eps
    share = values[values > rounding]
    if not len(share):
        return 0.0
    share = share / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def feature_std(features: Floats) -> float:
    """Compute the standard deviation over clips, mean over dimensions, of features [N, D] scaled to length sqrt(D).

    The collapse check of SimSiam (Chen & He 2021, section 4.1): 0 where every clip has the same feature, about 1 where
    features spread in all directions.
    """
    length = np.linalg.norm(features, axis=1, keepdims=True)
    scaled = features / np.maximum(length, np.finfo(np.float32).tiny) * sqrt(features.shape[1])
    return float(scaled.std(0).mean())


def is_collapsed(effective_rank: float, feature_std: float) -> bool:
    """Tell whether features use fewer than COLLAPSED_RANK directions, or spread less than COLLAPSED_STD."""
    return effective_rank < COLLAPSED_RANK or feature_std < COLLAPSED_STD
