"""What holds for masks of every kind."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange, repeat
from pydantic import BaseModel

from vjepa.config import IjepaMask, Mask, MultiblockMask, RandomMask, TubeMask
from vjepa.errors import UserError
from vjepa.masking.draw import plan
from vjepa.records import TokenGrid, TokenMask


def name(value: object) -> str:
    """What a test is called: a mask by the settings that differ from the defaults."""
    return str(value.model_dump(exclude_defaults=True)) if isinstance(value, BaseModel) else str(value)


EVERY_TIME = [
    TubeMask(),
    TubeMask(ratio=0.5, num_blocks=3),
    MultiblockMask(kind="multiblock"),
    MultiblockMask(kind="multiblock", num_blocks=2, spatial_scale=(0.5, 0.7)),
    MultiblockMask(kind="multiblock", inverse=True),
    MultiblockMask(kind="multiblock", num_context=32, num_target=64),
    IjepaMask(kind="ijepa"),
]
UNIFORM_IN_TIME = [
    *EVERY_TIME,
    RandomMask(kind="random"),
    MultiblockMask(kind="multiblock", temporal_scale=(0.5, 0.5)),
    MultiblockMask(kind="multiblock", temporal_scale=(0.1, 0.9)),
    MultiblockMask(kind="multiblock", temporal_scale=(0.1, 0.9), inverse=True),
    MultiblockMask(kind="multiblock", temporal_scale=(0.1, 0.9), num_context=30, num_target=101),
    MultiblockMask(kind="multiblock", max_keep=37),
    MultiblockMask(kind="multiblock", max_keep=37, full_complement=True),
    MultiblockMask(kind="multiblock", num_context=61, num_target=75),
]
ALL = [
    *UNIFORM_IN_TIME,
    MultiblockMask(kind="multiblock", num_context=150),
    MultiblockMask(kind="multiblock", max_temporal_keep=0.5),
    MultiblockMask(kind="multiblock", trim="raster"),
    MultiblockMask(kind="multiblock", trim="raster", inverse=True, max_temporal_keep=0.5),
]
GRID = TokenGrid(8, 5, 6)


def draw(mask: Mask, grid: TokenGrid, num_clips: int, seed: int = 0, first_sample: int = 0) -> TokenMask:
    return plan([mask], grid).draw(num_clips, seed, first_sample, 0, 1)[0]


def test_a_grid_is_three_numbers_too() -> None:
    assert plan([TubeMask()], (8, 5, 6)) == plan([TubeMask()], GRID)


def has_fixed_counts(mask: Mask) -> bool:
    return isinstance(mask, MultiblockMask) and bool(mask.num_context)


def check(drawn: TokenMask, grid: TokenGrid) -> None:
    """Sorted, in range, disjoint, neither part empty."""
    targets = rearrange(drawn.target_ids, "b (m k) -> (b m) k", m=drawn.num_targets)
    for ids in (drawn.context_ids, targets):
        assert ids.dtype == torch.int64 and ids.shape[1] >= 1
        assert (ids.diff() > 0).all() and ids.min() >= 0 and ids.max() < grid.num_tokens
    for context, target in zip(repeat(drawn.context_ids, "b k -> (b m) k", m=drawn.num_targets), targets, strict=True):
        assert not torch.isin(context, target).any()


@pytest.mark.fast
@pytest.mark.parametrize("mask", ALL, ids=name)
def test_context_and_targets_are_sorted_disjoint_and_in_range(mask: Mask) -> None:
    for grid in (GRID, TokenGrid(8, 14, 14), TokenGrid(3, 9, 12)):
        check(draw(mask, grid, 20), grid)


@pytest.mark.fast
@pytest.mark.parametrize("mask", [mask for mask in ALL if not has_fixed_counts(mask)], ids=name)
@pytest.mark.parametrize(
    "grid",
    [TokenGrid(1, 2, 2), TokenGrid(1, 1, 2), TokenGrid(2, 2, 1), TokenGrid(8, 1, 2), TokenGrid(1, 3, 5)],
    ids=name,
)
def test_small_grids_have_masks_of_every_kind(mask: Mask, grid: TokenGrid) -> None:
    check(draw(mask, grid, 50), grid)


@pytest.mark.fast
@pytest.mark.parametrize(
    "mask", [mask for mask in ALL if mask.kind != "multiblock" or mask.trim == "uniform"], ids=name
)
def test_a_mask_is_a_function_of_seed_and_sample_whatever_the_batch(mask: Mask) -> None:
    whole = draw(mask, GRID, 8, seed=3, first_sample=16)
    ranks = [draw(mask, GRID, 2, seed=3, first_sample=sample) for sample in (16, 18, 20, 22)]
    for part in ("context_ids", "target_ids"):
        ids = getattr(whole, part)
        assert torch.equal(ids, torch.cat([getattr(rank, part) for rank in ranks]))
        for other in (draw(mask, GRID, 8, seed=4, first_sample=16), draw(mask, GRID, 8, seed=3, first_sample=24)):
            assert not torch.equal(ids, getattr(other, part))
        assert len(ids.unique(dim=0)) == 8


@pytest.mark.fast
def test_equal_sets_at_different_places_differ_and_ids_do_not_depend_on_the_other_sets() -> None:
    first, second = plan([TubeMask(), TubeMask()], GRID).draw(8, 0, 0, 0, 1)
    assert not torch.equal(first.target_ids, second.target_ids)
    again = plan([RandomMask(kind="random"), TubeMask()], GRID).draw(8, 0, 0, 0, 1)[1]
    assert torch.equal(second.target_ids, again.target_ids)


def per_slot(ids: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """[B, K] -> [t]: mean number of tokens in each time slot."""
    return (ids.flatten() // grid.cells).bincount(minlength=grid.t).double() / len(ids)


@pytest.mark.parametrize("mask", UNIFORM_IN_TIME, ids=name)
def test_every_time_slot_gets_its_share_of_tokens(mask: Mask) -> None:
    """Within 2 % of uniform over 10,000 draws, for context and targets alike."""
    drawn = draw(mask, GRID, 10_000)
    for ids in (drawn.context_ids, drawn.target_ids):
        assert (per_slot(ids, GRID) / (ids.shape[1] / GRID.t) - 1).abs().max() < 0.02


@pytest.mark.fast
@pytest.mark.parametrize("mask", EVERY_TIME, ids=name)
def test_masks_through_time_are_the_same_at_every_time(mask: Mask) -> None:
    drawn = draw(mask, GRID, 20)
    for ids in (drawn.context_ids, *drawn.target_ids.chunk(drawn.num_targets, dim=1)):
        slots = rearrange(ids, "b (t k) -> b t k", t=GRID.t) - GRID.cells * torch.arange(GRID.t)[:, None]
        assert torch.equal(slots, slots[:, :1].expand_as(slots))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("mask", "grid", "message"),
    [
        (TubeMask(), TokenGrid(8, 1, 1), "masks.1.kind: a grid of 1x1 cells has nothing to hide"),
        (RandomMask(kind="random"), TokenGrid(1, 1, 1), "masks.1.kind: a grid of one token"),
        (MultiblockMask(kind="multiblock"), TokenGrid(1, 1, 1), "masks.1.kind: a grid of 1x1 cells"),
        (
            MultiblockMask(kind="multiblock", num_context=30),
            TokenGrid(1, 5, 6),
            "masks.1.num_context: 30 of the 30 tokens, but at most 29",
        ),
        (
            MultiblockMask(kind="multiblock", num_context=20, num_target=20),
            TokenGrid(1, 5, 6),
            "masks.1.num_context: 20 of the 30 tokens, but at most 10",
        ),
        (
            MultiblockMask(kind="multiblock", num_target=30),
            TokenGrid(1, 5, 6),
            "masks.1.num_target: 30 targets leave none of the 30",
        ),
        (
            MultiblockMask(kind="multiblock", num_context=70, max_temporal_keep=0.25),
            GRID,
            "masks.1.num_context: 70 of the 240 tokens, but at most 60",
        ),
        (MultiblockMask(kind="multiblock", trim="raster"), TokenGrid(1, 1, 1), "masks.1.kind: a grid of 1x1 cells"),
        (
            IjepaMask(kind="ijepa", target_scale=(1, 1)),
            TokenGrid(1, 5, 6),
            "masks.1.target_scale: a target of 30 cells leaves none of 5x6",
        ),
        (IjepaMask(kind="ijepa"), TokenGrid(4, 1, 1), "masks.1.target_scale: a target of 1 cells leaves none of 1x1"),
    ],
    ids=name,
)
def test_impossible_settings_are_errors_at_start_up(mask: Mask, grid: TokenGrid, message: str) -> None:
    possible = RandomMask(kind="random") if grid.num_tokens > 1 else mask
    with pytest.raises(UserError) as error:
        plan([possible, mask], grid)
    assert str(error.value).startswith(message.replace("masks.1", "masks.0") if possible is mask else message)
