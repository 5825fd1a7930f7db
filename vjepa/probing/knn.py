"""k-nearest-neighbour probe: no training, so it shows the geometry of the features as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vjepa.probing.metrics import Classes, Floats
from vjepa.probing.sweep import Probed, choose

K_CHOICES = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07


def probe(train: Floats, train_classes: Classes, selection: Floats, selection_classes: Classes, val: Floats) -> Probed:
    """Classify `val` [Nv, D] by its nearest clips of `train` [N, D] in cosine similarity; k is chosen on `selection`
    [Ns, D].
    """
    neighbours = Neighbours(train, train_classes, K_CHOICES)
    votes = neighbours.probabilities(selection, neighbours.settings)
    k = choose({k: neighbours.names[share.argmax(1)] for k, share in votes.items()}, selection_classes)
    return Probed(k, neighbours.names[neighbours.probabilities(val, [k])[k].argmax(1)])


class Neighbours:
    """A bank of clips whose classes are known.

    A neighbour votes with exp(similarity / 0.07), as in DINO (Caron et al. 2021, section 4.1; Wu et al. 2018). Choices
    of k that exceed the bank are left out.
    """

    def __init__(self, train: Floats, classes: Classes, choices: Sequence[int]) -> None:
        """`train` [N, D] of `classes` [N]."""
        from sklearn.neighbors import NearestNeighbors  # a second that other probes need not wait for

        self.names, self.ids = np.unique(classes, return_inverse=True)
        self.settings: list[float] = [k for k in sorted(choices) if k <= len(train)] or [len(train)]
        self.bank = NearestNeighbors(metric="cosine", algorithm="brute").fit(train)

    def probabilities(self, features: Floats, settings: Sequence[float]) -> dict[float, Floats]:
        """[N, D] -> k -> shares of the vote [N, C], for each k of `settings`."""
        distances, neighbours = self.bank.kneighbors(features, n_neighbors=int(max(settings)))
        return {k: self._vote(distances[:, : int(k)], neighbours[:, : int(k)]) for k in settings}

    def _vote(self, distances: Floats, neighbours: NDArray[np.int64]) -> Floats:
        """Cosine distances and rows of the bank, both [N, k], nearest first."""
        # relative to the nearest neighbour: the same vote, and no overflow
        weights = np.exp((distances[:, :1] - distances) / TEMPERATURE)
        votes = np.zeros((len(distances), len(self.names)))
        np.add.at(votes, (np.arange(len(distances))[:, None], self.ids[neighbours]), weights)
        shares: Floats = votes / votes.sum(1, keepdims=True)
        return shares
