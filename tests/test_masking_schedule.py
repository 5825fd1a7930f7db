from __future__ import annotations

import pytest

from vjepa.config import MultiblockMask, RandomMask, TubeMask
from vjepa.masking import schedule
from vjepa.masking.draw import plan
from vjepa.records import TokenGrid

pytestmark = pytest.mark.fast


def test_the_ratio_goes_linearly_from_first_to_last_in_stages_of_equal_length() -> None:
    mask = RandomMask(kind="random", ratio=0.5, final_ratio=0.9, ratio_stages=5)
    ratios = [schedule.at_step(mask, step, 100).ratio for step in range(100)]
    assert ratios == pytest.approx([0.5 + 0.1 * (step // 20) for step in range(100)])


def test_more_stages_than_steps_and_steps_beyond_the_last_are_fine() -> None:
    mask = TubeMask(ratio=0.5, final_ratio=0.9)
    assert schedule.at_step(mask, 0, 1).ratio == 0.5
    assert schedule.at_step(mask, 5, 3).ratio == pytest.approx(0.9)


def test_masks_without_a_final_ratio_stay_as_they_are() -> None:
    for mask in (TubeMask(), MultiblockMask(kind="multiblock")):
        assert schedule.at_step(mask, 7, 10) is mask


def test_shapes_are_static_within_a_stage_and_follow_the_ratio() -> None:
    masks = plan([TubeMask(ratio=0.25, final_ratio=0.75, ratio_stages=3)], TokenGrid(2, 4, 4))
    hidden = [masks.draw(2, 0, 2 * step, step, 9)[0].target_ids.shape[1] for step in range(9)]
    assert hidden == [8, 8, 8, 16, 16, 16, 24, 24, 24]
