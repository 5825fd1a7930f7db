"""How much arithmetic a training step needs: matrix products, two operations for each multiply-add."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vjepa import config
from vjepa.models.backbone import encoder_width, make_encoder
from vjepa.models.encoder import Patches
from vjepa.records import TokenGrid, TokenMask


def step_flops(
    settings: config.Config, grid: TokenGrid, masks: Sequence[TokenMask], teacher: config.Model | None = None
) -> int:
    """Of one step on one batch: targets, then context encoder, predictor and projector forward and backward (twice the
    forward).

    What is recomputed in the backward pass to save memory does not count: it is no work of the model. Position tables,
    norms, softmax, the optimizer and SIGReg are left out, as `torch.utils.flop_counter` leaves out all but SIGReg; else
    this equals it, but for the gradient of the input pixels. teacher: settings of the frozen target encoder, where that
    is one.
    """
    model, objective = settings.model, settings.objective
    clips = len(masks[0].context_ids)
    total = _target_flops(settings, grid, teacher)
    for mask in masks:
        num_context, num_target = mask.context_ids.shape[1], mask.target_ids.shape[1] // mask.num_targets
        total += encoder_flops(model, grid, num_context, backward=True)
        total += 3 * sum(
            2 * before * after
            for before, after in pairwise([model.levels * encoder_width(model), *objective.projector_widths])
        )
        if objective.predicts:
            total += (
                3
                * mask.num_targets
                * predictor_flops(model, num_context, num_target, dense=objective.context_weight > 0)
            )
        if objective.cycle:
            total += 3 * predictor_flops(model, mask.target_ids.shape[1], num_context, dense=False)
    return clips * total


def _target_flops(settings: config.Config, grid: TokenGrid, teacher: config.Model | None) -> int:
    """One clip: the forward pass of a target encoder, of the encoder itself with its backward pass, or nothing."""
    objective = settings.objective
    if not objective.predicts or objective.targets == "pixels":
        return 0
    return encoder_flops(teacher or settings.model, grid, grid.num_tokens, backward=objective.targets == "none")


def encoder_flops(model: config.Model, grid: TokenGrid, num_tokens: int, backward: bool = False) -> int:
    """One clip, of which the encoder sees `num_tokens`: forward, or forward and backward, save the gradient of pixels,
    which nothing asks for.

    Of other backbones than `vit` it is what `torch.utils.flop_counter` counts.
    """
    if model.backbone != "vit":
        return _counted_flops(model, grid, num_tokens, backward)
    embed, blocks = _patch_flops(model, grid, num_tokens), _blocks_flops(model.encoder, num_tokens)
    return 2 * embed + 3 * blocks if backward else embed + blocks


def _counted_flops(model: config.Model, grid: TokenGrid, num_tokens: int, backward: bool) -> int:
    encoder = make_encoder(model).to("meta")
    taps = _taps(model, grid)
    pixels = torch.empty(1, grid.num_tokens, 3 * taps * model.patch_px**2, device="meta")
    ids = None if num_tokens == grid.num_tokens else torch.empty(1, num_tokens, dtype=torch.int64, device="meta")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        features = encoder.encode(Patches(pixels, grid, taps), ids)
        if backward:
            features.sum().backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def _taps(model: config.Model, grid: TokenGrid) -> int:
    """Frames of a token."""
    return 1 if grid.t == 1 and model.image_mode != "repeat" else model.tubelet_frames


def predictor_flops(model: config.Model, num_context: int, num_target: int, dense: bool) -> int:
    """One clip, forward, of one mask set."""
    shape, width = model.predictor, encoder_width(model)
    features = model.levels * width
    out = 2 * shape.width * model.levels * (shape.out_width or width)
    hidden = round(shape.width * shape.mlp_ratio)
    if shape.kind == "mlp":
        return 2 * features * shape.width + num_target * (shape.depth * 4 * shape.width * hidden + out)
    embed = 2 * features * shape.width if model.levels == 1 else 2 * width * (features + shape.width)
    seen = num_context * (embed + (out if dense else 0))
    return seen + num_target * out + _blocks_flops(shape, num_context + num_target)


def _patch_flops(model: config.Model, grid: TokenGrid, num_tokens: int) -> int:
    return 2 * num_tokens * 3 * _taps(model, grid) * model.patch_px**2 * model.encoder.width


def _blocks_flops(shape: config.Transformer, num_tokens: int) -> int:
    """Queries, keys, values and output 8 N D^2, attention 4 N^2 D, MLP 4 N D H (gated: three matrices of two thirds of
    H).
    """
    hidden = round(shape.width * shape.mlp_ratio)
    mlp = 4 * hidden if shape.mlp == "gelu" else 6 * 8 * -(-(2 * hidden // 3) // 8)
    return shape.depth * num_tokens * shape.width * (8 * shape.width + 4 * num_tokens + mlp)
