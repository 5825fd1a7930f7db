from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange

from vjepa.config import MultiblockMask
from vjepa.masking import blocks, multiblock
from vjepa.masking.draw import plan
from vjepa.records import TokenGrid, TokenMask

GRID = TokenGrid(8, 14, 14)


def make(**settings: object) -> MultiblockMask:
    return MultiblockMask(kind="multiblock", **settings)


def draw(mask: MultiblockMask, grid: TokenGrid, num_clips: int, seed: int = 0) -> TokenMask:
    return plan([mask], grid).draw(num_clips, seed, 0, 0, 1)[0]


def lattice(ids: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """[B, K] -> bool [B, t, h, w]"""
    marked = torch.zeros(len(ids), grid.num_tokens, dtype=torch.bool).scatter_(1, ids, True)
    return rearrange(marked, "b (t h w) -> b t h w", t=grid.t, h=grid.h)


def uniforms(num: int, num_blocks: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((num, num_blocks * blocks.NUM_UNIFORMS))


@pytest.mark.fast
def test_blocks_against_a_plain_twin() -> None:
    """Inside a block the depth is positive; each token further from the border counts one."""
    grid, drawn = TokenGrid(6, 7, 9), uniforms(50)
    depth = blocks.depth(drawn, grid, (0.1, 0.6), (0.5, 2.0), (0.2, 0.9)).reshape(50, grid.t, grid.h, grid.w)
    for (area, ratio, row, column, lasting, slot), found in zip(drawn, depth, strict=True):
        area, ratio = 63 * (0.1 + 0.5 * area), 0.5 * 4**ratio
        height = min(max(round((area * ratio) ** 0.5), 1), 7)
        width = min(max(round(area / height), 1), 9)
        slots = min(max(round(6 * (0.2 + 0.7 * lasting)), 1), 6)
        expected = np.zeros((6, 7, 9), dtype=bool)
        top, left = int(row * (8 - height)), int(column * (10 - width))
        for time in range(int(slot * 6), int(slot * 6) + slots):
            expected[time % 6, top : top + height, left : left + width] = True
        assert np.array_equal(found > 0, expected)
    assert set(np.unique(depth % 1)) == {0.5}
    throughout = blocks.depth(drawn, grid, (0.1, 0.6), (0.5, 2.0), (0.9, 1.0)).reshape(
        depth.shape
    )  # 5.4 to 6 slots: 5 or 6
    lasting = (throughout > 0).any((2, 3)).all(1)
    assert (
        0 < lasting.sum() < 50 and (throughout[lasting] == throughout[lasting, :1]).all()
    )  # no border in time, so none to shrink at
    inside = np.arange(7) + 0.5
    assert np.array_equal(blocks._profile(np.array([2.0]), np.array([3.0]), 7)[0], 1.5 - np.abs(inside - 3.5))


@pytest.mark.fast
def test_area_and_aspect_are_drawn_independently_and_over_the_whole_range() -> None:
    inside = blocks.depth(uniforms(4000), TokenGrid(1, 60, 60), (0.05, 0.2), (0.75, 1.5)).reshape(-1, 60, 60) > 0
    height, width = inside.any(2).sum(1), inside.any(1).sum(1)
    area, aspect = height * width / 3600, height / width
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.05
    assert area.min() < 0.055 and area.max() > 0.195 and aspect.min() < 0.8 and aspect.max() > 1.42


@pytest.mark.fast
def test_blocks_reach_the_first_and_last_row_and_column() -> None:
    inside = blocks.depth(uniforms(4000), TokenGrid(1, 14, 14), (0.15, 0.15), (0.75, 1.5)).reshape(-1, 14, 14) > 0
    for axis in (1, 2):
        edges = inside.any(axis).mean(0)
        assert edges[0] > 0.05 and edges[-1] == pytest.approx(edges[0], rel=0.2)


@pytest.mark.fast
@pytest.mark.parametrize(
    "mask", [make(), make(num_blocks=2, spatial_scale=(0.7, 0.7)), make(temporal_scale=(0.2, 0.8))], ids=str
)
def test_default_counts_are_the_expected_area_in_whole_cells(mask: MultiblockMask) -> None:
    counts = multiblock.counts(mask, GRID)
    hidden = (
        blocks.union_depth(
            uniforms(4000, mask.num_blocks), GRID, mask.spatial_scale, mask.aspect_ratio, mask.temporal_scale
        )
        > 0
    )
    assert counts.target / GRID.num_tokens == pytest.approx(hidden.mean(), abs=0.015)
    assert counts.context + counts.target == GRID.num_tokens and counts.target % GRID.t == 0


@pytest.mark.fast
@pytest.mark.parametrize("more", [{}, {"num_target": 1200}, {"num_context": 900}], ids=str)
def test_the_hidden_part_is_the_union_of_blocks_grown_or_shrunk_by_one_margin(more: dict) -> None:
    """The targets are the deepest tokens: no token of the context lies deeper than any of them."""
    mask, rng = make(**more), np.random.default_rng(7)
    drawn = multiblock.draw(mask, GRID, [rng])
    places = np.random.default_rng(7).random((1, 8 * blocks.NUM_UNIFORMS))  # the first of what `draw` takes
    depth = torch.from_numpy(blocks.union_depth(places, GRID, mask.spatial_scale, mask.aspect_ratio)).flatten()
    assert depth[drawn.target_ids[0] % GRID.cells].min() >= depth[drawn.context_ids[0] % GRID.cells].max()


@pytest.mark.fast
def test_counts_that_are_no_whole_cells_split_one_cell_at_chance_times() -> None:
    drawn = draw(make(num_context=205, num_target=411), GRID, 200)
    for ids, whole, rest in ((drawn.context_ids, 25, 5), (drawn.target_ids, 51, 3)):
        times = lattice(ids, GRID).sum(1).flatten(1)
        assert ((times == GRID.t).sum(1) == whole).all() and ((times > 0).sum(1) == whole + 1).all()
        assert (times[(times > 0) & (times < GRID.t)] == rest).all()


@pytest.mark.fast
def test_fewer_targets_are_a_subset_of_the_hidden_and_more_make_the_blocks_grow() -> None:
    hidden = draw(make(), GRID, 20)
    some, more = draw(make(num_target=400), GRID, 20), draw(make(num_target=1200), GRID, 20)
    assert torch.equal(some.context_ids, hidden.context_ids)
    assert not (lattice(some.target_ids, GRID) & ~lattice(hidden.target_ids, GRID)).any()
    assert not (lattice(hidden.target_ids, GRID) & ~lattice(more.target_ids, GRID)).any()


@pytest.mark.fast
def test_a_subset_is_drawn_by_chance_not_from_the_middle_of_a_block() -> None:
    drawn = draw(make(num_blocks=1, spatial_scale=(0.5, 0.5), num_target=8 * 20), GRID, 50)
    rows = lattice(drawn.target_ids, GRID).any(dim=(1, 3)).sum(1).double().mean()
    assert rows > 8  # of about 10; the 20 cells in the middle take 4 or 5


@pytest.mark.fast
def test_max_keep_drops_visible_tokens_and_the_full_complement_predicts_them() -> None:
    plain, kept, full = (
        draw(mask, GRID, 20) for mask in (make(), make(max_keep=100), make(max_keep=100, full_complement=True))
    )
    assert kept.context_ids.shape[1] == 100 and torch.equal(kept.target_ids, plain.target_ids)
    assert not (lattice(kept.context_ids, GRID) & ~lattice(plain.context_ids, GRID)).any()
    assert torch.equal(lattice(full.target_ids, GRID), ~lattice(kept.context_ids, GRID))
    assert torch.equal(draw(make(max_keep=10_000), GRID, 20).context_ids, plain.context_ids)


@pytest.mark.fast
def test_inverse_shows_the_blocks() -> None:
    plain, inverse = draw(make(num_blocks=1), GRID, 200), draw(make(num_blocks=1, inverse=True), GRID, 200)
    assert abs(inverse.context_ids.shape[1] - plain.target_ids.shape[1]) <= GRID.t

    rows = lattice(inverse.context_ids, GRID).any(dim=(1, 3)).sum(1).double().mean()
    assert rows < 8  # one block of .15, not the whole frame
    assert lattice(inverse.target_ids, GRID).any(dim=(1, 3)).all()


@pytest.mark.fast
@pytest.mark.parametrize("more", [{}, {"temporal_scale": (0.3, 0.6)}, {"trim": "raster"}], ids=str)
def test_the_context_sees_the_first_time_slots_only_and_all_later_ones_are_target(more: dict) -> None:
    drawn = draw(make(max_temporal_keep=0.5, **more), GRID, 10)
    assert not lattice(drawn.context_ids, GRID)[:, 4:].any()
    if "trim" not in more:
        assert lattice(drawn.target_ids, GRID)[:, 4:].all()
        assert lattice(drawn.context_ids, GRID)[:, :4].any(dim=(2, 3)).all()


@pytest.mark.fast
def test_raster_trim_cuts_to_the_smallest_of_the_batch_and_starves_the_last_slot() -> None:
    """The reference's defect, on purpose: with exact counts every slot has as many tokens as any other."""
    raster, exact = draw(make(trim="raster"), GRID, 24), draw(make(), GRID, 24)
    assert (
        raster.context_ids.shape[1] < exact.context_ids.shape[1]
        and raster.target_ids.shape[1] < exact.target_ids.shape[1]
    )
    first, last = lattice(raster.context_ids, GRID).double().sum(dim=(2, 3)).mean(0)[[0, -1]]
    assert last < 0.2 * first
    slots = lattice(exact.context_ids, GRID).sum(dim=(2, 3))
    assert (slots == slots[0, 0]).all()


@pytest.mark.fast
def test_raster_trim_of_one_clip_is_the_untrimmed_mask() -> None:
    drawn = draw(make(trim="raster"), GRID, 1)
    assert torch.equal(lattice(drawn.context_ids, GRID), ~lattice(drawn.target_ids, GRID))
    capped = draw(make(trim="raster", max_keep=50, full_complement=True), GRID, 5)
    assert capped.context_ids.shape[1] == 50 and torch.equal(
        lattice(capped.context_ids, GRID), ~lattice(capped.target_ids, GRID)
    )
