from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange

from vjepa.config import IjepaMask
from vjepa.masking import blocks, ijepa
from vjepa.masking.draw import plan
from vjepa.records import TokenGrid

pytestmark = pytest.mark.fast
IMAGE = TokenGrid(1, 16, 16)


def test_counts_of_the_published_recipe() -> None:
    counts = ijepa.counts(IjepaMask(kind="ijepa"), IMAGE)
    assert counts.target == round(0.15 * 256) and 0.3 * 256 < counts.context < 0.6 * 256
    drawn = plan([IjepaMask(kind="ijepa")], IMAGE).draw(3, 0, 0, 0, 1)[0]
    assert drawn.num_targets == 4
    assert drawn.target_ids.shape == (3, 4 * counts.target) and drawn.context_ids.shape == (3, counts.context)


def test_targets_are_blocks() -> None:
    """Every target lies in a rectangle of the largest scale, but for cells that grew where the context took some."""
    drawn = plan([IjepaMask(kind="ijepa")], IMAGE).draw(200, 0, 0, 0, 1)[0]
    ids = rearrange(drawn.target_ids, "b (m k) -> (b m) k", m=4)
    height = ids.div(16, rounding_mode="floor").amax(1) - ids.div(16, rounding_mode="floor").amin(1) + 1
    width = (ids % 16).amax(1) - (ids % 16).amin(1) + 1
    assert ((height * width).double() <= 1.25 * 0.2 * 256).double().mean() > 0.9
    assert (ids % 16).max() == 15 and ids.max() == 255  # the last column and row are reached


def test_context_and_targets_keep_to_their_blocks_wherever_these_have_enough_cells() -> None:
    mask, crowded = IjepaMask(kind="ijepa"), 0
    num = ijepa.counts(mask, IMAGE)
    for seed in range(100):
        drawn = ijepa.draw(mask, IMAGE, [np.random.default_rng(seed)])
        places = np.random.default_rng(seed).random((5, blocks.NUM_UNIFORMS))  # the first of what `draw` takes
        context_block = blocks.depth(places[:1], IMAGE, (0.85, 1.0), (1.0, 1.0))[0, 0] > 0
        target_blocks = blocks.depth(places[1:], IMAGE, (0.15, 0.2), (0.75, 1.5))[:, 0] > 0
        context = set(drawn.context_ids[0].tolist())
        free = set(np.flatnonzero(context_block & ~target_blocks.any(0)))
        assert context <= free if len(free) >= num.context else free <= context
        crowded += len(free) < num.context
        for block, ids in zip(target_blocks, drawn.target_ids[0].chunk(4), strict=True):
            inside, target = set(np.flatnonzero(block)) - context, set(ids.tolist())
            assert target <= inside if len(inside) >= num.target else inside <= target
    assert 0 < crowded < 100  # both cases were seen


def test_clips_get_the_masks_of_images_at_every_time() -> None:
    mask = IjepaMask(kind="ijepa")
    image, clip = (plan([mask], TokenGrid(t, 6, 7)).draw(5, 0, 0, 0, 1)[0] for t in (1, 3))
    for one, many in zip(
        (image.context_ids, *image.target_ids.chunk(4, dim=1)),
        (clip.context_ids, *clip.target_ids.chunk(4, dim=1)),
        strict=True,
    ):
        assert torch.equal(torch.cat([one, one + 42, one + 84], dim=1), many)
