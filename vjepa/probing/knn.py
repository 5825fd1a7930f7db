"""Vote by k nearest neighbours, which shows the geometry of features as they are; `protocol.py` chooses k."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vjepa.probing.metrics import Classes, Floats

K_CHOICES = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07
_SIMILARITIES_AT_ONCE = 1 << 24  # 4 bytes each, and as many again while they are sorted


class Neighbours:
    """Hold clips whose classes are known.

    A neighbour votes with exp(similarity / 0.07), as in DINO (Caron et al. 2021, section 4.1; Wu et al. 2018). Choices
    of k that exceed the number of clips are left out.
    """

    def __init__(self, train: Floats, classes: Classes, choices: Sequence[int]) -> None:
        """Keep `train` [N, D] of `classes` [N]."""
        self.names, self.ids = np.unique(classes, return_inverse=True)
        self.settings: list[float] = [k for k in sorted(choices) if k <= len(train)] or [len(train)]
        self.clips = _unit(train)

    def probabilities(self, features: Floats, settings: Sequence[float]) -> dict[float, Floats]:
        """Classify [N, D]: k -> shares of the vote [N, C], for each k of `settings`."""
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

    def _vote(self, distances: Floats, neighbours: NDArray[np.int64]) -> Floats:
        """Count votes from cosine distances and numbers of clips, both [N, k], nearest first -> shares [N, C]."""
        # relative to the nearest neighbour: the same vote, and no overflow
        weights = np.exp((distances[:, :1] - distances) / TEMPERATURE)
        votes = np.zeros((len(distances), len(self.names)))
        np.add.at(votes, (np.arange(len(distances))[:, None], self.ids[neighbours]), weights)
        shares: Floats = votes / votes.sum(1, keepdims=True)
        return shares


def _unit(features: Floats) -> Floats:
    """Scale each row of [N, D] to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units: Floats = features / np.where(lengths > 0, lengths, 1).astype(features.dtype)
    return units
