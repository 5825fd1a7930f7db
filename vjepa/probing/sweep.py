"""Choose the setting of a probe on selection clips alone; train a head for each setting in one pass over tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import torch
from torch import Tensor

from vjepa.counter_rng import generator
from vjepa.probing.attentive import Heads
from vjepa.probing.metrics import Classes

# the grid of V-JEPA 2 (K400, SSv2)
LEARNING_RATES: Final = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
WEIGHT_DECAYS: Final = (0.01, 0.1, 0.4, 0.8)
_LARGEST_BATCH: Final = 256
_STEPS_PER_EPOCH: Final = 16  # at the least, as far as clips go: few clips must not mean few steps


@dataclass(frozen=True)
class Grid:
    """Name one head for each learning rate and weight decay; the rate falls to 0 on a cosine, without warm-up.

    batch: clips per step; None: up to 256, fewer where there are few clips.
    """

    learning_rates: tuple[float, ...] = LEARNING_RATES
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    epochs: int = 20
    batch: int | None = None
    seed: int = 0

    @property
    def settings(self) -> list[dict[str, float]]:
        return [{"lr": lr, "weight_decay": decay} for lr, decay in product(self.learning_rates, self.weight_decays)]

    def batch_for(self, num_clips: int) -> int:
        return self.batch or max(1, min(_LARGEST_BATCH, num_clips // _STEPS_PER_EPOCH))


def choose(predicted: Mapping[float, Classes], truth: Classes) -> float:
    """Find the setting with the most correct predictions on the selection clips [N]; the first of several that tie."""
    return max(predicted, key=lambda setting: int(np.sum(predicted[setting] == truth)))


def train(
    heads: Heads,
    grid: Grid,
    num_clips: int,
    tokens: Callable[[int, np.ndarray], Tensor],
    num_tokens: int,
    classes: Tensor,
    watch: Callable[[Iterable[tuple[int, np.ndarray]]], Iterable[tuple[int, np.ndarray]]] = iter,
) -> None:
    """Train one head for each of `grid.settings`, all on the same batches in the same order.

    tokens: epoch number and places int64 [B] of clips -> [B, K, D] on the device of the heads; num_tokens: K. classes:
    int64 [num_clips], there too.
    watch: wraps the passing of batches.
    """
    parameters = heads.parameters()
    fused = classes.device.type in ("cpu", "cuda")
    groups = [
        {"params": one, "lr": s["lr"], "weight_decay": s["weight_decay"]}
        for one, s in zip(parameters, grid.settings, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, fused=fused)
    size, at_once = grid.batch_for(num_clips), heads.clips_at_once(num_tokens)
    total = grid.epochs * -(-num_clips // size)
    for step, (epoch, places) in enumerate(watch(batches(num_clips, size, grid))):
        for group, setting in zip(optimizer.param_groups, grid.settings, strict=True):
            group["lr"] = setting["lr"] * 0.5 * (1 + math.cos(math.pi * step / total))
        heads.zero_gradients()
        for part in np.array_split(places, -(-len(places) // at_once)):
            heads.add_gradients(
                tokens(epoch, part), classes[torch.from_numpy(part).to(classes.device)], len(part) / len(places)
            )
        heads.parameters()  # which gives each head its gradients
        optimizer.step()


def batches(num_clips: int, size: int, grid: Grid) -> Iterator[tuple[int, np.ndarray]]:
    """Yield epoch number and places of clips: each once per epoch, in an order drawn by (seed, epoch).

    The last batch of an epoch may be smaller.
    """
    for epoch in range(grid.epochs):
        order = generator(grid.seed, "probe_order", epoch).permutation(num_clips)
        for start in range(0, num_clips, size):
            yield epoch, order[start : start + size]
