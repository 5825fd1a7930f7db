"""Choose the setting of a probe on selection clips alone; train a head for each setting, all in one pass over tokens.

Training goes in rounds, each twice as long as the one before, over which the learning rate falls to 0. After a round
the better half of the heads goes on. So no length has to be guessed, every round costs about the same, and the best
heads have trained the longest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vjepa.counter_rng import generator
from vjepa.models.attentive_pool import AttentiveClassifier
from vjepa.probing.attentive import Heads
from vjepa.probing.metrics import Classes

# the grid of V-JEPA 2 (K400, SSv2), and how far it may grow
LEARNING_RATES: Final = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
WEIGHT_DECAYS: Final = (0.01, 0.1, 0.4, 0.8)
MAX_STEPS: Final = 10_000
_WIDEST: Final = (1e-5, 5e-2)
_WIDER: Final = 3.0
_LARGEST_BATCH: Final = 256
_STEPS_PER_EPOCH: Final = 16  # at the least, as far as clips go: few clips must not mean few steps
_FIRST_ROUND: Final = 40  # steps
_WARMUP: Final = 10  # steps of a round
_PATIENCE: Final = 2  # rounds that bring nothing, though the last was as long as all before it
_BUDGET: Final = 400  # passes of one head over the train clips, all heads together: 20 heads for 20 epochs

Setting = dict[str, float]
Watch = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Grid:
    """Name one head for each learning rate and weight decay.

    learning_rates: None: those of V-JEPA 2, and further ones where the best is the largest or smallest. max_steps: of a
    head. batch: clips per step; None: up to 256, fewer where there are few clips.
    """

    learning_rates: tuple[float, ...] | None = None
    weight_decays: tuple[float, ...] | None = None
    max_steps: int = MAX_STEPS
    batch: int | None = None
    seed: int = 0

    @property
    def settings(self) -> list[Setting]:
        rates, decays = self.learning_rates or LEARNING_RATES, self.weight_decays or WEIGHT_DECAYS
        return [{"lr": lr, "weight_decay": decay} for lr, decay in product(rates, decays)]

    def batch_for(self, num_clips: int) -> int:
        return self.batch or max(1, min(_LARGEST_BATCH, num_clips // _STEPS_PER_EPOCH))

    def wider(self, leader: Setting, tried: Iterable[float]) -> list[Setting]:
        """Give the setting beyond `leader` where no learning rate of `tried` lies beyond it; none where it is given."""
        lr, rates = leader["lr"], list(tried)
        beyond = lr * _WIDER if lr >= max(rates) else lr / _WIDER if lr <= min(rates) else 0.0
        free = self.learning_rates is None and _WIDEST[0] <= beyond <= _WIDEST[1]
        return [{**leader, "lr": beyond}] if free else []


@dataclass(frozen=True)
class Clips:
    """Hand out the tokens of the clips that heads learn from.

    tokens: epoch number and places int64 [B] of clips -> [B, K, D] on the device of the heads; num_tokens: K. classes:
    int64 [n], there too.
    """

    tokens: Callable[[int, np.ndarray], Tensor]
    num_tokens: int
    classes: Tensor


@dataclass(frozen=True)
class Chosen:
    """Hold the best head at its best moment. tried: the best moment of each setting, the start first."""

    head: AttentiveClassifier
    setting: Setting
    tried: list[Setting]


def choose(predicted: Mapping[float, Classes], truth: Classes) -> float:
    """Find the setting with the most correct predictions on the selection clips [N]; the first of several that tie."""
    return max(predicted, key=lambda setting: int(np.sum(predicted[setting] == truth)))


def train(
    heads: Heads, grid: Grid, clips: Clips, judge: Callable[[Heads], list[tuple[float, float]]], watch: Watch = iter
) -> Chosen:
    """Train one head for each of `grid.settings` until none gets better, and give the best; the start counts.

    heads: as many, all equal. judge: each head's share of right answers on the selection clips, then the probability
    that it gives the true classes, which decides among equals. watch: wraps the batches of a round.
    Ends where two rounds brought nothing, at `grid.max_steps`, or where 20 heads had trained for 20 epochs.
    """
    settings, steps, length = grid.settings, 0, _FIRST_ROUND
    best, moment, head = judge(heads)[0], {"lr": 0.0, "weight_decay": 0.0, "steps": 0}, heads.head(0)
    tried = {(0.0, 0.0): (best, moment)}
    budget, stale = _BUDGET * -(-len(clips.classes) // grid.batch_for(len(clips.classes))), 0
    while stale < _PATIENCE and (length := min(length, grid.max_steps - steps, budget // len(settings))) > 0:
        run_round(heads, settings, grid, clips, range(steps, steps + length), watch)
        steps, budget, length = steps + length, budget - len(settings) * length, 2 * length
        found = judge(heads)
        for merit, setting in zip(found, settings, strict=True):
            key = setting["lr"], setting["weight_decay"]
            tried[key] = max(tried.get(key, ((-1.0, 0.0), {})), (merit, {**setting, "steps": steps}), key=_merit)
        order = sorted(range(len(found)), key=lambda number: found[number], reverse=True)
        stale += 1
        if found[order[0]] > best:
            best, moment, head, stale = found[order[0]], {**settings[order[0]], "steps": steps}, heads.head(order[0]), 0
        kept = order[: -(-len(order) // 2)]
        further = grid.wider(settings[kept[0]], (lr for lr, _ in tried if lr))
        heads.take([*kept, *kept[: len(further)]])
        settings = [*(settings[number] for number in kept), *further]
    return Chosen(head, moment, [{**setting, "accuracy": merit[0]} for merit, setting in tried.values()])


def run_round(
    heads: Heads, settings: Sequence[Setting], grid: Grid, clips: Clips, steps: range, watch: Watch = iter
) -> None:
    """Train each head by its setting, all on the same batches in the same order.

    steps: those of the round. The learning rate rises for a few steps, then falls to 0 on a cosine; AdamW starts anew.
    """
    groups = [
        {"params": one, "weight_decay": setting["weight_decay"]}
        for one, setting in zip(heads.parameters(), settings, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, fused=clips.classes.device.type in ("cpu", "cuda"))
    size, at_once = grid.batch_for(len(clips.classes)), heads.clips_at_once(clips.num_tokens)
    for step, (epoch, places) in enumerate(watch(batches(len(clips.classes), size, grid.seed, steps))):
        share = min(1, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / len(steps)))
        for group, setting in zip(optimizer.param_groups, settings, strict=True):
            group["lr"] = share * setting["lr"]
        heads.zero_gradients()
        for part in np.array_split(places, -(-len(places) // at_once)):
            classes = clips.classes[torch.from_numpy(part).to(clips.classes.device)]
            heads.add_gradients(clips.tokens(epoch, part), classes, len(part) / len(places))
        heads.parameters()  # which gives each head its gradients
        optimizer.step()


def batches(num_clips: int, size: int, seed: int, steps: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield epoch number and places of clips of each step: each clip once per epoch, in an order of (seed, epoch).

    The last batch of an epoch may be smaller.
    """
    per_epoch, last = -(-num_clips // size), -1
    for step in steps:
        epoch, number = divmod(step, per_epoch)
        if epoch != last:
            order, last = generator(seed, "probe_order", epoch).permutation(num_clips), epoch
        yield epoch, order[number * size : (number + 1) * size]


def _merit(one: tuple[tuple[float, float], Setting]) -> tuple[float, float]:
    return one[0]
