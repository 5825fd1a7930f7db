"""Vote by k nearest neighbours, which shows the geometry of features as they are; `protocol.py` chooses k."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from vjepa.probing.metrics import Classes, Floats

K_CHOICES = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07


class Neighbours:
    """Hold clips whose classes are known.

    A neighbour votes with exp(similarity / 0.07), as in DINO (Caron et al. 2021, section 4.1; Wu et al. 2018). Choices
    of k that exceed the number of clips are left out.
    """

    def __init__(self, train: Floats, classes: Classes, choices: Sequence[int]) -> None:
        """Keep `train` [N, D] of `classes` [N]."""
        self.names, self.ids = np.unique(classes, return_inverse=True)
        self.settings: list[float] = [k for k in sorted(choices) if k <= len(train)] or [len(train)]
        self.clips = NearestNeighbors(metric="cosine", algorithm="brute").fit(train)

    def probabilities(self, features: Floats, settings: Sequence[float]) -> dict[float, Floats]:
        """Classify [N, D]: k -> shares of the vote [N, C], for each k of `settings`."""
        distances, neighbours = self.clips.kneighbors(features, n_neighbors=int(max(settings)))
        return {k: self._vote(distances[:, : int(k)], neighbours[:, : int(k)]) for k in settings}

    def _vote(self, distances: Floats, neighbours: NDArray[np.int64]) -> Floats:
        """Count votes from cosine distances and numbers of clips, both [N, k], nearest first -> shares [N, C]."""
        # relative to the nearest neighbour: the same vote, and no overflow
        weights = np.exp((distances[:, :1] - distances) / TEMPERATURE)
        votes = np.zeros((len(distances), len(self.names)))
        np.add.at(votes, (np.arange(len(distances))[:, None], self.ids[neighbours]), weights)
        shares: Floats = votes / votes.sum(1, keepdims=True)
        return shares
