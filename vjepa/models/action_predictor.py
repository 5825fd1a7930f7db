"""The predictor of V-JEPA 2-AC (Assran et al. 2025, section 3): frames, actions and states so far -> the next frame.

A step of the sequence is an action token, a state token, an extrinsics token (where there are any) and the tokens of
its frame; each sees all of its own and of earlier steps. `latents` are [B, T, h, w, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vjepa import config
from vjepa.models.layers import Block, LayerNorm, initialise
from vjepa.models.positions import Rotation, step_rotation
from vjepa.records import TokenGrid

_NORM_EPS = 1e-5  # of what is predicted, as published


@dataclass(frozen=True)
class Past:
    """Keep what later steps attend to: keys and values of every block, [B, heads, K, d], of `num_steps` steps."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    num_steps: int

    def expand(self, num: int) -> Past:
        """Give the past of one sequence to `num` sequences; nothing is copied."""
        keys, values = ([one.expand(num, -1, -1, -1) for one in ones] for ones in (self.keys, self.values))
        return Past(tuple(keys), tuple(values), self.num_steps)

    def first(self, num_steps: int) -> Past:
        """Give the past of its first `num_steps` steps; nothing is copied."""
        most = self.keys[0].shape[2] // self.num_steps * num_steps
        keys, values = ([one[:, :, :most] for one in ones] for ones in (self.keys, self.values))
        return Past(tuple(keys), tuple(values), num_steps)


class StepBlock(Block):
    """Apply a transformer block to the tokens of some steps that see those of earlier ones too."""

    def after(
        self, tokens: Tensor, rotate: Rotation, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mix tokens [B, K, D] by attention to those of `past`, [B, h, P, d] each, and to each other under `mask`.

        mask: bool [K, P + K], what each token sees; None: everything. Returns the tokens, and all keys and values.
        """
        if self.recompute != "none" and torch.is_grad_enabled():
            found: tuple[Tensor, Tensor, Tensor] = checkpoint(
                self._after, tokens, rotate, mask, past, use_reentrant=False
            )
            return found
        return self._after(tokens, rotate, mask, past)

    def _after(
        self, tokens: Tensor, rotate: Rotation, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Split b k (3 h d) into queries, keys and values, and join b h k d -> b k (h d)."""
        heads = rearrange(self.attn.qkv(self.norm1(tokens)), "b k (n d) -> b k n d", n=3 * self.attn.heads)
        query_key, value = heads.split([2 * self.attn.heads, self.attn.heads], dim=2)
        query, key = rearrange(rotate(query_key), "b k (two h) d -> two b h k d", two=2)
        value = rearrange(value, "b k h d -> b h k d")
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = tokens + self._skip(self.attn.proj(rearrange(mixed, "b h k d -> b k (h d)")))
        return tokens + self._skip(self.mlp(self.norm2(tokens))), key, value


class ActionPredictor(nn.Module):
    """Predict the latents of the next frame at every step. Parameter names are those of the published files."""

    def __init__(
        self,
        shape: config.WorldPredictor,
        width: int,
        num_action: int,
        num_state: int = 0,
        num_extrinsics: int = 0,
        norms: bool = True,
    ) -> None:
        """Make the network at random weights.

        width: features of a latent, D. num_action, num_state, num_extrinsics: numbers of each; 0: no such token.
        norms: predictions are `normed`, as the latents are.
        """
        super().__init__()
        self.shape, self.width, self.norms = shape, width, norms
        self.predictor_embed = nn.Linear(width, shape.width)
        self.action_encoder = nn.Linear(num_action, shape.width)
        if num_state:
            self.state_encoder = nn.Linear(num_state, shape.width)
        if num_extrinsics:
            self.extrinsics_encoder = nn.Linear(num_extrinsics, shape.width)
        last = max(shape.depth - 1, 1)
        chances = [shape.drop_path * number / last for number in range(shape.depth)]
        self.predictor_blocks = nn.ModuleList(StepBlock(shape, chance) for chance in chances)
        self.predictor_norm = LayerNorm(shape.width)
        self.predictor_proj = nn.Linear(shape.width, width)
        self.num_conditions = 1 + bool(num_state) + bool(num_extrinsics)
        initialise(self)

    def forward(
        self, latents: Tensor, actions: Tensor, states: Tensor | None = None, extrinsics: Tensor | None = None
    ) -> Tensor:
        """Predict, from each of T steps, the latents of the frame after it: [B, T, h, w, D].

        actions: [B, T, A], action k leads from frame k to the next. states, extrinsics: [B, T, S], [B, T, E].
        """
        return self.go_on(latents, actions, states, extrinsics)[0]

    def go_on(
        self,
        latents: Tensor,
        actions: Tensor,
        states: Tensor | None = None,
        extrinsics: Tensor | None = None,
        past: Past | None = None,
    ) -> tuple[Tensor, Past]:
        """Predict as `forward` does from steps that follow those of `past`, and give the past of the next ones."""
        num_steps, grid = latents.shape[1], TokenGrid(*latents.shape[1:4])
        first = past.num_steps if past else 0
        tokens = self._tokens(latents, actions, states, extrinsics)
        rotate = self._rotation(first, grid, tokens.device)
        mask = None if num_steps == 1 else _frame_causal(first, num_steps, tokens.shape[1] // num_steps, tokens.device)
        keys, values = [], []
        for number, block in enumerate(self.predictor_blocks):
            seen = (past.keys[number], past.values[number]) if past else None
            tokens, key, value = cast(StepBlock, block).after(tokens, rotate, mask, seen)
            keys.append(key)
            values.append(value)
        tokens = rearrange(tokens, "b (t n) d -> b t n d", t=num_steps)[:, :, self.num_conditions :]
        predicted = self.predictor_proj(self.predictor_norm(tokens))
        predicted = normed(predicted) if self.norms else predicted.float()
        predicted = rearrange(predicted, "b t (h w) d -> b t h w d", h=grid.h)
        return predicted, Past(tuple(keys), tuple(values), first + num_steps)

    def _tokens(self, latents: Tensor, actions: Tensor, states: Tensor | None, extrinsics: Tensor | None) -> Tensor:
        """Embed each kind and lay the steps one after the other: [B, T (C + h w), width], conditions first."""
        given = {"action": actions, "state": states, "extrinsics": extrinsics}
        parts = []
        for name, values in given.items():
            is_there = hasattr(self, f"{name}_encoder")
            if is_there != (values is not None):
                raise ValueError(f"{name}: this predictor {'needs it' if is_there else 'has no such token'}")
            if is_there:
                parts.append(getattr(self, f"{name}_encoder")(values)[:, :, None])
        parts.append(rearrange(self.predictor_embed(latents), "b t h w d -> b t (h w) d"))
        return rearrange(torch.cat(parts, dim=2), "b t n d -> b (t n) d")

    def _rotation(self, first: int, grid: TokenGrid, device: torch.device) -> Rotation:
        """Turn the tokens of `grid.t` steps from number `first` on."""
        head_width = self.shape.width // self.shape.heads
        return step_rotation(
            self.shape.rope, first, grid, self.num_conditions, head_width, self.shape.rope_grid, device
        )


def normed(latents: Tensor) -> Tensor:
    """Norm each latent of [..., D] by its own mean and deviation: LayerNorm without weights, in fp32."""
    return functional.layer_norm(latents.float(), latents.shape[-1:], eps=_NORM_EPS)


def _frame_causal(first: int, num_steps: int, per_step: int, device: torch.device) -> Tensor:
    """Tell what tokens of steps `first` and on see: bool [num_steps * per_step, (first + num_steps) * per_step]."""
    steps = torch.arange(first + num_steps, device=device).repeat_interleave(per_step)
    return steps[first * per_step :, None] >= steps
