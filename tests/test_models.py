from __future__ import annotations

import pytest
import torch
from torch import nn

from vjepa import config
from vjepa.models.encoder import PatchEmbed, VisionTransformer
from vjepa.models.layers import gather_tokens
from vjepa.models.positions import sincos_3d
from vjepa.models.predictor import Predictor
from vjepa.records import TokenGrid

pytestmark = pytest.mark.fast
MODEL = config.Model(patch_px=4, tubelet_frames=2, encoder=config.Encoder(width=48, depth=3, heads=4), predictor=config.Predictor(width=24, depth=2, heads=2))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_patch_embedding_is_the_strided_convolution() -> None:
    embed = PatchEmbed(4, 2, 16)
    nn.init.normal_(embed.proj.bias)
    video = torch.randn(2, 3, 6, 8, 12)
    expected = embed.proj(video).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(video, None), expected, atol=1e-5, rtol=1e-5)
    ids = torch.tensor([[0, 5, 17], [3, 4, 9]])
    torch.testing.assert_close(embed(video, ids), gather_tokens(expected, ids), atol=1e-5, rtol=1e-5)


def test_an_image_is_the_clip_that_repeats_it() -> None:
    encoder = VisionTransformer(MODEL)
    image = torch.randn(2, 3, 1, 8, 12)
    one, repeated = encoder(image), encoder(image.expand(-1, -1, 2, -1, -1))
    assert one.shape == (2, 6, 48)
    torch.testing.assert_close(one, repeated, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 8, 8), (2, 8, 8), (8, 4, 20)])
def test_features_of_all_tokens_for_any_size(size: tuple[int, int, int]) -> None:
    encoder = VisionTransformer(MODEL)
    grid = encoder.grid(*size)
    assert encoder(torch.randn(2, 3, *size)).shape == (2, grid.num_tokens, 48)


def test_visible_tokens_know_their_place_and_not_the_hidden_ones() -> None:
    encoder = VisionTransformer(MODEL)
    video = torch.randn(1, 3, 4, 8, 8)
    everything = torch.arange(8)[None]
    torch.testing.assert_close(encoder(video, everything), encoder(video))
    visible = torch.tensor([[0, 3, 6]])
    changed = video.clone()
    changed[:, :, :2, :4, 4:] += 1  # token 1
    torch.testing.assert_close(encoder(changed, visible), encoder(video, visible))
    moved = torch.tensor([[0, 3, 7]])
    assert not torch.allclose(encoder(torch.ones_like(video), visible), encoder(torch.ones_like(video), moved), atol=1e-4)


def test_positions_tell_all_tokens_apart_and_axes_separate() -> None:
    grid = TokenGrid(3, 4, 5)
    table = sincos_3d(grid, 48)
    assert table.shape == (60, 48) and table.dtype == torch.float32
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.1
    cube = table.view(3, 4, 5, 48)
    assert (cube[:, 0, 0, 16:] == cube[0, 0, 0, 16:]).all()  # time is in the first third only
    assert sincos_3d(grid, 50).shape == (60, 50)


def test_initialisation_is_scaled_down_with_depth_and_stays_so() -> None:
    blocks = VisionTransformer(config.Model(encoder=config.Encoder(width=384, depth=4, heads=6))).blocks
    for number, block in enumerate(blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.std().item() == pytest.approx(0.0176 / (2 * number) ** 0.5, rel=0.03)  # .0176: std of the cut normal
        assert block.mlp.fc1.weight.std().item() == pytest.approx(0.0176, rel=0.03)


def test_predictions_do_not_depend_on_the_order_of_context_and_follow_the_targets() -> None:
    predictor, grid = Predictor(MODEL, num_masks=2), TokenGrid(2, 2, 2)
    for token in predictor.mask_tokens:
        nn.init.normal_(token)
    context, context_ids, target_ids = torch.randn(2, 3, 48), torch.tensor([[0, 2, 5]] * 2), torch.tensor([[1, 3, 4, 6]] * 2)
    predictions = predictor(context, context_ids, target_ids, grid)
    assert predictions.shape == (2, 4, 48)
    shuffled = predictor(context[:, [2, 0, 1]], context_ids[:, [2, 0, 1]], target_ids[:, [3, 1, 0, 2]], grid)
    torch.testing.assert_close(shuffled, predictions[:, [3, 1, 0, 2]], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(predictor(context, context_ids, target_ids, grid, mask_index=1), predictions, atol=1e-3)
