"""How masks are scored: mean intersection over union of kinds of things, and J and F as DAVIS has them
(Perazzi et al. 2016, section 4), with intervals over clips.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy import ndimage

from vjepa.probing import bootstrap
from vjepa.probing.bootstrap import Share
from vjepa.probing.metrics import Floats

_TOLERANCE: Final = 0.008  # of the diagonal: how far a boundary may be off


def confusion(truth: np.ndarray, predicted: np.ndarray, num: int) -> np.ndarray:
    """Count cells by what they are and what they are taken for: int64 [num, num]; truth -1 counts for nothing."""
    known = truth >= 0
    cells = num * truth[known].astype(np.int64) + predicted[known]
    return np.bincount(cells, minlength=num * num).reshape(num, num)


def mean_iou(counts: Floats) -> Floats:
    """Compute the mean intersection over union of the kinds that are there: [..., K, K] -> [...]; NaN for no cells."""
    iou = ious(counts)
    there = np.isfinite(iou)
    num = there.sum(-1)
    total = np.where(there, iou, 0.0).sum(-1)
    found: Floats = np.divide(total, num, out=np.full(num.shape, np.nan), where=num > 0)
    return found


def ious(counts: Floats) -> Floats:
    """Compute the intersection over union of each kind: [..., K, K] -> [..., K]; NaN for one that is not there."""
    both = np.diagonal(counts, axis1=-2, axis2=-1)
    either = counts.sum(-1) + counts.sum(-2) - both
    found: Floats = np.divide(both, either, out=np.full(both.shape, np.nan), where=counts.sum(-1) > 0)
    return found


def share_of_confusions(counts: np.ndarray, units: np.ndarray | None, seed: int = 0) -> Share | None:
    """Measure the mean IoU of all clips together, [N, K, K], with its interval over resampled clips or groups."""
    flat = counts.reshape(len(counts), -1).astype(np.float64)

    def statistic(weights: Floats) -> dict[str, Floats]:
        return {"miou": mean_iou((weights @ flat).reshape(-1, *counts.shape[1:]))}

    return bootstrap.measure(statistic, len(counts), units, seed)["miou"]


def share_of_means(sums: np.ndarray, nums: np.ndarray, units: np.ndarray | None, seed: int = 0) -> Share | None:
    """Measure the mean over all things of all clips, from sum [N] and number [N] of each clip, with its interval."""

    def statistic(weights: Floats) -> dict[str, Floats]:
        total = weights @ nums
        return {"mean": np.divide(weights @ sums, total, out=np.full(total.shape, np.nan), where=total > 0)}

    return bootstrap.measure(statistic, len(sums), units, seed)["mean"]


def jaccard(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Compute J: intersection over union of two masks, bool [H, W]; 1 where both are empty."""
    either = (truth | predicted).sum()
    return float((truth & predicted).sum() / either) if either else 1.0


def boundary(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Compute F: harmonic mean of precision and recall of boundaries, each allowed to be a little off.

    Of two masks, bool [H, W]. 1 where both are empty, 0 where one is.
    """
    near = int(np.ceil(_TOLERANCE * np.hypot(*truth.shape)))
    wanted, found = _outline(truth), _outline(predicted)
    if not wanted.any() or not found.any():
        return float(wanted.any() == found.any())
    precision = (found & _widened(wanted, near)).sum() / found.sum()
    recall = (wanted & _widened(found, near)).sum() / wanted.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _outline(mask: np.ndarray) -> np.ndarray:
    """Mark the pixels that differ from the one to their right, below, or both, as DAVIS does."""
    right, below, both = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1], below[:-1], both[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edges: np.ndarray = (mask ^ right) | (mask ^ below) | (mask ^ both)
    edges[-1], edges[:, -1] = mask[-1] ^ right[-1], mask[:, -1] ^ below[:, -1]
    edges[-1, -1] = False
    return edges


def _widened(outline: np.ndarray, near: int) -> np.ndarray:
    """Add what lies within `near` pixels."""
    y, x = np.mgrid[-near : near + 1, -near : near + 1]
    widened: np.ndarray = ndimage.binary_dilation(outline, x**2 + y**2 <= near**2)
    return widened
