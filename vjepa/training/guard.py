"""The guard over steps: where a loss or a gradient is not finite, or the loss a spike, no rank takes that step.

The host never waits for it.

A flag on the device, the same on all ranks, goes into the optimizer, whose kernel leaves weights, moments and their
count as they were (PyTorch's `found_inf`), and into the moving average. The host reads flags when they have come.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from vjepa import config
from vjepa.ranks import StepShare
from vjepa.records import ClipBatch
from vjepa.training.team import Team

_NAMED: Final = 16  # clips of a step at most


@dataclass(frozen=True)
class _Look:
    """Hold what the host will read of a step: [not finite, a spike, it was this rank, not finite in a row,
    skips so far].
    """

    step: int
    source: int
    clip_ids: list[Tensor]
    flags: Tensor
    arrived: Any  # an event of CUDA; None: they did not have to be copied

    @property
    def is_there(self) -> bool:
        """Tell whether reading the flags waits for nothing; from MPS it would."""
        return self.flags.device.type == "cpu" and (self.arrived is None or bool(self.arrived.query()))


class UpdateGuard:
    """Count the steps that are not taken, and name their clips."""

    def __init__(self, team: Team, device: torch.device, settings: config.Guard) -> None:
        self.team, self.settings = team, settings
        self.window = torch.full([settings.spike_window], math.nan, device=device)  # losses, the newest last
        self.in_row, self.total = torch.zeros(2, device=device).unbind()
        self.looks: deque[_Look] = deque()
        self.worst, self.num_in_row, self.num_skipped = 0, 0, 0

    def resume(self, num_in_row: int, num_skipped: int, losses: Sequence[float]) -> None:
        """Go on where a checkpoint stands. losses: of the window, as `losses` gave them."""
        self.in_row, self.total = torch.tensor([num_in_row, num_skipped]).to(self.in_row).unbind()
        self.num_in_row, self.num_skipped = num_in_row, num_skipped
        if losses:
            self.window[-len(losses) :] = torch.tensor(losses)

    def losses(self) -> list[float]:
        """Read the window, as far as it is filled; nothing where no spike is looked for."""
        return self.window[~self.window.isnan()].tolist() if self.settings.spike_std else []

    def check(self, step: int, batches: Sequence[ClipBatch], loss: Tensor, mine: Tensor, norm: Tensor) -> Tensor:
        """Tell on the device whether a step is skipped: 1.0, or 0.0, a scalar that is the same on all ranks.

        loss: of this rank. mine: bool, whether it is this rank that its clips spoil. norm: of the whole gradient.
        """
        found = torch.stack([~(loss.isfinite() & norm.isfinite()), self._is_spike(loss)])
        infinite, spike = self.team.most(found.float()).unbind()
        skipped = torch.maximum(infinite, spike)
        self.in_row = (self.in_row + 1) * infinite
        self.total = self.total + skipped
        flags, event = torch.stack([infinite, spike, mine.float(), self.in_row, self.total]), None
        if flags.device.type == "cuda":
            flags = torch.empty(len(flags), pin_memory=True).copy_(flags, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        clip_ids = [batch.clip_ids for batch in batches]
        self.looks.append(_Look(step, batches[0].source, clip_ids, flags, event))
        return skipped

    def _is_spike(self, loss: Tensor) -> Tensor:
        """Tell whether a loss stands out from those before: bool scalar on the device. Then it joins them, so that a
        loss that stays high is taken soon.
        """
        if self.settings.spike_std is None:
            return torch.zeros_like(loss, dtype=torch.bool)
        mean = self.team.mean({"loss": loss})["loss"]
        is_spike = mean > self.window.mean() + self.settings.spike_std * self.window.std()  # never where one is NaN
        self.window = torch.where(mean.isfinite(), torch.cat([self.window[1:], mean[None]]), self.window)
        return is_spike

    def look(self, wait: bool = False) -> int:
        """Read the flags that have come, or all of them; give the most steps in a row that were not finite so far."""
        while self.looks and (wait or self.looks[0].is_there):
            seen = self.looks.popleft()
            if seen.arrived is not None:
                seen.arrived.synchronize()
            infinite, spike, mine, self.num_in_row, self.num_skipped = (int(flag) for flag in seen.flags.tolist())
            self.worst = max(self.worst, self.num_in_row)
            if (infinite or spike) and (mine or self.team.leads):
                self._tell(seen, "not finite" if infinite else "its loss is a spike", bool(mine))
        return self.worst

    def _tell(self, seen: _Look, why: str, mine: bool) -> None:
        """Name a step that was skipped and, where it is this rank, its clips."""
        many = self.team.ranks.num > 1
        line = f"step {seen.step + 1}: {why}{f' on rank {self.team.ranks.rank}' if many and mine else ''}, skipped"
        if mine or not many:
            ids = [int(clip_id) for one in seen.clip_ids for clip_id in one]
            more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
            source = f" of data.mix.{seen.source - 1}" if seen.source else ""
            line += f"; its clips{source}: {', '.join(map(str, ids[:_NAMED]))}{more}"
        print(line, file=sys.stderr, flush=True)


def spoils(loss: Tensor, shares: Sequence[StepShare]) -> Tensor:
    """Tell whether it is the clips of this rank that make a loss not finite: bool scalar on the device.

    Terms that see all clips are spoilt on every rank; the embeddings that a share saw say whose were.
    """
    seen = [flags for share in shares for flags in share.finite]
    own_good = torch.stack([own for own, _ in seen]).all() if seen else loss.new_ones((), dtype=torch.bool)
    all_good = torch.stack([everyone for _, everyone in seen]).all() if seen else own_good
    return ~own_good | (all_good & ~loss.isfinite())
