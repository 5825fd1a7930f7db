"""The one door of this room: `plan` the mask sets of a run for a grid, then `draw` them for the clips of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from vjepa import config
from vjepa.counter_rng import generator
from vjepa.errors import UserError
from vjepa.masking import ijepa, multiblock, schedule, tube, uniform
from vjepa.ranks import ALONE, StepShare
from vjepa.records import TokenGrid, TokenMask

Draw = Callable[[Any, TokenGrid, Sequence[np.random.Generator]], TokenMask]
DRAW: Final[dict[str, Draw]] = {
    "tube": tube.draw,
    "random": uniform.draw,
    "multiblock": multiblock.draw,
    "ijepa": ijepa.draw,
}


@dataclass(frozen=True)
class MaskPlan:
    """Hold mask sets that are possible on `grid`. Every clip of a batch gets one mask of each set."""

    masks: tuple[config.Mask, ...]
    grid: TokenGrid

    @property
    def has_constant_counts(self) -> bool:
        """Tell whether every step has as many tokens as any other: then kernels may be compiled for these shapes."""
        return all(
            getattr(mask, "final_ratio", None) is None and getattr(mask, "trim", "uniform") == "uniform"
            for mask in self.masks
        )

    def draw(
        self, num_clips: int, seed: int, first_sample: int, step: int, total_steps: int, share: StepShare = ALONE
    ) -> list[TokenMask]:
        """Draw one TokenMask per set for clips number `first_sample` .. `first_sample + num_clips - 1` of the run.

        The mask of a clip is a function of (seed, its number, the set's place), whatever the batch or the rank it is
        in; only `trim: raster` looks at the batch. `step` of `total_steps` decides the ratio of sets that have a
        `final_ratio`. share: the part of a step; clips are then those of this part of the samples from `first_sample`.
        """
        drawn, own = [], slice(share.place * num_clips, (share.place + 1) * num_clips)
        for place, mask in enumerate(self.masks):
            samples = range(first_sample, first_sample + num_clips * share.num)
            raster = getattr(mask, "trim", "uniform") == "raster"
            rngs = [generator(seed, "masks", (n << 4) + place) for n in (samples if raster else samples[own])]
            found = DRAW[mask.kind](schedule.at_step(mask, step, total_steps), self.grid, rngs)
            drawn.append(found.rows(own) if raster else found)
        return drawn


def plan(masks: Sequence[config.Mask], grid: TokenGrid | Sequence[int]) -> MaskPlan:
    """Plan the mask sets of a run on a grid (t, h, w), proved possible by drawing once; repeated calls cost nothing.

    A run of images and clips plans both of its grids. Raises UserError that names `masks.N.key`.
    """
    return _plan(tuple(masks), TokenGrid.of(grid))


@lru_cache(maxsize=64)
def _plan(masks: tuple[config.Mask, ...], grid: TokenGrid) -> MaskPlan:
    for place, mask in enumerate(masks):
        try:
            DRAW[mask.kind](mask, grid, [generator(0, "masks", 0)])
        except UserError as error:
            raise UserError(f"masks.{place}.{error}") from None
    return MaskPlan(masks, grid)
