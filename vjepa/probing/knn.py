"""Ask k nearest neighbours, which shows the geometry of features as they are; `protocol.py` chooses k."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from vjepa.probing.metrics import Floats

K_CHOICES = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07
_SIMILARITIES_AT_ONCE = 1 << 24  # 4 bytes each, and as many again while they are sorted


class Neighbours:
    """Hold clips whose targets are known: 1 for the class of a clip, or for each that it has; or a number.

    A neighbour votes with exp(similarity / 0.07), as in DINO (Caron et al. 2021, section 4.1; Wu et al. 2018). Choices
    of k that exceed the number of clips are left out.
    """

    def __init__(self, train: Floats, targets: csr_array, choices: Sequence[int]) -> None:
        """Keep `train` [N, D] with `targets` [N, C]."""
        self.targets = targets
        self.settings: list[float] = [k for k in sorted(choices) if k <= len(train)] or [len(train)]
        self.clips = _unit(train)

    def votes(self, features: Floats, settings: Sequence[float]) -> dict[float, tuple[Floats, Floats]]:
        """Ask about [N, D]: k -> sums of weight x target [N, C], and of weights [N, 1], for each k of `settings`."""
        distances, neighbours = self._nearest(_unit(features), int(max(settings)))
        return {k: self._vote(distances[:, : int(k)], neighbours[:, : int(k)]) for k in settings}

    def _nearest(self, features: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
        """Find the k nearest clips of unit vectors [N, D]: cosine distances and numbers, [N, k], nearest first."""
        distances, neighbours = [], []
        for part in np.array_split(features, -(-len(features) * len(self.clips) // _SIMILARITIES_AT_ONCE) or 1):
            found = 1 - part @ self.clips.T
            near = np.argpartition(found, k - 1, axis=1)[:, :k]
            near = np.take_along_axis(near, np.take_along_axis(found, near, 1).argsort(1), 1)
            distances.append(np.take_along_axis(found, near, 1))
            neighbours.append(near)
        return np.concatenate(distances), np.concatenate(neighbours)

    def _vote(self, distances: Floats, neighbours: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Sum up neighbours by cosine distances and numbers of clips, both [N, k], nearest first."""
        # relative to the nearest neighbour: the same vote, and no overflow
        weights = np.exp((distances[:, :1] - distances) / TEMPERATURE).astype(np.float64)
        num, k = weights.shape
        votes = csr_array(
            (weights.ravel(), neighbours.ravel(), np.arange(0, num * k + 1, k)), shape=(num, len(self.clips))
        )
        return (votes @ self.targets).toarray(), weights.sum(1, keepdims=True)


def _unit(features: Floats) -> Floats:
    """Scale each row of [N, D] to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units: Floats = features / np.where(lengths > 0, lengths, 1).astype(features.dtype)
    return units
