"""The energy transformer (Hoover et al. 2023, arXiv 2302.07253, section 2): every block is a step down one energy of
all tokens of a clip.

Tokens x [B, K, D], normed g; x <- x - alpha dE/dg, again and again with the same weights. With d the change of g in a
step:

    dE/dg . d <= -s / (alpha gamma) |d|^2      g is the gradient of a convex Lagrangian, and no derivative of it is
                                               above gamma / s, s the least sqrt(variance + eps) of a token on the way
    E(g + d) <= E(g) + dE/dg . d + c/2 |d|^2   the Hopfield energy is concave, and the curvature of the attention energy
                                               is at most c = (1 + K) sum_h |W_K^h' W_Q^h| (spectral norms)

so that every step of alpha <= 2 s / (gamma c) lowers the energy. That is a bound for the worst case;
`encoder.step_size` is what is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vjepa import config
from vjepa.models.encoder import PatchEncoder, Patches
from vjepa.models.layers import initialise


class EnergyNorm(nn.Module):
    """Norm [..., D]: g = gamma (x - mean) / sqrt(variance + eps) + delta; gamma is one number.

    It is the gradient of the Lagrangian D gamma sqrt(variance + eps) + delta . x. Kept as a logarithm gamma stays
    positive, which makes that convex.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.log_gamma = nn.Parameter(torch.zeros(()))
        self.delta = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.log_gamma.exp() * functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) + self.delta


class Energy(nn.Module):
    """Sum energy attention and a Hopfield network: normed tokens [B, K, D] -> the energy of each clip [B].

    E_att = -1/beta sum_h sum_C log sum_B exp(beta k_hB . q_hC), keys k = W_K g, queries q = W_Q g, beta = 1 / sqrt(head
    width); every token is among the keys of every query. E_hopfield = -1/2 sum_B sum_m relu(xi_m . g_B)^2, xi_m the
    memories. Neither has values or biases.
    """

    def __init__(self, width: int, heads: int, memories: int) -> None:
        super().__init__()
        self.heads, self.beta = heads, (width // heads) ** -0.5
        self.key = nn.Linear(width, width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.memory = nn.Linear(width, memories, bias=False)

    def forward(self, normed: Tensor) -> Tensor:
        key, query = self._heads(normed)
        attention = torch.logsumexp(self.beta * query @ key.transpose(-2, -1), dim=-1).sum((1, 2)) / self.beta
        hopfield = self.memory(normed).relu().square().sum((1, 2)) / 2
        return -attention - hopfield  # type: ignore[no-any-return]

    def gradient(self, normed: Tensor) -> Tensor:
        """Derive dE/dg [B, K, D].

        Each token is pulled to the keys that its query meets, to the queries that meet its key, and to the memories it
        is like.
        """
        key, query = self._heads(normed)
        met = (self.beta * query @ key.transpose(-2, -1)).softmax(dim=-1)  # [B, h, C, B']: of each query over all keys
        by_query = rearrange(met @ key, "b h k d -> b k (h d)") @ self.query.weight
        by_key = rearrange(met.transpose(-2, -1) @ query, "b h k d -> b k (h d)") @ self.key.weight
        by_memory = self.memory(normed).relu() @ self.memory.weight
        return -(by_query + by_key + by_memory)  # type: ignore[no-any-return]

    def _heads(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Split keys and queries into heads, b k (h d) -> b h k d."""
        key, query = (rearrange(part(normed), "b k (h d) -> b h k d", h=self.heads) for part in (self.key, self.query))
        return key, query


class EnergyTransformer(PatchEncoder):
    """Take `encoder.depth` steps of `encoder.step_size` down the energy of the tokens given.

    Features are the normed tokens.
    """

    def __init__(self, model: config.Model) -> None:
        super().__init__(model)
        shape = model.encoder
        self.energy = Energy(shape.width, shape.heads, round(shape.width * shape.mlp_ratio))
        self.norm = EnergyNorm(shape.width)
        initialise(self)

    def descend(self, tokens: Tensor) -> Iterator[Tensor]:
        """Give the tokens [B, K, D] after each step."""
        for _ in range(self.depth):
            tokens = tokens - self.model.encoder.step_size * self.energy.gradient(self.norm(tokens))
            yield tokens

    def _run(self, patches: Patches, ids: Tensor | None, depths: Sequence[int]) -> list[Tensor]:
        steps = enumerate(self.descend(self._embed(patches, ids)))
        features = {depth: self.norm(tokens) for depth, tokens in steps if depth in depths}
        return [features[depth] for depth in depths]
