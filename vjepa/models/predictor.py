"""The narrow network that predicts features of hidden tokens from features of visible ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vjepa import config
from vjepa.models.backbone import encoder_width
from vjepa.models.layers import LayerNorm, Mlp, initialise, make_blocks
from vjepa.models.positions import SinCos, rotation
from vjepa.records import TokenGrid

Grid = TokenGrid | Sequence[int]  # (t, h, w)


def _mask_tokens(shape: config.PredictorSettings, num_masks: int) -> nn.ParameterList:
    return nn.ParameterList(torch.zeros(1, 1, shape.width) for _ in range(shape.mask_tokens or num_masks))


class Predictor(nn.Module):
    """Predict from context features and one mask token per target place (V-JEPA section 3.1)."""

    def __init__(self, model: config.Model, num_masks: int, dense: bool = False) -> None:
        """Make the network at random weights.

        num_masks: mask sets, each of which has its own mask token. dense: predicts visible tokens too (V-JEPA 2.1).
        """
        super().__init__()
        shape, levels, width = model.predictor, model.levels, encoder_width(model)
        self.model, self.width = model, shape.width
        features = levels * width
        embed: nn.Module = nn.Linear(features, shape.width)
        if levels > 1:
            embed = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, shape.width))
        self.predictor_embed = embed
        self.mask_tokens = _mask_tokens(shape, num_masks)
        if model.modality_embedding:
            self.img_mod_embed, self.video_mod_embed = (nn.Parameter(torch.zeros(1, 1, shape.width)) for _ in range(2))
        if model.positions != "rope":
            self.positions = SinCos(model.positions, shape.width, model.sincos_grid)
        self.predictor_blocks = make_blocks(shape)
        self.predictor_norm = LayerNorm(shape.width)
        out = levels * (shape.out_width or width)
        self.predictor_proj = nn.Linear(shape.width, out)
        if dense:
            self.predictor_proj_context = nn.Linear(shape.width, out)
        initialise(self)

    def forward(
        self, context: Tensor, context_ids: Tensor, target_ids: Tensor, grid: Grid, mask_index: int = 0
    ) -> Tensor:
        """Predict from context [B, Kc, levels * D], ids [B, Kc] and [B, Kt] -> [B, Kt, levels * D].

        `predictor.out_width` stands in place of the last D where it is set. grid: that of all tokens, as
        `encoder.grid(T, H, W)` gives it, or its three numbers (t, h, w). mask_index: which mask token.
        Attention knows no order, so tokens carry their positions and are never sorted.
        """
        tokens = self._run(context, context_ids, target_ids, grid, mask_index)
        predictions: Tensor = self.predictor_proj(tokens[:, context_ids.shape[1] :])
        return predictions

    def dense(
        self, context: Tensor, context_ids: Tensor, target_ids: Tensor, grid: Grid, mask_index: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Predict hidden and visible tokens: [B, Kt, levels * D] as `forward` does, and [B, Kc, levels * D]."""
        tokens = self._run(context, context_ids, target_ids, grid, mask_index)
        num_visible = context_ids.shape[1]
        return self.predictor_proj(tokens[:, num_visible:]), self.predictor_proj_context(tokens[:, :num_visible])

    def _run(self, context: Tensor, context_ids: Tensor, target_ids: Tensor, grid: Grid, mask_index: int) -> Tensor:
        """Give the normed tokens [B, Kc + Kt, width], visible ones first."""
        grid, ids = TokenGrid.of(grid), torch.cat([context_ids, target_ids], dim=1)
        seen = self.predictor_embed(context)
        hidden = self.mask_tokens[mask_index].expand(len(ids), target_ids.shape[1], -1)
        tokens = torch.cat([seen, hidden.to(seen.dtype)], dim=1)
        rotate = None
        if self.model.positions == "rope":
            head_width = self.width // self.model.predictor.heads
            rotate = rotation(self.model.rope, grid, head_width, self.model.rope_grid, ids, ids.device)
        else:
            tokens = tokens + self.positions(grid, ids.device)[ids]
        if self.model.modality_embedding:
            tokens = tokens + (self.img_mod_embed if grid.t == 1 else self.video_mod_embed)
        for block in self.predictor_blocks:
            tokens = block(tokens, rotate)
        return self.predictor_norm(tokens)  # type: ignore[no-any-return]


class MlpPredictor(nn.Module):
    """Predict each target from the mean of the context, its mask token and its place, by residual MLPs.

    There is no attention.
    """

    def __init__(self, model: config.Model, num_masks: int) -> None:
        """Make the network at random weights. num_masks: mask sets, each of which has its own mask token."""
        super().__init__()
        shape, width = model.predictor, encoder_width(model)
        self.predictor_embed = nn.Linear(model.levels * width, shape.width)
        self.mask_tokens = _mask_tokens(shape, num_masks)
        kind = "sincos" if model.positions == "rope" else model.positions
        self.positions = SinCos(kind, shape.width, model.sincos_grid)
        hidden = round(shape.width * shape.mlp_ratio)
        layers = (nn.Sequential(LayerNorm(shape.width), Mlp(shape.width, hidden)) for _ in range(shape.depth))
        self.layers = nn.ModuleList(layers)
        self.predictor_norm = LayerNorm(shape.width)
        self.predictor_proj = nn.Linear(shape.width, model.levels * (shape.out_width or width))
        initialise(self)

    def forward(
        self, context: Tensor, context_ids: Tensor, target_ids: Tensor, grid: Grid, mask_index: int = 0
    ) -> Tensor:
        """Predict from context [B, Kc, levels * D], ids [B, Kc] and [B, Kt] -> [B, Kt, levels * D].

        The arguments are those of `Predictor.forward`.
        """
        tokens = self.predictor_embed(context.mean(dim=1, keepdim=True)) + self.mask_tokens[mask_index]
        tokens = tokens + self.positions(TokenGrid.of(grid), target_ids.device)[target_ids]
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        return self.predictor_proj(self.predictor_norm(tokens))  # type: ignore[no-any-return]


def make_predictor(model: config.Model, num_masks: int, dense: bool) -> Predictor | MlpPredictor:
    """Make the predictor that the settings name. The arguments are those of `Predictor`."""
    return MlpPredictor(model, num_masks) if model.predictor.kind == "mlp" else Predictor(model, num_masks, dense)
