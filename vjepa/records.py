"""The records that cross rooms. Shapes: B clips, T frames of H x W pixels, N tokens, D features.

Importing this module loads no tensor library: the annotations are for readers and type checkers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vjepa.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TokenGrid:
    """Count the tokens of a video: `t` time slots of `h` rows and `w` columns, numbered in raster order.

    `encoder.grid(T, H, W)` gives that of a video of T frames of H x W pixels.
    """

    t: int
    h: int
    w: int

    @classmethod
    def of(cls, grid: TokenGrid | Sequence[int]) -> TokenGrid:
        """Take a grid as it is, or three numbers (t, h, w) as one. Raises UserError for anything else."""
        if isinstance(grid, TokenGrid):
            return grid
        if isinstance(grid, Sequence) and len(grid) == 3 and all(isinstance(size, int) and size > 0 for size in grid):
            return cls(*grid)
        raise UserError(f"grid: {grid!r} is not (time slots, rows, columns); encoder.grid(T, H, W) gives it")

    @property
    def num_tokens(self) -> int:
        return self.t * self.h * self.w

    @property
    def cells(self) -> int:
        """Count the tokens of one time slot."""
        return self.h * self.w


@dataclass(frozen=True)
class Clip:
    """Hold one clip, ready to be batched.

    video: uint8 [3, T, H, W], RGB, upright, cropped.
    clip_id: where it came from: a row of the clip index.
    actions: float32 [T - 1, A], what leads from each frame to the next; None where none are asked for.
    states: float32 [T, S], how things stood at each frame; None where no actions are asked for, or none are known.
    """

    video: torch.Tensor
    clip_id: int
    actions: torch.Tensor | None = None
    states: torch.Tensor | None = None


@dataclass(frozen=True)
class ClipBatch:
    """Hold what a worker delivers: clips of one token grid.

    It carries no label: none may touch pre-training, and probes look labels up by clip id.

    video: uint8 [B, 3, T, H, W].
    clip_ids: int64 [B], rows of the clip index; of a source with several, the rows of the first, then of the next.
    failures: rows that could not be read, as (clip_id, reason).
    num_replaced: clips of this batch that stand in for another.
    source: where all of its clips come from: its place in `Data.sources`, data.train first.
    actions: float32 [B, T - 1, A], states: float32 [B, T, S], as of `Clip`.
    """

    video: torch.Tensor
    clip_ids: torch.Tensor
    failures: tuple[tuple[int, str], ...] = ()
    num_replaced: int = 0
    source: int = 0
    actions: torch.Tensor | None = None
    states: torch.Tensor | None = None

    def pin_memory(self) -> ClipBatch:
        """Pin the memory of all tensors; the DataLoader of PyTorch calls it before a copy to a GPU."""
        tensors = {name: getattr(self, name) for name in ("video", "clip_ids", "actions", "states")}
        return replace(self, **{name: tensor.pin_memory() for name, tensor in tensors.items() if tensor is not None})


@dataclass(frozen=True)
class LatentBatch:
    """Hold what a `ClipBatch` is once its frames are features, each of a frame alone.

    features: [B, T, h, w, D]. actions: fp32 [B, T - 1, A], action k leads from frame k to the next; states: fp32
    [B, T, S], or None. The other fields are those of `ClipBatch`.
    """

    features: torch.Tensor
    actions: torch.Tensor
    states: torch.Tensor | None
    clip_ids: torch.Tensor
    failures: tuple[tuple[int, str], ...] = ()
    num_replaced: int = 0
    source: int = 0


@dataclass(frozen=True)
class Observed:
    """Hold what a method makes of B fixed clips under Q fixed masks, the same for all of them, to be measured.

    contexts: block -> [B, Q, D], features of the context encoder after it, each the mean over the tokens of a mask.
    targets: [B, N, P], what is predicted, of every token; of a method that predicts nothing, its features.
    predictions: of each mask set [B, K, P]; empty for a method that predicts nothing.
    target_ids: of each mask set int64 [K], the places of its predictions.
    """

    contexts: dict[int, torch.Tensor]
    targets: torch.Tensor
    predictions: tuple[torch.Tensor, ...] = ()
    target_ids: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class TokenMask:
    """Name the tokens that are seen and those that are predicted: disjoint sets of exact counts.

    context_ids: int64 [B, Kc], sorted.
    target_ids: int64 [B, num_targets * Kt], block after block, each sorted; blocks may overlap.
    num_targets: blocks that are predicted apart, each in a pass of its own from the same context (I-JEPA).
    """

    context_ids: torch.Tensor
    target_ids: torch.Tensor
    num_targets: int = 1

    def to(self, device: torch.device) -> TokenMask:
        """Copy to `device`, as `sent` does."""
        return TokenMask(sent(self.context_ids, device), sent(self.target_ids, device), self.num_targets)

    def rows(self, clips: slice) -> TokenMask:
        """Give the masks of some of the clips."""
        return TokenMask(self.context_ids[clips], self.target_ids[clips], self.num_targets)

    def expand(self, num_clips: int) -> TokenMask:
        """Give the mask of one clip to `num_clips` clips."""
        return TokenMask(
            self.context_ids.expand(num_clips, -1), self.target_ids.expand(num_clips, -1), self.num_targets
        )


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to `device`; to a GPU of CUDA from pinned memory, so that the host need not wait for it.

    Elsewhere the copy is there at the return: MPS would go on reading memory of the host that is given to others by
    then (pytorch/pytorch#189690).
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
