"""Heads of frozen probes: attentive pooling, where one learned query reads all tokens of a clip, as in V-JEPA (section
4.1) and V-JEPA 2 (section 4.1); and a linear layer on tokens that are averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from vjepa import config
from vjepa.models.layers import Block, Mlp, initialise, small_normal
from vjepa.models.pooling import MEAN, Pooling

Link = Literal["softmax", "shares", "sigmoid", "clip", "identity"]
# outputs of a head [..., C] -> its answers: probabilities of one class a clip (`softmax` of logits, `shares` of ridge
# regression to the classes), of each class alone (`sigmoid`, and `clip` of ridge regression), or numbers (`identity`)
LINKS: Final[dict[Link, Callable[[Tensor], Tensor]]] = {
    "softmax": lambda scores: scores.softmax(-1),
    "shares": lambda scores: scores.clamp(min=0) / scores.clamp(min=0).sum(-1, keepdim=True),
    "sigmoid": torch.sigmoid,
    "clip": lambda scores: scores.clamp(0, 1),
    "identity": lambda scores: scores,
}


class Answering(nn.Module):
    """Say what the outputs of a head mean.

    task: `classify`, `regress` or `multilabel`. link: a name of LINKS. classes: the names of the outputs, where they
    are known; `number` where it is one.
    """

    task: str = "classify"
    link: Link = "softmax"
    classes: tuple[str, ...] = ()

    def answers(self, tokens: Tensor) -> Tensor:
        """Read [B, K, D] -> [B, C]: the probability of each class, or numbers in the unit of the label."""
        return LINKS[self.link](self(tokens))


class CrossAttention(nn.Module):
    """Attend from one query, the same for every clip, by several heads.

    No projection follows, as in the published probes.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Read query [1, 1, D] from tokens [B, K, D] -> [B, 1, D].

        No token is projected: q . (W_k x) = (W_k' q) . x, and the weighted sum is taken before W_v. That is K D h
        multiplications in place of K D^2. The bias of the keys shifts all scores alike, so softmax drops it; weights
        sum to 1, so that of the values is added once.
        """
        query = rearrange(self.q(query), "1 1 (h d) -> h 1 d", h=self.heads)
        to_key, to_value = rearrange(self.kv.weight, "(two h d) c -> two h d c", two=2, h=self.heads)
        folded = (query * query.shape[-1] ** -0.5) @ to_key  # [h, 1, D]
        scores = tokens @ rearrange(folded, "h 1 c -> c h")  # [B, K, h]
        pooled = scores.softmax(dim=1).transpose(1, 2) @ tokens  # [B, h, D]
        values = torch.einsum("bhc,hdc->bhd", pooled, to_value)
        return rearrange(values, "b h d -> b 1 (h d)") + self.kv.bias.chunk(2)[1]


class CrossAttentionBlock(nn.Module):
    """Let the query read the normed tokens, then pass an MLP; the query itself is not normed before it reads."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.xattn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Read query [1, 1, D] from tokens [B, K, D] -> [B, 1, D]."""
        query = query + self.xattn(query, self.norm1(tokens))
        return query + self.mlp(self.norm2(query))  # type: ignore[no-any-return]


class AttentivePooler(nn.Module):
    """Pool [B, K, D] -> [B, D] by `depth - 1` self-attention blocks over the tokens, then one query.

    Parameter names are those of the published files (V-JEPA section 4.1, V-JEPA 2 section 4.1).
    depth: 1 in V-JEPA, 4 in V-JEPA 2. norm_eps: 1e-5 in their probes, 1e-6 in Hugging Face's.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, depth: int = 1, norm_eps: float = 1e-5) -> None:
        super().__init__()
        shape = config.Transformer(width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio)
        self.query_tokens = nn.Parameter(torch.empty(1, 1, width))
        self.cross_attention_block = CrossAttentionBlock(width, heads, round(width * mlp_ratio))
        if depth > 1:
            self.blocks = nn.ModuleList(Block(shape, drop_path=0.0) for _ in range(depth - 1))
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
        small_normal(self.query_tokens)
        initialise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        for block in getattr(self, "blocks", ()):
            tokens = block(tokens)
        return self.cross_attention_block(self.query_tokens, tokens).squeeze(1)  # type: ignore[no-any-return]


class AttentiveClassifier(Answering):
    """Classify [B, K, D] -> logits [B, C] by an AttentivePooler and a linear layer."""

    def __init__(self, pooler: AttentivePooler, num_classes: int) -> None:
        super().__init__()
        self.pooler = pooler
        self.linear = nn.Linear(pooler.query_tokens.shape[-1], num_classes)
        initialise(self.linear)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.pooler(tokens))  # type: ignore[no-any-return]


class LinearClassifier(Answering):
    """Classify [B, N, D] -> logits [B, C]: tokens pooled to [B, P, D], side by side, and a linear layer."""

    def __init__(self, width: int, num_classes: int, pooling: Pooling = MEAN) -> None:
        """Make the layer at random weights. width: P * D."""
        super().__init__()
        self.pooling = pooling
        self.linear = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.pooling(tokens).flatten(1))  # type: ignore[no-any-return]
