from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange

from vjepa.config import TubeMask
from vjepa.config.masks import MASK_KINDS
from vjepa.counter_rng import generator
from vjepa.masking.draw import plan
from vjepa.records import TokenGrid, TokenMask

pytestmark = pytest.mark.fast
MASKS = [TubeMask(ratio=0.75), TubeMask(ratio=0.1), TubeMask(ratio=0.99), TubeMask(ratio=0.6, num_blocks=4)]


def draw(mask: TubeMask, grid: TokenGrid, num_clips: int) -> TokenMask:
    return plan([mask], grid).draw(num_clips, 0, 0, 0, 1)[0]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize(
    "grid", [TokenGrid(4, 6, 6), TokenGrid(1, 3, 5), TokenGrid(1, 2, 2), TokenGrid(8, 1, 2)], ids=str
)
def test_context_and_targets_divide_the_grid_exactly(mask: TubeMask, grid: TokenGrid) -> None:
    drawn = draw(mask, grid, 5)
    assert drawn.target_ids.shape == (5, grid.t * min(max(round(mask.ratio * grid.cells), 1), grid.cells - 1))
    both = torch.cat([drawn.context_ids, drawn.target_ids], dim=1).sort().values
    assert torch.equal(both, torch.arange(grid.num_tokens).expand(5, -1))


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_tube_hides_the_same_cells_at_every_time(mask: TubeMask) -> None:
    grid = TokenGrid(4, 6, 6)
    slots = rearrange(draw(mask, grid, 3).target_ids, "b (t k) -> t b k", t=grid.t)
    for time, slot in enumerate(slots):
        assert torch.equal(slot - time * grid.cells, slots[0])


def test_single_cells_are_those_of_a_plain_twin() -> None:
    """Recorded results depend on these draws: they may never change."""
    grid, seed, sample, place = TokenGrid(2, 5, 4), 3, 17, 1
    drawn = plan([TubeMask(), TubeMask(ratio=0.3)], grid).draw(1, seed, sample, 0, 1)[place]
    order = np.argsort(generator(seed, "masks", 16 * sample + place).random(20))
    expected = sorted([*order[:6], *(order[:6] + 20)])
    assert drawn.target_ids[0].tolist() == expected


def test_no_cell_is_favoured_by_single_cells() -> None:
    counts = draw(TubeMask(ratio=0.5), TokenGrid(1, 4, 4), 4000).target_ids.flatten().bincount(minlength=16)
    assert (counts.double() / 2000 - 1).abs().max() < 0.1  # 4.5 standard deviations


def test_blocks_are_rectangles_but_for_the_trim() -> None:
    """Neighbours of hidden cells are hidden far more often than with single cells."""
    grid = TokenGrid(1, 12, 12)

    def agreement(mask: TubeMask) -> float:
        hidden = torch.zeros(200, 144).scatter_(1, draw(mask, grid, 200).target_ids, 1.0).view(200, 12, 12)
        return (hidden[:, :, 1:] == hidden[:, :, :-1]).double().mean().item()

    assert agreement(TubeMask(ratio=0.5, num_blocks=2)) > 0.85 > 0.6 > agreement(TubeMask(ratio=0.5))
    hidden = draw(TubeMask(ratio=0.25, num_blocks=1), grid, 50).target_ids
    assert (hidden // 12).amax(1).sub((hidden // 12).amin(1)).max() < 9  # the rectangle itself, not what is around it


@pytest.mark.parametrize("kind", ["tube", "random"])
def test_a_part_of_what_is_hidden_may_be_predicted(kind: str) -> None:
    """The context is that of the whole mask; each hidden token is as often a target as any other."""
    grid = TokenGrid(2, 4, 4)
    whole, part = (
        plan([MASK_KINDS[kind](kind=kind, ratio=0.75, predicted_ratio=share)], grid) for share in (1.0, 0.25)
    )
    (all_of,), (some,) = (one.draw(400, 0, 0, 0, 1) for one in (whole, part))
    assert torch.equal(all_of.context_ids, some.context_ids)
    assert all_of.target_ids.shape[1] == 24 and some.target_ids.shape[1] == 6
    for wanted, given in zip(some.target_ids.tolist(), all_of.target_ids.tolist(), strict=True):
        assert set(wanted) <= set(given)
    counts = torch.bincount(some.target_ids.flatten(), minlength=grid.num_tokens)
    assert counts.min() > 40 and counts.max() < 115  # 75 each on average, deviation about 8
