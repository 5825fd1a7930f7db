"""Choose the setting of a probe on selection clips alone; train a head for each setting, all in one pass over tokens.

Training goes in rounds, each twice as long as the one before, over which the learning rate falls to 0. After a round
the better half of the heads goes on. So no length has to be guessed, every round costs about the same, and the best
heads have trained the longest.
"""

from __future__ import annotations

import math
from collections import Counter
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

# the grid of V-JEPA 2 (K400, SSv2), and how far it may grow
LEARNING_RATES: Final = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
WEIGHT_DECAYS: Final = (0.01, 0.1, 0.4, 0.8)
MAX_STEPS: Final = 10_000
_WIDEST: Final = (1e-5, 5e-2)
_WIDER: Final = 3.0
_LARGEST_BATCH: Final = 256
_STEPS_PER_EPOCH: Final = 16  # at the least, as far as clips go: few clips must not mean few steps
_FIRST_ROUND: Final = 20  # steps
_WARMUP: Final = 10  # steps of a round
_PATIENCE: Final = 2  # rounds that bring nothing, though the last was as long as all before it
_LEAST_STEPS: Final = 600  # of the best heads, for attention is slow to form
# passes over the train clips times heads, where reading the tokens counts as a head: about the CPU time of 20 heads for
# 20 epochs, whose larger products are cheaper
_BUDGET: Final = 360

Setting = dict[str, float]
# the criterion on the selection clips, then how sure the answers are, which decides among equals; of classes the share
# of right answers, then the mean probability of the true ones
Merit = tuple[float, float]
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

    tokens: epoch number and places int64 [B] of clips -> [B, K, D] on the device of the heads; num_tokens: K. targets:
    what they teach, int64 [n] or fp32 [n, C], there too.
    """

    tokens: Callable[[int, np.ndarray], Tensor]
    num_tokens: int
    targets: Tensor


@dataclass(frozen=True)
class Chosen:
    """Hold the best head at its best moment. tried: the best moment of each setting, the start first."""

    head: AttentiveClassifier
    setting: Setting
    tried: list[Setting]


def choose(merits: Mapping[float, Merit]) -> float:
    """Find the setting that is best by the criterion on the selection clips; the first of several that tie."""
    return max(merits, key=lambda setting: merits[setting][0])


def train(
    heads: Heads,
    grid: Grid,
    clips: Clips,
    judge: Callable[[Heads], list[Merit]],
    watch: Watch = iter,
    criterion: str = "accuracy",
) -> Chosen:
    """Train one head for each of `grid.settings` until none gets better, and give the best; the start counts.

    heads: as many, all equal. judge: gives the merit of each. watch: wraps the batches of a round. criterion: names
    what the first of a merit is.
    Ends where two rounds brought nothing, at `grid.max_steps`, or at the cost of 20 heads that train for 20 epochs.
    """
    settings, steps, length, stale = grid.settings, 0, _FIRST_ROUND, 0
    per_epoch = max(_STEPS_PER_EPOCH, -(-len(clips.targets) // grid.batch_for(len(clips.targets))))
    budget = _BUDGET * per_epoch  # heads x steps
    best, chosen, head = judge(heads)[0], {"lr": 0.0, "weight_decay": 0.0, "steps": 0}, heads.head(0)
    tried = {(0.0, 0.0): (best, chosen)}
    while stale < _PATIENCE or steps < _LEAST_STEPS:
        length = min(length, grid.max_steps - steps, budget // (1 + len(settings)))
        if length == 0:
            break
        run_round(heads, settings, grid, clips, range(steps, steps + length), watch)
        steps, budget, stale = steps + length, budget - (1 + len(settings)) * length, stale + 1
        merits, moments = judge(heads), [{**setting, "steps": steps} for setting in settings]
        for merit, moment in zip(merits, moments, strict=True):
            key = moment["lr"], moment["weight_decay"]
            if key not in tried or merit > tried[key][0]:
                tried[key] = merit, moment
        kept = survivors(settings, merits)
        if merits[kept[0]] > best:
            best, chosen, head, stale = merits[kept[0]], moments[kept[0]], heads.head(kept[0]), 0
        further = grid.wider(settings[kept[0]], (lr for lr, _ in tried if lr))
        heads.take([*kept, *kept[: len(further)]])
        settings, length = [*(settings[number] for number in kept), *further], 2 * length
    return Chosen(head, chosen, [{**moment, criterion: merit[0]} for merit, moment in tried.values()])


def survivors(settings: Sequence[Setting], merits: Sequence[Merit]) -> list[int]:
    """Number the heads that go on, the best first: half of them, as evenly as can be from all learning rates.

    Early rounds say little about a learning rate: attention forms late, and then quickly, at a large one.
    """
    order = sorted(range(len(merits)), key=lambda number: merits[number], reverse=True)
    place, seen = dict[int, int](), Counter[float]()
    for number in order:
        lr = settings[number]["lr"]
        place[number] = seen[lr]
        seen[lr] += 1
    kept = set(sorted(order, key=lambda number: place[number])[: -(-len(order) // 2)])
    return [number for number in order if number in kept]


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
    optimizer = torch.optim.AdamW(groups, fused=clips.targets.device.type in ("cpu", "cuda"))
    size, at_once = grid.batch_for(len(clips.targets)), heads.clips_at_once(clips.num_tokens)
    for step, (epoch, places) in enumerate(watch(batches(len(clips.targets), size, grid.seed, steps))):
        share = min(1, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / len(steps)))
        for group, setting in zip(optimizer.param_groups, settings, strict=True):
            group["lr"] = share * setting["lr"]
        heads.zero_gradients()
        for part in np.array_split(places, -(-len(places) // at_once)):
            targets = clips.targets[torch.from_numpy(part).to(clips.targets.device)]
            heads.add_gradients(clips.tokens(epoch, part), targets, len(part) / len(places))
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
