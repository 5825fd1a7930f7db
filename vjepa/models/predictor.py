"""The narrow transformer that predicts features of hidden tokens from features of visible ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vjepa import config
from vjepa.models.layers import Block, initialise
from vjepa.models.positions import sincos_3d
from vjepa.records import TokenGrid


class Predictor(nn.Module):
    """Context features and one mask token per target place in, predictions out (V-JEPA section 3.1)."""

    def __init__(self, model: config.Model, num_masks: int) -> None:
        """`num_masks`: mask sets, each of which has its own mask token."""
        super().__init__()
        shape = model.predictor
        self.width = shape.width
        self.predictor_embed = nn.Linear(model.encoder.width, shape.width)
        self.mask_tokens = nn.ParameterList(torch.zeros(1, 1, shape.width) for _ in range(num_masks))
        self.predictor_blocks = nn.ModuleList(Block(shape.width, shape.heads, shape.mlp_ratio) for _ in range(shape.depth))
        self.predictor_norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.predictor_proj = nn.Linear(shape.width, model.encoder.width)
        initialise(self)

    def forward(self, context: Tensor, context_ids: Tensor, target_ids: Tensor, grid: TokenGrid, mask_index: int = 0) -> Tensor:
        """context [B, Kc, D], ids [B, Kc] and [B, Kt] -> predictions [B, Kt, D].

        Attention knows no order, so tokens carry their positions and are never sorted.
        """
        positions = sincos_3d(grid, self.width).to(context.device)
        seen = self.predictor_embed(context) + positions[context_ids]
        hidden = self.mask_tokens[mask_index] + positions[target_ids]
        tokens = torch.cat([seen, hidden.to(seen.dtype)], dim=1)
        for block in self.predictor_blocks:
            tokens = block(tokens)
        return self.predictor_proj(self.predictor_norm(tokens[:, context_ids.shape[1] :]))  # type: ignore[no-any-return]
