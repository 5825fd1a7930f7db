from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from vjepa import config
from vjepa.jepa import build
from vjepa.models import layers
from vjepa.models.encoder import PatchEmbed, VisionTransformer, patchify
from vjepa.models.layers import Attention, Block, SwiGlu, attend, gather_tokens
from vjepa.models.positions import SinCos, resize_table, rotation
from vjepa.models.predictor import MlpPredictor, Predictor
from vjepa.records import TokenGrid


def small(**settings: object) -> config.Model:
    shapes = {
        "encoder": config.EncoderSettings(width=48, depth=4, heads=4),
        "predictor": config.PredictorSettings(width=24, depth=2, heads=2),
    }
    return config.Model(**{"patch_px": 4, "tubelet_frames": 2, **shapes, **settings})


KINDS = ["rope", "sincos", "sincos_uniform", "sincos_2d"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.fast
def test_patch_embedding_is_the_strided_convolution() -> None:
    embed = PatchEmbed(3, 4, 2, 16)
    nn.init.normal_(embed.proj.bias)
    for size in ((6, 8, 12), (7, 11, 14)):  # what does not fill a patch is left out, by both
        video = torch.randn(2, 3, *size)
        patches = patchify(video, small())
        expected = embed.proj(video).flatten(2).transpose(1, 2)
        torch.testing.assert_close(embed(patches.pixels, patches.taps), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.fast
@pytest.mark.parametrize("positions", KINDS)
def test_an_image_is_the_clip_that_repeats_it(positions: str) -> None:
    encoder = VisionTransformer(small(positions=positions))
    image = torch.randn(2, 3, 1, 8, 12)
    one, repeated = encoder(image), encoder(image.expand(-1, -1, 2, -1, -1))
    assert one.shape == (2, 6, 48)
    torch.testing.assert_close(one, repeated, atol=1e-5, rtol=1e-5)


@pytest.mark.fast
def test_image_modes() -> None:
    image = torch.randn(2, 3, 1, 8, 8)
    repeating = VisionTransformer(small(image_mode="repeat", image_repeats=6))
    assert repeating.grid(1, 8, 8) == TokenGrid(3, 2, 2)
    torch.testing.assert_close(repeating(image), repeating(image.expand(-1, -1, 6, -1, -1)))
    own = VisionTransformer(small(image_mode="own", modality_embedding=True))
    assert own.patch_embed_img.proj.weight.shape == (48, 3, 1, 4, 4)
    before = own(image)
    nn.init.normal_(own.patch_embed.proj.weight)
    nn.init.normal_(own.video_mod_embed)
    torch.testing.assert_close(own(image), before)  # images do not use what clips use
    nn.init.normal_(own.img_mod_embed)
    assert not torch.allclose(own(image), before, atol=1e-2)


@pytest.mark.fast
@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("size", [(1, 8, 8), (2, 8, 8), (8, 4, 20), (5, 10, 9)])
def test_features_of_all_tokens_for_any_size(positions: str, size: tuple[int, int, int]) -> None:
    encoder = VisionTransformer(small(positions=positions))
    grid = encoder.grid(*size)
    assert encoder(torch.randn(2, 3, *size)).shape == (2, grid.num_tokens, 48)


@pytest.mark.fast
def test_a_video_smaller_than_a_patch_is_an_error() -> None:
    with pytest.raises(config.ConfigError, match="1 frames of 3x8 px hold no patch of 2 frames and 4 px"):
        VisionTransformer(small())(torch.randn(1, 3, 1, 3, 8))


@pytest.mark.fast
@pytest.mark.parametrize("positions", KINDS)
def test_visible_tokens_know_their_place_and_not_the_hidden_ones(positions: str) -> None:
    encoder = VisionTransformer(small(positions=positions))
    video = torch.randn(1, 3, 4, 8, 8)
    everything = torch.arange(8)[None]
    torch.testing.assert_close(encoder(video, everything), encoder(video), atol=1e-5, rtol=1e-5)
    visible = torch.tensor([[0, 3, 6]])
    changed = video.clone()
    changed[:, :, :2, :4, 4:] += 1  # token 1
    torch.testing.assert_close(encoder(changed, visible), encoder(video, visible))
    if positions != "rope":  # relative positions cannot show on equal tokens
        same = torch.ones_like(video)
        assert not torch.allclose(encoder(same, visible), encoder(same, torch.tensor([[0, 3, 5]])), atol=1e-4)


@pytest.mark.fast
@pytest.mark.parametrize("positions", KINDS)
def test_training_may_follow_an_evaluation_of_the_same_size(positions: str) -> None:
    """Tables of positions are kept, whoever made them, in inference mode or not."""
    encoder, video = (
        VisionTransformer(small(positions=positions)),
        torch.randn(1, 3, 2, 4, 52),
    )  # a size that no other test has
    with torch.inference_mode():
        encoder(video)
    encoder(video).sum().backward()
    assert encoder.blocks[0].attn.qkv.weight.grad is not None


@pytest.mark.fast
def test_sincos_tells_all_tokens_apart_and_axes_separate() -> None:
    grid, device = TokenGrid(3, 4, 5), torch.device("cpu")
    for kind in ("sincos", "sincos_uniform"):
        table = SinCos(kind, 48, None)(grid, device)
        assert table.shape == (60, 48) and table.dtype == torch.float32
        assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.1
        assert SinCos(kind, 50, None)(grid, device).shape == (60, 50)
    cube = SinCos("sincos_uniform", 48, None)(grid, device).view(3, 4, 5, 48)
    assert (cube[:, 0, 0, 16:] == cube[0, 0, 0, 16:]).all()  # time is in the first third only
    cube = SinCos("sincos", 48, None)(grid, device).view(3, 4, 5, 48)
    assert (cube[:, 0, 0, 24:] == cube[0, 0, 0, 24:]).all() and (
        cube[0, :, 0, :24] == cube[0, 0, 0, :24]
    ).all()  # time is the first half
    flat = SinCos("sincos_2d", 48, None)(grid, device).view(3, 4, 5, 48)
    assert (flat == flat[:1]).all() and (
        flat[0, :, 0, :24] == flat[0, 0, 0, :24]
    ).all()  # no time; the column comes first


@pytest.mark.fast
def test_a_sincos_table_resizes_by_interpolation() -> None:
    base = TokenGrid(2, 4, 4)
    positions, table = SinCos("sincos", 48, (2, 4, 4)), SinCos("sincos", 48, None)(base, torch.device("cpu"))
    assert torch.equal(positions(base, torch.device("cpu")), table)
    larger = resize_table(table, base, TokenGrid(4, 8, 8)).view(4, 8, 8, 48)
    assert positions(TokenGrid(4, 8, 8), torch.device("cpu")).shape == (256, 48)
    middle = (
        larger.view(2, 2, 4, 2, 4, 2, 48).mean(dim=(1, 3, 5)).view(-1, 48)
    )  # 2x2x2 new places lie around an old one
    assert (middle - table).abs().mean() < 0.1 * table.abs().mean()
    assert torch.equal(resize_table(table, base, TokenGrid(1, 4, 4)), table[:16])  # an image is the first slot


def turned(grid: TokenGrid, kind: str = "rotation", square: int | None = None, head_width: int = 20) -> torch.Tensor:
    """One random head, the same at every token, rotated by its place: [N, head_width]."""
    head = torch.randn(head_width, generator=torch.Generator().manual_seed(3)).expand(1, grid.num_tokens, 1, -1)
    return rotation(kind, grid, head_width, square, None, torch.device("cpu"))(head)[0, :, 0]


@pytest.mark.fast
def test_rope_against_complex_numbers() -> None:
    grid, head_width = TokenGrid(2, 3, 4), 20  # 6 features an axis, 2 left alone
    head = torch.randn(head_width, generator=torch.Generator().manual_seed(3)).double()
    expected = []
    for t in range(2):
        for h in range(3):
            for w in range(4):
                out = head.clone()
                for axis, place in enumerate((t, h, w)):
                    for pair in range(3):
                        at = axis * 6 + pair * 2
                        angle = place * 10000 ** -(pair / 3)
                        number = complex(head[at], head[at + 1]) * complex(math.cos(angle), math.sin(angle))
                        out[at], out[at + 1] = number.real, number.imag
                expected.append(out)
    torch.testing.assert_close(turned(grid).double(), torch.stack(expected), atol=1e-6, rtol=1e-6)


@pytest.mark.fast
def test_rope_keeps_lengths_and_knows_only_differences_while_vjepa2_does_not() -> None:
    grid = TokenGrid(4, 4, 4)
    for kind, exact in (("rotation", True), ("vjepa2", False)):
        heads = turned(grid, kind).view(4, 4, 4, -1)
        lengths = heads.norm(dim=-1)
        assert torch.allclose(lengths, lengths[0, 0, 0].expand_as(lengths), atol=1e-5) is exact
        products = torch.stack([heads[0, 0, 0] @ heads[2, 1, 1], heads[1, 2, 2] @ heads[3, 3, 3]])
        assert bool((products[0] - products[1]).abs() < 1e-5) is exact


@pytest.mark.fast
def test_rope_of_some_tokens_is_part_of_that_of_all() -> None:
    grid, ids = TokenGrid(2, 3, 4), torch.tensor([[0, 5, 23], [1, 2, 3]])
    device = torch.device("cpu")
    whole, part = rotation("rotation", grid, 24, None, None, device), rotation("rotation", grid, 24, None, ids, device)
    assert torch.equal(part.turn, whole.turn[0][ids]) and part.mirror is None and part.turn.dtype == torch.float32


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["rotation", "vjepa2"])
def test_real_products_for_compilers_are_the_complex_ones(kind: str, monkeypatch) -> None:
    expected = turned(TokenGrid(2, 3, 4), kind)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(turned(TokenGrid(2, 3, 4), kind), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.fast
def test_vjepa2_against_its_formula() -> None:
    """Published code: cosines and sines of the frequencies f0 .. fn, f0 .. fn, while (a, b) pairs with (-b, a) as
    neighbours.
    """
    place, head = 5, torch.randn(20, generator=torch.Generator().manual_seed(3))
    angles = place * 10000 ** -(torch.arange(3) / 3)
    tiled = torch.cat([angles, angles])
    neighbours = torch.stack([-head[1:6:2], head[0:6:2]], dim=-1).flatten()
    expected = head[:6] * tiled.cos() + neighbours * tiled.sin()
    torch.testing.assert_close(turned(TokenGrid(6, 1, 1), "vjepa2")[place, :6], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.fast
def test_rope_scaled_to_a_square_sees_the_same_corners_at_every_size() -> None:
    small_grid, large = (
        turned(TokenGrid(2, 4, 4), square=16).view(2, 4, 4, -1),
        turned(TokenGrid(2, 7, 9), square=16).view(2, 7, 9, -1),
    )
    for corner in ((1, 0, -1), (0, -1, -1)):
        torch.testing.assert_close(small_grid[corner], large[corner], atol=1e-5, rtol=1e-5)
    plain = turned(TokenGrid(2, 16, 16)).view(2, 16, 16, -1)
    torch.testing.assert_close(plain[1, 15, 0], small_grid[1, 3, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.fast
def test_swiglu_against_its_formula_and_its_size() -> None:
    mlp = SwiGlu(24, 96)
    tokens = torch.randn(2, 5, 24)
    gate = tokens @ mlp.fc1.weight.T + mlp.fc1.bias
    expected = (
        gate / (1 + (-gate).exp()) * (tokens @ mlp.fc2.weight.T + mlp.fc2.bias)
    ) @ mlp.fc3.weight.T + mlp.fc3.bias
    torch.testing.assert_close(mlp(tokens), expected, atol=1e-5, rtol=1e-5)
    assert mlp.fc1.out_features == 64
    assert SwiGlu(24, 100).fc1.out_features == 72  # two thirds of 100, rounded up to 8s


@pytest.mark.fast
def test_explicit_attention_of_bf16_is_the_fused_one_within_its_error() -> None:
    query, key, value = torch.randn(3, 2, 4, 30, 16).unbind(0)
    exact = nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attend(query, key, value), exact)
    rounded = attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert rounded.dtype == torch.bfloat16 and (rounded.float() - exact).abs().max() < 0.03


@pytest.mark.fast
def test_attention_on_a_cpu_keeps_no_more_weights_than_its_limit(monkeypatch) -> None:
    parts = [part.requires_grad_() for part in torch.randn(3, 2, 4, 30, 16).bfloat16().unbind(0)]

    def kept() -> bool:
        sizes: list = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            attend(*parts)
        return max(sizes) == 2 * 4 * 30 * 30

    assert kept()
    monkeypatch.setattr(layers, "MOST_WEIGHTS", 2 * 2 * 4 * 30 * 30 - 1)
    assert not kept()


@pytest.mark.fast
@pytest.mark.parametrize("positions", ["rope", "sincos"])
@pytest.mark.parametrize("levels", [1, 4])
def test_sets_of_tokens_in_one_pass_are_as_in_passes_of_their_own(positions: str, levels: int) -> None:
    model = small(positions=positions, levels=levels, level_norms=levels == 4)
    encoder = VisionTransformer(model)
    patches = patchify(torch.randn(2, 3, 4, 8, 8), model)
    sets = [torch.tensor([[0, 2, 5], [1, 2, 3]]), torch.tensor([[1, 3, 4, 6, 7], [0, 4, 5, 6, 7]])]
    alone = [encoder.encode(patches, ids) for ids in sets]
    for together, own in zip(encoder.encode_sets(patches, sets), alone, strict=True):
        torch.testing.assert_close(together, own, atol=1e-5, rtol=1e-5)
    pixels = patches.pixels.scatter(1, sets[0].unsqueeze(-1).expand(-1, -1, patches.pixels.shape[-1]), torch.nan)
    first, second = encoder.encode_sets(replace(patches, pixels=pixels), sets)
    assert first.isnan().all() and not second.isnan().any()


@pytest.mark.fast
def test_drop_path_skips_clips_in_training_alone_and_keeps_the_mean() -> None:
    block = Block(config.EncoderSettings(width=24, depth=1, heads=2), drop_path=0.5)
    tokens = torch.randn(1, 3, 24).expand(4000, -1, -1)
    block.eval()
    whole = block(tokens)[0] - tokens[0]
    block.train()
    first_half = block._skip(torch.ones(4000, 1, 1)).flatten()
    assert set(first_half.tolist()) == {0.0, 2.0} and first_half.mean().item() == pytest.approx(1, abs=0.08)
    outputs = block(tokens) - tokens
    skipped = (outputs.abs().amax(dim=(1, 2)) == 0).float().mean().item()
    assert skipped == pytest.approx(0.25, abs=0.03)  # both halves
    assert whole.abs().min() > 0
    depths = [
        block.drop_path
        for block in VisionTransformer(
            small(encoder=config.EncoderSettings(width=48, depth=3, heads=4, drop_path=0.2))
        ).blocks
    ]
    assert depths == pytest.approx([0, 0.1, 0.2])


@pytest.mark.fast
@pytest.mark.parametrize("recompute", ["mlp", "block"])
def test_recomputation_changes_no_gradient(recompute: str) -> None:
    video = torch.randn(2, 3, 4, 8, 8)
    gradients = []
    for how in ("none", recompute):
        torch.manual_seed(1)
        encoder = VisionTransformer(
            small(encoder=config.EncoderSettings(width=48, depth=2, heads=4, recompute=how, drop_path=0.3))
        )
        torch.manual_seed(2)
        encoder(video).square().mean().backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.fast
def test_intermediate_layers_are_normed_features_after_each_block() -> None:
    encoder, video = VisionTransformer(small()), torch.randn(2, 3, 4, 8, 8)
    first, last = encoder.intermediate(video, [0, -1])
    torch.testing.assert_close(last, encoder(video))
    assert first.shape == last.shape and not torch.allclose(first, last, atol=1e-2)
    with pytest.raises(ValueError, match="blocks 0 to 3"):
        encoder.intermediate(video, [4])


@pytest.mark.fast
def test_four_levels_are_read_at_quarters_of_the_depth_and_the_last_is_the_output() -> None:
    encoder, video = VisionTransformer(small(levels=4, level_norms=True)), torch.randn(2, 3, 4, 8, 8)
    levels = encoder.encode(patchify(video, encoder.model))
    assert levels.shape == (2, 8, 4 * 48) and encoder.level_depths == [0, 1, 2, 3]
    torch.testing.assert_close(encoder(video), levels[..., -48:])
    torch.testing.assert_close(torch.cat(encoder.intermediate(video, range(4)), dim=-1), levels)
    with torch.device("meta"):
        depths = {
            depth: VisionTransformer(
                small(levels=4, level_norms=True, encoder=config.EncoderSettings(depth=depth))
            ).level_depths
            for depth in (12, 24, 40, 48)
        }
    assert depths == {12: [2, 5, 8, 11], 24: [5, 11, 17, 23], 40: [9, 19, 29, 39], 48: [11, 23, 37, 47]}


def num_parameters(module: nn.Module) -> float:
    """In millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.mark.fast
def test_presets_have_the_published_numbers_of_parameters() -> None:
    published = {"large": 303.9, "huge": 631.6, "giant": 1012.2}
    for preset, shape in config.PRESETS.items():
        with torch.device("meta"):
            encoder = VisionTransformer(config.Model(encoder=config.EncoderSettings.model_validate({"preset": preset})))
        width, hidden = shape["width"], round(shape["width"] * shape["mlp_ratio"])
        block = 4 * width * width + 2 * width * hidden + 9 * width + hidden  # matrices, then biases and norms
        assert num_parameters(encoder) == pytest.approx(
            (3 * 2 * 16 * 16 * width + width + shape["depth"] * block + 2 * width) / 1e6
        )
        assert num_parameters(encoder) == pytest.approx(published.get(preset, num_parameters(encoder)), abs=0.05)


@pytest.mark.fast
def test_published_predictors_and_ijepa_have_their_numbers_of_parameters() -> None:
    large = config.EncoderSettings.model_validate({"preset": "large"})
    with torch.device("meta"):
        vjepa = Predictor(config.Model(encoder=large, predictor=config.PredictorSettings(depth=12)), num_masks=2)
        ijepa = VisionTransformer(
            config.Model(
                patch_px=14, tubelet_frames=1, encoder=config.EncoderSettings.model_validate({"preset": "huge"})
            )
        )
    assert 22.0 < num_parameters(vjepa) < 22.4
    assert num_parameters(ijepa) == pytest.approx(630.8, abs=0.4)


def test_initialisation_is_scaled_down_with_depth_and_stays_so() -> None:
    for mlp in ("gelu", "swiglu"):
        shape = {"width": 384, "depth": 4, "heads": 6, "mlp": mlp}
        run = {"data": {"train": "x"}, "model": {"encoder": shape}, "optim": {"total_steps": 1}}
        model = build(config.validate(run, "test"))
        for number, block in enumerate(model.encoder.blocks, start=1):
            for weight in (block.attn.proj.weight, block.mlp.output.weight):
                assert weight.std().item() == pytest.approx(
                    0.0176 / (2 * number) ** 0.5, rel=0.03
                )  # .0176: std of the cut normal
            assert block.mlp.fc1.weight.std().item() == pytest.approx(0.0176, rel=0.03)


@pytest.mark.fast
@pytest.mark.parametrize("positions", KINDS)
def test_predictions_do_not_depend_on_the_order_of_context_and_follow_the_targets(positions: str) -> None:
    predictor, grid = Predictor(small(positions=positions), num_masks=2), TokenGrid(2, 2, 2)
    for token in predictor.mask_tokens:
        nn.init.normal_(token)
    context, context_ids, target_ids = (
        torch.randn(2, 3, 48),
        torch.tensor([[0, 2, 5]] * 2),
        torch.tensor([[1, 3, 4, 6]] * 2),
    )
    predictions = predictor(context, context_ids, target_ids, grid)
    assert predictions.shape == (2, 4, 48)
    shuffled = predictor(context[:, [2, 0, 1]], context_ids[:, [2, 0, 1]], target_ids[:, [3, 1, 0, 2]], grid)
    torch.testing.assert_close(shuffled, predictions[:, [3, 1, 0, 2]], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(predictor(context, context_ids, target_ids, grid, mask_index=1), predictions, atol=1e-3)


@pytest.mark.fast
@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 3, 5), (3, 1, 4)])
def test_predictors_work_on_grids_that_are_not_square_and_take_three_numbers(shape: tuple[int, int, int]) -> None:
    grid = TokenGrid(*shape)
    ids, context = torch.arange(grid.num_tokens)[None], torch.randn(1, 2, 48)
    for predictor in (Predictor(small(), 1), MlpPredictor(small(), 1)):
        predictions = predictor(context, ids[:, :2], ids[:, 2:], grid)
        assert predictions.shape == (1, grid.num_tokens - 2, 48)
        assert torch.equal(predictor(context, ids[:, :2], ids[:, 2:], shape), predictions)


@pytest.mark.fast
def test_an_mlp_predictor_has_no_heads_that_must_divide_its_width() -> None:
    with pytest.raises(ValueError, match="12 heads do not divide a width of 100"):
        config.PredictorSettings(width=100)
    model = small(positions="rope", predictor=config.PredictorSettings(kind="mlp", width=9, depth=1))
    ids = torch.tensor([[0, 2, 5]] * 2), torch.tensor([[1, 3, 4, 6]] * 2)
    assert MlpPredictor(model, 1)(torch.randn(2, 3, 48), *ids, TokenGrid(2, 2, 2)).shape == (2, 4, 48)


@pytest.mark.fast
def test_mlp_predictor_sees_the_mean_of_the_context_and_the_place_of_the_target() -> None:
    predictor, grid = MlpPredictor(small(), num_masks=1), TokenGrid(2, 2, 2)
    context, context_ids, target_ids = (
        torch.randn(2, 3, 48),
        torch.tensor([[0, 2, 5]] * 2),
        torch.tensor([[1, 3, 4, 6]] * 2),
    )
    predictions = predictor(context, context_ids, target_ids, grid)
    same_mean = context.mean(dim=1, keepdim=True).expand(-1, 3, -1)
    torch.testing.assert_close(predictor(same_mean, context_ids, target_ids, grid), predictions)
    assert not torch.allclose(predictions[:, 0], predictions[:, 1], atol=1e-4)


@pytest.mark.fast
def test_dense_predictions_of_hidden_tokens_are_the_plain_ones() -> None:
    predictor, grid = Predictor(small(levels=4, level_norms=True), num_masks=1, dense=True), TokenGrid(2, 2, 2)
    inputs = torch.randn(2, 3, 4 * 48), torch.tensor([[0, 2, 5]] * 2), torch.tensor([[1, 3, 4, 6]] * 2), grid
    hidden, seen = predictor.dense(*inputs)
    assert torch.equal(hidden, predictor(*inputs)) and seen.shape == (2, 3, 4 * 48)


@pytest.mark.fast
def test_gather_and_attention_keep_shapes() -> None:
    tokens, ids = torch.arange(12.0).view(1, 6, 2), torch.tensor([[4, 0]])
    assert gather_tokens(tokens, ids).tolist() == [[[8, 9], [0, 1]]]
    assert Attention(24, 2)(torch.randn(2, 5, 24), None).shape == (2, 5, 24)
