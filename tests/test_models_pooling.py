from __future__ import annotations

import math

import pytest
import torch

from vjepa.errors import UserError
from vjepa.models.pooling import MEAN, Pooling
from vjepa.records import TokenGrid

pytestmark = pytest.mark.fast
GRID = TokenGrid(3, 5, 6)


def cells(size: int, side: int) -> list[range]:
    """Rows of each cell: from the floor of its start to the ceiling of its end."""
    return [range(size * i // side, math.ceil(size * (i + 1) / side)) for i in range(side)]


def twin(tokens: torch.Tensor, side: int) -> torch.Tensor:
    slots = tokens.unflatten(1, (GRID.t, GRID.h, GRID.w))
    places = [
        slots[:, t][:, list(rows)][:, :, list(columns)].mean((1, 2))
        for t in range(GRID.t)
        for rows in cells(5, side)
        for columns in cells(6, side)
    ]
    return torch.stack(places, 1)


@pytest.mark.parametrize(
    ("pool", "side"), [("slots", 1), ("grid:1", 1), ("grid:2", 2), ("grid:3", 3), ("grid", 4), ("grid:5", 5)]
)
def test_places_are_means_of_their_tokens(pool: str, side: int) -> None:
    pooling, tokens = Pooling.parse(pool, GRID), torch.randn(2, GRID.num_tokens, 7)
    found = pooling(tokens)
    torch.testing.assert_close(found, twin(tokens, side))
    assert found.shape[1] == pooling.num_places == 3 * side**2
    assert str(pooling) == ("grid:4" if pool == "grid" else pool) and Pooling.parse(str(pooling), GRID) == pooling
    torch.testing.assert_close(pooling(torch.cat([tokens, 2 * tokens], -1)), torch.cat([found, 2 * found], -1))


def test_all_tokens_and_their_mean() -> None:
    tokens = torch.randn(2, GRID.num_tokens, 7)
    every, mean = Pooling.parse("all", GRID), Pooling.parse("mean", GRID)
    assert torch.equal(every(tokens), tokens) and every.num_places == GRID.num_tokens
    assert torch.equal(mean(tokens), tokens.mean(1, keepdim=True)) and mean.num_places == 1
    assert torch.equal(MEAN(tokens), mean(tokens))
    assert mean(tokens.half()).dtype is torch.float32  # sums of many tokens are not taken in half precision


@pytest.mark.parametrize("pool", ["none", "grid:0", "grid:", "grid:2x2", "slots:2", "Grid"])
def test_other_words_are_one_line(pool: str) -> None:
    with pytest.raises(
        UserError, match=rf"^--pool {pool}: give mean, slots, grid, a grid of another size such as grid:2, or all$"
    ):
        Pooling.parse(pool, GRID)


def test_a_grid_is_not_finer_than_the_tokens() -> None:
    with pytest.raises(
        UserError,
        match=r"^--pool grid:6: 6x6 cells are more than the 5x6 tokens of a time slot; give grid:5 or less, or all$",
    ):
        Pooling.parse("grid:6", GRID)
    with pytest.raises(
        UserError, match="--pool grid: 4x4 cells are more than the 2x8 tokens of a time slot; give grid:2 or less"
    ):
        Pooling.parse("grid", TokenGrid(1, 2, 8))
