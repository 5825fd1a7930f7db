from __future__ import annotations

import pytest
import torch
from einops import rearrange

from vjepa.config import TubeMask
from vjepa.errors import UserError
from vjepa.masking.tube import num_hidden_cells, tube_mask
from vjepa.records import TokenGrid

pytestmark = pytest.mark.fast
GRIDS = [TokenGrid(4, 6, 6), TokenGrid(1, 3, 5), TokenGrid(1, 2, 2), TokenGrid(8, 1, 2)]
MASKS = [TubeMask(ratio=0.75), TubeMask(ratio=0.1), TubeMask(ratio=0.99), TubeMask(ratio=0.6, num_blocks=4)]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_context_and_targets_divide_the_grid_exactly(mask: TubeMask, grid: TokenGrid) -> None:
    drawn = tube_mask(mask, grid, 5, 0, 0, 0)
    hidden = num_hidden_cells(mask, grid)
    assert drawn.target_ids.shape == (5, grid.t * hidden) and drawn.context_ids.shape == (5, grid.t * (grid.cells - hidden))
    for ids in (drawn.context_ids, drawn.target_ids):
        assert ids.dtype == torch.int64 and (ids.diff() > 0).all()  # sorted, none twice
    both = torch.cat([drawn.context_ids, drawn.target_ids], dim=1).sort().values
    assert torch.equal(both, torch.arange(grid.num_tokens).expand(5, -1))


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_tube_hides_the_same_cells_at_every_time(mask: TubeMask) -> None:
    grid = TokenGrid(4, 6, 6)
    slots = rearrange(tube_mask(mask, grid, 3, 0, 0, 0).target_ids, "b (t k) -> t b k", t=grid.t)
    for time, slot in enumerate(slots):
        assert torch.equal(slot - time * grid.cells, slots[0])


def test_a_mask_is_a_function_of_seed_sample_and_set() -> None:
    grid, mask = TokenGrid(2, 6, 6), TubeMask()
    whole = tube_mask(mask, grid, 8, 3, 16, 0)
    halves = [tube_mask(mask, grid, 4, 3, start, 0) for start in (16, 20)]  # as two ranks would draw them
    assert torch.equal(whole.target_ids, torch.cat([half.target_ids for half in halves]))
    for other in (tube_mask(mask, grid, 8, 4, 16, 0), tube_mask(mask, grid, 8, 3, 24, 0), tube_mask(mask, grid, 8, 3, 16, 1)):
        assert not torch.equal(whole.target_ids, other.target_ids)
    assert len({tuple(row.tolist()) for row in whole.target_ids}) == 8


def test_no_cell_is_favoured_by_single_cells() -> None:
    grid = TokenGrid(1, 4, 4)
    counts = tube_mask(TubeMask(ratio=0.5), grid, 4000, 0, 0, 0).target_ids.flatten().bincount(minlength=16)
    assert (counts.double() / 2000 - 1).abs().max() < 0.1  # 4.5 standard deviations


def test_blocks_are_rectangles_but_for_the_trim() -> None:
    """Neighbours of hidden cells are hidden far more often than with single cells."""
    grid = TokenGrid(1, 12, 12)

    def agreement(mask: TubeMask) -> float:
        hidden = torch.zeros(200, 144).scatter_(1, tube_mask(mask, grid, 200, 0, 0, 0).target_ids, 1.0).view(200, 12, 12)
        return (hidden[:, :, 1:] == hidden[:, :, :-1]).double().mean().item()

    assert agreement(TubeMask(ratio=0.5, num_blocks=2)) > 0.75 > 0.6 > agreement(TubeMask(ratio=0.5))


def test_a_grid_of_one_cell_is_an_error() -> None:
    with pytest.raises(UserError, match="1x1 cells has nothing to hide"):
        num_hidden_cells(TubeMask(), TokenGrid(8, 1, 1))
