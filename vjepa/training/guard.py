"""The guard over steps: where a loss or a gradient is not finite, no rank takes that step. The host never waits for it.

A flag on the device, the same on all ranks, goes into the optimizer, whose kernel leaves weights, moments and their
count as they were (PyTorch's `found_inf`), and into the moving average. The host reads flags when they have come.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from vjepa.ranks import StepShare
from vjepa.records import ClipBatch
from vjepa.training.team import Team

_NAMED: Final = 16  # clips of a step at most


@dataclass(frozen=True)
class _Look:
    """Hold what the host will read of a step: [skipped, it was this rank, skips in a row, skips so far]."""

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

    def __init__(self, team: Team, device: torch.device) -> None:
        self.team = team
        self.in_row, self.total = torch.zeros(2, device=device).unbind()
        self.looks: deque[_Look] = deque()
        self.worst, self.num_in_row, self.num_skipped = 0, 0, 0

    def resume(self, num_in_row: int, num_skipped: int) -> None:
        """Go on counting where a checkpoint stands."""
        self.in_row, self.total = torch.tensor([num_in_row, num_skipped]).to(self.in_row).unbind()
        self.num_in_row, self.num_skipped = num_in_row, num_skipped

    def check(self, step: int, batches: Sequence[ClipBatch], loss: Tensor, mine: Tensor, norm: Tensor) -> Tensor:
        """Tell on the device whether a step is skipped: 1.0, or 0.0, a scalar that is the same on all ranks.

        loss: of this rank. mine: bool, whether it is this rank that its clips spoil. norm: of the whole gradient.
        """
        skipped = self.team.most((~(loss.isfinite() & norm.isfinite())).float())
        self.in_row = (self.in_row + 1) * skipped
        self.total = self.total + skipped
        flags, event = torch.stack([skipped, mine.float(), self.in_row, self.total]), None
        if flags.device.type == "cuda":
            flags = torch.empty(4, pin_memory=True).copy_(flags, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        clip_ids = [batch.clip_ids for batch in batches]
        self.looks.append(_Look(step, batches[0].source, clip_ids, flags, event))
        return skipped

    def look(self, wait: bool = False) -> int:
        """Read the flags that have come, or all of them; give the most skips in a row so far."""
        while self.looks and (wait or self.looks[0].is_there):
            seen = self.looks.popleft()
            if seen.arrived is not None:
                seen.arrived.synchronize()
            skipped, mine, self.num_in_row, self.num_skipped = (int(flag) for flag in seen.flags.tolist())
            self.worst = max(self.worst, self.num_in_row)
            if skipped and (mine or self.team.leads):
                self._tell(seen, bool(mine))
        return self.worst

    def _tell(self, seen: _Look, mine: bool) -> None:
        """Name a step that was skipped and, where it is this rank, its clips."""
        many = self.team.ranks.num > 1
        line = f"step {seen.step + 1}: not finite{f' on rank {self.team.ranks.rank}' if many and mine else ''}, skipped"
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
