"""The records that cross rooms. Shapes: B clips, T frames, S pixels a side, N tokens, D features.

Importing this module loads no tensor library: the annotations are for readers and type checkers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TokenGrid:
    """The space-time lattice of tokens: `t` time slots of `h` rows and `w` columns, numbered in raster order."""

    t: int
    h: int
    w: int

    @property
    def num_tokens(self) -> int:
        return self.t * self.h * self.w

    @property
    def cells(self) -> int:
        """Number of tokens in one time slot."""
        return self.h * self.w


@dataclass(frozen=True)
class Clip:
    """One clip, ready to be batched.

    video: uint8 [3, T, S, S], RGB, upright, cropped.
    clip_id: where it came from: a row of the clip index.
    """

    video: torch.Tensor
    clip_id: int


@dataclass(frozen=True)
class ClipBatch:
    """What a worker delivers. It carries no label: none may touch pre-training; probes look labels up by clip id.

    video: uint8 [B, 3, T, S, S]; one token grid per batch.
    clip_ids: int64 [B], rows of the clip index; of a source with several, the rows of the first, then of the next.
    failures: rows that could not be read, as (clip_id, reason).
    num_replaced: clips of this batch that stand in for another.
    source: where all of its clips come from: its place in `Data.sources`, data.train first.
    """

    video: torch.Tensor
    clip_ids: torch.Tensor
    failures: tuple[tuple[int, str], ...] = ()
    num_replaced: int = 0
    source: int = 0

    def pin_memory(self) -> ClipBatch:
        """Called by the DataLoader of PyTorch before a copy to a GPU."""
        return replace(self, video=self.video.pin_memory(), clip_ids=self.clip_ids.pin_memory())


@dataclass(frozen=True)
class TokenMask:
    """Which tokens are seen and which are predicted; disjoint, and exact counts.

    context_ids: int64 [B, Kc], sorted.
    target_ids: int64 [B, num_targets * Kt], block after block, each sorted; blocks may overlap.
    num_targets: blocks that are predicted apart, each in a pass of its own from the same context (I-JEPA).
    """

    context_ids: torch.Tensor
    target_ids: torch.Tensor
    num_targets: int = 1

    def to(self, device: torch.device) -> TokenMask:
        """On `device`; a copy to a GPU starts from pinned memory, so that the host need not wait for it."""
        context, target = self.context_ids, self.target_ids
        if device.type == "cuda":
            context, target = context.pin_memory(), target.pin_memory()
        return TokenMask(context.to(device, non_blocking=True), target.to(device, non_blocking=True), self.num_targets)
