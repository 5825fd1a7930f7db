"""The transformer block that encoder and predictor share."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """[B, N, D], int64 [B, K] -> [B, K, D]; the index is expanded, never copied."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class Attention(nn.Module):
    """Multi-head self-attention over all tokens given; [B, K, D] -> [B, K, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """b k (3 h d) -> b k (h d)"""
        query, key, value = rearrange(self.qkv(tokens), "b k (three h d) -> three b h k d", three=3, h=self.heads).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(rearrange(mixed, "b h k d -> b k (h d)"))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with a GELU between; [B, K, D] -> [B, K, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(tokens)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block (ViT, Dosovitskiy et al. 2021, eq. 2-3); [B, K, D] -> [B, K, D]."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]


def initialise(module: nn.Module) -> None:
    """Linear weights from a normal of std .02 cut at 2 std, biases 0; then each block's outputs are scaled down with depth.

    The scaling by 1/sqrt(2 l) for block l (BEiT, section 2.3) comes last, so that nothing undoes it.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            nn.init.zeros_(layer.bias)
    blocks = [layer for layer in module.modules() if isinstance(layer, Block)]
    for number, block in enumerate(blocks, start=1):
        for output in (block.attn.proj, block.mlp.fc2):
            output.weight.data.div_((2.0 * number) ** 0.5)
