"""The transformer block that encoder and predictor share."""

from __future__ import annotations

from typing import Final, TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vjepa import config
from vjepa.models.positions import Rotation
from vjepa.ranks import StepShare

# How many tokens each set has where several lie one after the other along K, each of which attends within itself; None:
# one set.
Sets: TypeAlias = tuple[int, ...] | None
# Bytes of attention weights, kept for the backward pass, above which the fused kernel, which keeps none, is used on
# every device.
MOST_WEIGHTS: Final = 1 << 28


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Take tokens `ids` int64 [B, K] out of [B, N, D] -> [B, K, D]; the index is expanded, never copied."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class LayerNorm(nn.LayerNorm):
    """Norm [B, K, D] in the dtype of the input, under autocast too.

    Mean and deviation are fp32 inside the kernel anyhow. On a GPU, autocast would copy the input to fp32 and the output
    back: five times the memory traffic, and an fp32 copy kept for the backward pass. A CPU's kernel takes fp32 weights
    as they are.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.device.type == "cpu" or not torch.is_autocast_enabled(tokens.device.type):
            return super().forward(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            weight, bias = self.weight.to(tokens.dtype), self.bias.to(tokens.dtype)
            return functional.layer_norm(tokens, self.normalized_shape, weight, bias, self.eps)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v over [B, h, K, d].

    The CPU's fused kernel is two to four times slower in bf16 than the three plain products, forward and backward
    (RESULTS.md); everywhere else the fused one is the faster and needs no K x K matrix.
    """
    num_heads = query.shape[1]
    num_bytes = query.element_size() * query[..., 0].numel() * key.shape[-2]
    if query.device.type == "cpu" and query.dtype is torch.bfloat16 and num_bytes <= MOST_WEIGHTS:
        # copied once, as products want them
        query, key, value = (rearrange(part, "b h k d -> (b h) k d") for part in (query, key, value))
        weights = torch.bmm(query * query.shape[-1] ** -0.5, key.mT).softmax(dim=-1)
        return rearrange(torch.bmm(weights, value), "(b h) k d -> b h k d", h=num_heads)
    return functional.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Attend by several heads over all tokens, or within each of several sets of them; [B, K, D] -> [B, K, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, rotate: Rotation | None, sizes: Sets = None) -> Tensor:
        """Mix tokens b k (h d) -> b k (h d), by queries, keys and values b k (3 h d)."""
        heads = rearrange(self.qkv(tokens), "b k (n d) -> b k n d", n=3 * self.heads)
        query_key, value = heads.split([2 * self.heads, self.heads], dim=2)
        if rotate is not None:
            query_key = rotate(query_key)
        whole = [tokens.shape[1]] if sizes is None else list(sizes)
        sets = zip(query_key.split(whole, dim=1), value.split(whole, dim=1), strict=True)
        mixed = [self._mix(*parts) for parts in sets]
        return self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1))  # type: ignore[no-any-return]

    def _mix(self, query_key: Tensor, value: Tensor) -> Tensor:
        """Attend within one set: b k (2 h) d, b k h d -> b k (h d)."""
        query, key = rearrange(query_key, "b k (two h) d -> two b h k d", two=2).unbind(0)
        return rearrange(attend(query, key, rearrange(value, "b k h d -> b h k d")), "b h k d -> b k (h d)")


class Mlp(nn.Module):
    """Apply two linear layers with a GELU between; [B, K, D] -> [B, K, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    @property
    def output(self) -> nn.Linear:
        return self.fc2

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(tokens)))  # type: ignore[no-any-return]


class SwiGlu(nn.Module):
    """Apply a gated MLP of about as many weights as `Mlp`; [B, K, D] -> [B, K, D].

    It has two thirds of the hidden width, rounded up to 8s (Shazeer 2020, eq. 6).
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        hidden = 8 * -(-(2 * hidden // 3) // 8)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(width, hidden)
        self.fc3 = nn.Linear(hidden, width)

    @property
    def output(self) -> nn.Linear:
        return self.fc3

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc3(functional.silu(self.fc1(tokens)) * self.fc2(tokens))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Apply a pre-norm transformer block (ViT, Dosovitskiy et al. 2021, eq. 2-3); [B, K, D] -> [B, K, D]."""

    def __init__(self, shape: config.Transformer, drop_path: float) -> None:
        """Make a block of this shape. drop_path: chance that a clip skips a half of it in training."""
        super().__init__()
        hidden = round(shape.width * shape.mlp_ratio)
        self.norm1 = LayerNorm(shape.width)
        self.attn = Attention(shape.width, shape.heads)
        self.norm2 = LayerNorm(shape.width)
        self.mlp = SwiGlu(shape.width, hidden) if shape.mlp == "swiglu" else Mlp(shape.width, hidden)
        self.drop_path = drop_path
        self.place, self.num_parts = 0, 1
        self.recompute = shape.recompute

    def forward(self, tokens: Tensor, rotate: Rotation | None = None, sizes: Sets = None) -> Tensor:
        if self.recompute == "block" and torch.is_grad_enabled():
            return checkpoint(self._forward, tokens, rotate, sizes, use_reentrant=False)
        return self._forward(tokens, rotate, sizes)

    def _forward(self, tokens: Tensor, rotate: Rotation | None, sizes: Sets) -> Tensor:
        tokens = tokens + self._skip(self.attn(self.norm1(tokens), rotate, sizes))
        return tokens + self._skip(self._mlp(self.norm2(tokens)))

    def _mlp(self, tokens: Tensor) -> Tensor:
        if self.recompute == "mlp" and torch.is_grad_enabled():
            return checkpoint(self.mlp, tokens, use_reentrant=False)  # type: ignore[no-any-return]
        return self.mlp(tokens)  # type: ignore[no-any-return]

    def _skip(self, update: Tensor) -> Tensor:
        """Drop the update of some clips, and scale up the others' so that the mean stays (Huang et al. 2016).

        It is drawn for all parts of a step, so that what a clip skips does not depend on the part that it is in.
        """
        if not self.training or self.drop_path == 0:
            return update
        keep = 1 - self.drop_path
        num = len(update)
        drawn = update.new_empty(self.num_parts * num, 1, 1).bernoulli_(keep).div_(keep)
        return update * drawn[self.place * num : (self.place + 1) * num]


def set_share(module: nn.Module, share: StepShare) -> None:
    """Tell the blocks of `module` which part of the clips of a step they see next."""
    for block in module.modules():
        if isinstance(block, Block):
            block.place, block.num_parts = share.place, share.num


def make_blocks(shape: config.Transformer) -> nn.ModuleList:
    """Make `shape.depth` blocks; the chance to skip one rises linearly from 0 to `shape.drop_path`."""
    last = max(shape.depth - 1, 1)
    return nn.ModuleList(Block(shape, shape.drop_path * number / last) for number in range(shape.depth))


def initialise(module: nn.Module) -> None:
    """Draw linear weights from a normal of std .02 cut at 2 std, set biases 0, and scale down each block's outputs.

    The scaling by 1/sqrt(2 l) for block l (BEiT, section 2.3) comes last, so that nothing undoes it.
    A module on the meta device has no values to draw; PyTorch would import SymPy for the scaling, a second.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        return
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            small_normal(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    blocks = [layer for layer in module.modules() if isinstance(layer, Block)]
    for number, block in enumerate(blocks, start=1):
        for output in (block.attn.proj, block.mlp.output):
            output.weight.data.div_((2.0 * number) ** 0.5)


def small_normal(weight: Tensor) -> None:
    nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)
