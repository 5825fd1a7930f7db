"""k-nearest-neighbour probe: no training, so it shows the geometry of the features as they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from vjepa.probing.metrics import Classes, Floats
from vjepa.probing.sweep import Probed, choose

K_CHOICES = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07


def probe(train: Floats, train_classes: Classes, selection: Floats, selection_classes: Classes, val: Floats) -> Probed:
    """Classify `val` [Nv, D] by its nearest clips of `train` [N, D] in cosine similarity; k is chosen on `selection` [Ns, D].

    A neighbour votes with exp(similarity / 0.07), as in DINO (Caron et al. 2021, section 4.1; Wu et al. 2018). Choices
    of k that exceed N are left out.
    """
    choices = [k for k in K_CHOICES if k <= len(train)]
    bank = NearestNeighbors(n_neighbors=choices[-1], metric="cosine", algorithm="brute").fit(train)
    near_selection, near_val = bank.kneighbors(selection), bank.kneighbors(val)
    k = choose({k: _vote(near_selection, train_classes, k) for k in choices}, selection_classes)
    return Probed(k, _vote(near_val, train_classes, int(k)))


def classify(train: Floats, train_classes: Classes, features: Floats, k: int) -> Classes:
    """Classes [M] of `features` [M, D] by their k nearest clips of `train` [N, D], as in `probe`; all of them where k > N."""
    k = min(k, len(train))
    return _vote(NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(train).kneighbors(features), train_classes, k)


def _vote(near: tuple[Floats, NDArray[np.int64]], classes: Classes, k: int) -> Classes:
    """Cosine distances and rows of the bank, both [N, K], nearest first -> classes [N] by the weighted vote of the first k."""
    distances, neighbours = near
    names, ids = np.unique(classes, return_inverse=True)
    # relative to the nearest neighbour: the same vote, and no overflow
    weights = np.exp((distances[:, :1] - distances[:, :k]) / TEMPERATURE)
    votes = np.zeros((len(distances), len(names)))
    np.add.at(votes, (np.arange(len(distances))[:, None], ids[neighbours[:, :k]]), weights)
    predicted: Classes = names[votes.argmax(1)]
    return predicted
