"""Averages over the tokens of a clip, before k-NN, a linear probe or a file of features has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from einops import rearrange
from torch import Tensor
from torch.nn import functional

from vjepa.errors import UserError
from vjepa.records import TokenGrid

_SIDE: Final = 4  # of `grid` without a number


@dataclass(frozen=True)
class Pooling:
    """Average the tokens of a clip over places: b (t h w) d -> b places d.

    kind: `mean` of all tokens; `slots`, of each time slot; `grid`, of each of `side` x `side` cells of each time slot;
    `all`: every token as it is. grid: that of the tokens, which `mean` does not look at.
    """

    kind: str = "mean"
    side: int = 1
    grid: TokenGrid = TokenGrid(1, 1, 1)  # noqa: RUF009 - it is frozen

    @classmethod
    def parse(cls, text: str, grid: TokenGrid | Sequence[int]) -> Pooling:
        """Read the words of --pool: `mean`, `slots`, `grid`, `grid:G` or `all`, of tokens on `grid`.

        Raises UserError for other words, and for cells finer than the tokens.
        """
        words = re.fullmatch(r"(mean|slots|grid|all)|(grid):([1-9]\d*)", text)
        if words is None:
            raise UserError(f"--pool {text}: give mean, slots, grid, a grid of another size such as grid:2, or all")
        kind, grid = words[1] or words[2], TokenGrid.of(grid)
        side = int(words[3] or _SIDE) if kind == "grid" else 1
        finest = min(grid.h, grid.w)
        if side > finest:
            raise UserError(
                f"--pool {text}: {side}x{side} cells are more than the {grid.h}x{grid.w} tokens of a time "
                f"slot; give grid:{finest} or less, or all"
            )
        return cls(kind, side, grid)

    def __str__(self) -> str:
        return f"grid:{self.side}" if self.kind == "grid" else self.kind

    @property
    def num_places(self) -> int:
        return {"mean": 1, "all": self.grid.num_tokens}.get(self.kind, self.grid.t * self.side**2)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Average b (t h w) d -> b places d, in raster order and fp32.

        Where cells do not divide the tokens, they overlap as those of adaptive pooling do.
        """
        tokens = tokens.float()
        if self.kind == "all":
            return tokens
        if self.kind == "mean":
            return tokens.mean(1, keepdim=True)
        slots = rearrange(tokens, "b (t h w) d -> (b t) d h w", t=self.grid.t, h=self.grid.h)
        return rearrange(functional.adaptive_avg_pool2d(slots, self.side), "(b t) d x y -> b (t x y) d", t=self.grid.t)


MEAN: Final = Pooling()
