"""The layers between pooled features and embeddings: LeJEPA's projector, VICReg's expander.

Frozen encoders are used without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from vjepa.models.layers import LayerNorm, initialise


def make_projector(widths: Sequence[int]) -> nn.Sequential:
    """Make a map [..., widths[0]] -> [..., widths[-1]] of linear layers, a norm and a GELU between.

    A single width gives the identity. A norm over features where the papers have one over the batch, so that an
    embedding depends on its clip alone, on any number of ranks.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [LayerNorm(before), nn.GELU()] if layers else []
        layers.append(nn.Linear(before, after))
    projector = nn.Sequential(*layers)
    initialise(projector)
    return projector
