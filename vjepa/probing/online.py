"""A k-NN probe during training: a small labelled split, read now and then, beside the line of the untrained encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from vjepa import config
from vjepa.data.loader import eval_loader
from vjepa.probing.evidence import Labelled, Split, read_splits
from vjepa.probing.features import Extractor, Features, encode, extract
from vjepa.probing.knn import Neighbours

K = 10


class OnlineProbe:
    """k-NN accuracy on selection clips, k = 10, from train clips; never on the clips that the closing report is
    measured on.
    """

    def __init__(self, settings: config.Config, untrained: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        """Raises UserError as `read_splits` does."""
        splits = read_splits(settings.data, settings.eval.labels, settings.eval.group)
        self.settings, self.device, self.dtype = settings, device, dtype
        self.train, self.selection = (
            _few(split, settings.eval.online_clips) for split in (splits.train, splits.selection)
        )
        self.random_init = {
            f"{name}_random_init": value for name, value in self._accuracies(untrained.to(device).eval()).items()
        }

    def measure_at(self, step: int, model: Any) -> dict[str, float]:
        """At the steps that `eval.every_steps` names, `knn` (the mean over labels) and, where there are several labels,
        `knn_<label>`,

        each beside that of the untrained encoder, `knn_random_init`. Nothing at other steps.
        """
        if step % (self.settings.eval.every_steps or step + 1):
            return {}
        encoder = getattr(model, self.settings.eval.encoder)
        training = encoder.training
        encoder.eval()
        found = self._accuracies(encoder)
        encoder.train(training)
        return {**found, **self.random_init}

    def _accuracies(self, encoder: nn.Module) -> dict[str, float]:
        extractors = {"trained": encode(encoder, self.device, self.dtype)}
        bank, seen = (self._extract(split, extractors) for split in (self.train, self.selection))
        found = {}
        for label in self.settings.eval.labels:
            train, selection = (
                Labelled.of(features, split.labels[label], name)
                for features, split, name in (
                    (bank, self.train, f"train, {label}"),
                    (seen, self.selection, f"selection, {label}"),
                )
            )
            neighbours = Neighbours(train.features, train.classes, [K])
            (votes,) = neighbours.probabilities(selection.features, neighbours.settings).values()
            found[f"knn_{label}"] = float(np.mean(neighbours.names[votes.argmax(1)] == selection.classes))
        return {"knn": float(np.mean(list(found.values()))), **(found if len(found) > 1 else {})}

    def _extract(self, split: Split, extractors: dict[str, Extractor]) -> Features:
        data = self.settings.data
        return extract(eval_loader(split.index, split.rows, data, self.settings.eval.batch, data.workers), extractors)[
            "trained"
        ]


def _few(split: Split, num: int) -> Split:
    """At most `num` rows, evenly among all."""
    places = np.unique(np.linspace(0, len(split.rows) - 1, min(num, len(split.rows))).astype(int))
    return Split(split.index, split.rows[places], split.labels)
