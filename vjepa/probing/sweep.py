"""How a probe chooses its setting: on the selection clips, once, never on the clips that it is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vjepa.probing.metrics import Classes


@dataclass(frozen=True)
class Probed:
    """What a probe answers.

    setting: the k or C that did best on the selection clips.
    predicted: classes [N] of the validation clips with that setting. No probe is given their labels.
    """

    setting: float
    predicted: Classes


def choose(predicted: Mapping[float, Classes], truth: Classes) -> float:
    """The setting with the most correct predictions on the selection clips [N]; the first of several that tie."""
    return max(predicted, key=lambda setting: int(np.sum(predicted[setting] == truth)))
