"""A k-NN probe during training: a small labelled split, read now and then, beside the line of the untrained encoder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch

from vjepa import config
from vjepa.models.encoder import Encoder
from vjepa.probing.banks import Extractor
from vjepa.probing.closing import labelled, split_banks
from vjepa.probing.comparison import TRAINED
from vjepa.probing.extractors import Readout, encoder_extractor, untrained_extractor
from vjepa.probing.protocol import ProbeMethod, fit_probe
from vjepa.probing.splits import Split, read_splits
from vjepa.probing.tasks import of_run
from vjepa.ranks import ONE_RANK, Ranks

METHOD = ProbeMethod("knn", choices=(10,))
_HALF = "knn_half"


class OnlineProbe:
    """Measure k-NN accuracy (R2 of numbers, mAP of many classes) on selection clips, k = 10, from train clips.

    It never reads the clips that the closing table is measured on, and it draws nothing: equal weights give equal
    numbers, in a resumed run too.
    """

    def __init__(
        self,
        data: config.Data,
        wanted: config.Eval,
        encoder: Encoder,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        ranks: Ranks = ONE_RANK,
        whole: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Watch `encoder`, trained on `device` from the start that `seed` gave. Raises UserError as `read_splits`.

        ranks: processes that share the passes. whole: within it each of them has all weights of `encoder`.
        """
        self.ranks, self.whole = ranks, whole
        splits = read_splits(data, wanted.labels, wanted.group)
        num = wanted.online_clips
        self.data, self.wanted, self.encoder = data, wanted, encoder
        self.tasks = of_run(wanted, vars(splits))
        self.splits = {"train": _few(splits.train, num), "selection": _few(splits.selection, num)}
        self.readout = Readout((encoder.depth - 1,), ("pooled",), device, dtype, channels=data.channels)
        found = self._measure(untrained_extractor(encoder, self.readout, seed))
        self.random_init = {f"{name}_random_init": value for name, value in found.items() if name != _HALF}

    def measure_at(self, step: int) -> dict[str, float]:
        """Measure the encoder at the steps that `eval.every_steps` names; nothing at other steps.

        Returns `knn` (the mean over labels) and, of several labels, `knn_<label>`; each beside that of the untrained
        encoder, `knn_random_init`. `knn_half` is half the 95 % interval of `knn`, as if labels were one: their mean.
        """
        if step % (self.wanted.every_steps or step + 1):
            return {}
        training = self.encoder.training
        self.encoder.eval()
        with self.whole():
            found = self._measure(encoder_extractor(self.encoder, "", self.readout))
        self.encoder.train(training)
        return {**found, **self.random_init}

    def merit(self, found: dict[str, float]) -> float:
        """Tell by what was measured how good a checkpoint is."""
        return found["knn"]

    def _measure(self, extractor: Extractor) -> dict[str, float]:
        banks = split_banks(self.splits, self.data, self.wanted.batch, {TRAINED: extractor}, self.ranks)
        found, halves = {}, []
        for label, task in self.tasks.items():
            train, selection = labelled(self.splits, banks, TRAINED, label)
            fitted = fit_probe(replace(METHOD, task=task), train, selection, [selection])
            answers = fitted.answers[0], fitted.names, selection.labels
            found[f"knn_{label}"] = task.value(*answers)
            halves.append(task.half(*answers))
        of_labels = found if len(found) > 1 else {}
        return {"knn": float(np.mean(list(found.values()))), **of_labels, _HALF: float(np.mean(halves))}


def _few(split: Split, num: int) -> Split:
    """Take at most `num` rows, evenly among all."""
    places = np.unique(np.linspace(0, len(split.rows) - 1, min(num, len(split.rows))).astype(int))
    return replace(split, rows=split.rows[places])
