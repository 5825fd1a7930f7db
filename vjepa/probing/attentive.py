"""Many attentive heads at once on the same frozen tokens, each with weights of its own: what `AttentiveClassifier`
computes, in few large products.

One query per head reads all tokens, and no token is projected (see models/attentive_pool.py), so H heads of h attention
heads cost H h products with each token: all scores are one product, [H h, D] with [D, K]. The norm of the tokens is
computed without its weights, once for all heads; these fold into the query and, after the weighted sum, into the
values. No gradient reaches a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Final, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vjepa.models.attentive_pool import AttentiveClassifier

# numbers that a backward pass keeps: a few times these, 4 bytes each
_SCORES_AT_ONCE: Final = 1 << 25
_ACTIVATIONS_AT_ONCE: Final = 1 << 27

# logits fp32 [H, B, C], and what B clips teach, [B] or [B, C] -> the mean loss of each head [H]
Loss = Callable[[Tensor, Tensor], Tensor]


class Heads(Protocol):
    """Train and apply H heads on the same tokens."""

    def logits(self, tokens: Tensor) -> Tensor:
        """Apply every head: [B, K, D] -> fp32 [H, B, C]."""
        ...

    def add_gradients(self, tokens: Tensor, targets: Tensor, share: float) -> None:
        """Add the gradients of `share` times the loss of each head.

        tokens: [B, K, D] of clips that teach `targets`.
        """
        ...

    def parameters(self) -> list[list[nn.Parameter]]:
        """List the parameters of each head, with the gradients so far."""
        ...

    def head(self, number: int) -> AttentiveClassifier:
        """Copy one head, frozen, to the CPU."""
        ...

    def take(self, numbers: Sequence[int]) -> None:
        """Go on with the heads of these numbers, a copy of a head for each time that it is named."""
        ...

    def zero_gradients(self) -> None: ...

    def clips_at_once(self, num_tokens: int) -> int:
        """Count the clips of K tokens that `add_gradients` takes without much memory."""
        ...


def cross_entropy(logits: Tensor, classes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average the cross-entropy of each head: logits fp32 [H, B, C], classes int64 [B] -> [H].

    weights: [C], how much a clip of each class counts.
    """
    each = functional.cross_entropy(logits.flatten(0, 1), classes.repeat(len(logits)), reduction="none")
    each = each.view(len(logits), -1)
    return (each if weights is None else each * weights.to(each.device)[classes]).mean(1)


def binary_cross_entropy(logits: Tensor, has: Tensor, weights: Tensor | None = None) -> Tensor:
    """Average the cross-entropy of each class against the rest: logits fp32 [H, B, C], 0 or 1 [B, C] -> [H].

    weights: [2, C], how much it counts that a clip lacks and has each class.
    """
    each = functional.binary_cross_entropy_with_logits(logits, has.expand_as(logits), reduction="none")
    if weights is not None:
        lacks, own = weights.to(each.device)
        each = each * torch.where(has > 0, own, lacks)
    return each.mean((1, 2))


def squared_error(outputs: Tensor, numbers: Tensor) -> Tensor:
    """Average the squared error of each head: fp32 [H, B, 1], and [B, 1] -> [H]."""
    return (outputs - numbers).square().mean((1, 2))


def make_heads(
    start: AttentiveClassifier, num: int, device: torch.device, dtype: torch.dtype, loss: Loss = cross_entropy
) -> Heads:
    """Make `num` heads that all start as `start`, of depth 1 or with self-attention blocks, which no two heads share.

    dtype: of matrix products; weights are fp32.
    """
    if hasattr(start.pooler, "blocks"):
        return SeparateHeads([_trainable(start).to(device) for _ in range(num)], dtype, loss)
    return StackedHeads(start, num, device, dtype, loss)


class StackedHeads:
    """Stack heads of depth 1: every weight is one tensor [H, ...]."""

    def __init__(
        self, first: AttentiveClassifier, num: int, device: torch.device, dtype: torch.dtype, loss: Loss
    ) -> None:
        """Start from `num` copies of `first`."""
        self.attention_heads = first.pooler.cross_attention_block.xattn.heads
        self.eps = first.pooler.cross_attention_block.norm1.eps
        self.first, self.device, self.dtype, self.loss = first, device, dtype, loss
        self.weights: dict[str, Tensor] = {name: weight[None].to(device) for name, weight in first.state_dict().items()}
        self.take([0] * num)

    def parameters(self) -> list[list[nn.Parameter]]:
        """Give views of the stacked weights, so that an optimizer may give each head its own learning rate."""
        for number, views in enumerate(self._views):
            for view, weight in zip(views, self.weights.values(), strict=True):
                view.grad = None if weight.grad is None else weight.grad[number]
        return self._views

    def take(self, numbers: Sequence[int]) -> None:
        self.weights = {name: weight.detach()[list(numbers)].requires_grad_() for name, weight in self.weights.items()}
        self._views = [
            [nn.Parameter(weight.detach()[number]) for weight in self.weights.values()]
            for number in range(len(numbers))
        ]

    def head(self, number: int) -> AttentiveClassifier:
        head = deepcopy(self.first)
        head.load_state_dict({name: weight.detach()[number] for name, weight in self.weights.items()})
        return head.requires_grad_(False).eval()

    def zero_gradients(self) -> None:
        for weight in self.weights.values():
            weight.grad = None

    def clips_at_once(self, num_tokens: int) -> int:
        return max(1, _SCORES_AT_ONCE // (len(self._views) * self.attention_heads * num_tokens))

    def add_gradients(self, tokens: Tensor, targets: Tensor, share: float) -> None:
        (share * self.loss(self.logits(tokens), targets).sum()).backward()  # type: ignore[no-untyped-call]

    def logits(self, tokens: Tensor) -> Tensor:
        with _autocast(self.device, self.dtype):
            pooled = self._attend(functional.layer_norm(tokens.float(), tokens.shape[-1:], eps=self.eps).to(self.dtype))
            query = self._weight("pooler.query_tokens").flatten(1)[:, None] + pooled
            query = query + self._mlp(self._norm(query, "pooler.cross_attention_block.norm2"))
            logits: Tensor = self._linear(query, "linear").float()
            return logits

    def _attend(self, tokens: Tensor) -> Tensor:
        """Attend to tokens that were normed without the weights of the norm: [B, K, D] -> [H, B, D]."""
        block, h = "pooler.cross_attention_block", self.attention_heads
        query = self._linear(self._weight("pooler.query_tokens").flatten(1)[:, None], f"{block}.xattn.q")  # [H, 1, D]
        query = rearrange(query, "H 1 (h d) -> (H h) 1 d", h=h)
        to_key, to_value = rearrange(
            self._weight(f"{block}.xattn.kv.weight"), "H (two h d) c -> two (H h) d c", two=2, h=h
        )
        gain, shift = self._weight(f"{block}.norm1.weight"), self._weight(f"{block}.norm1.bias")
        folded = (query * query.shape[-1] ** -0.5) @ to_key  # [H h, 1, D]
        folded = rearrange(folded, "(H h) 1 c -> H h c", h=h) * gain[:, None]
        # of the shift of the norm and the bias of the keys, softmax sees nothing: they move all scores of a clip alike
        scores = rearrange(folded, "H h c -> 1 (H h) c").to(tokens.dtype).expand(
            len(tokens), -1, -1
        ) @ tokens.transpose(1, 2)
        pooled = rearrange(scores.softmax(-1) @ tokens, "b (H h) c -> (H h) b c", h=h)
        to_value = rearrange(to_value, "(H h) d c -> H (h d) c", h=h)
        bias = self._weight(f"{block}.xattn.kv.bias").chunk(2, dim=1)[1] + (to_value @ shift[:, :, None])[..., 0]
        values = pooled @ rearrange(to_value * gain[:, None], "H (h d) c -> (H h) c d", h=h)
        mixed: Tensor = rearrange(values, "(H h) b d -> H b (h d)", h=h) + bias[:, None]
        return mixed

    def _mlp(self, query: Tensor) -> Tensor:
        hidden = functional.gelu(self._linear(query, "pooler.cross_attention_block.mlp.fc1"))
        return self._linear(hidden, "pooler.cross_attention_block.mlp.fc2")

    def _norm(self, query: Tensor, name: str) -> Tensor:
        normed = functional.layer_norm(query.float(), query.shape[-1:], eps=self.eps)
        return normed * self._weight(f"{name}.weight")[:, None] + self._weight(f"{name}.bias")[:, None]

    def _linear(self, inputs: Tensor, name: str) -> Tensor:
        """Apply the linear layer of each head: [H, B, D] -> [H, B, E]."""
        return torch.baddbmm(
            self._weight(f"{name}.bias")[:, None], inputs, self._weight(f"{name}.weight").transpose(1, 2)
        )

    def _weight(self, name: str) -> Tensor:
        return self.weights[name]


class SeparateHeads:
    """Run heads one after the other, so that the activations of only one are held at a time.

    Their self-attention blocks share nothing.
    """

    def __init__(self, heads: list[AttentiveClassifier], dtype: torch.dtype, loss: Loss) -> None:
        self.heads, self.dtype, self.loss = heads, dtype, loss

    def parameters(self) -> list[list[nn.Parameter]]:
        return [list(head.parameters()) for head in self.heads]

    def head(self, number: int) -> AttentiveClassifier:
        return deepcopy(self.heads[number]).cpu().requires_grad_(False).eval()

    def take(self, numbers: Sequence[int]) -> None:
        self.heads = [_trainable(self.heads[number]) for number in numbers]

    def zero_gradients(self) -> None:
        for head in self.heads:
            head.zero_grad()

    def clips_at_once(self, num_tokens: int) -> int:
        pooler = self.heads[0].pooler
        return max(1, _ACTIVATIONS_AT_ONCE // (num_tokens * pooler.query_tokens.shape[-1] * 16 * len(pooler.blocks)))

    def add_gradients(self, tokens: Tensor, targets: Tensor, share: float) -> None:
        for head in self.heads:
            loss = self.loss(self._logits(head, tokens)[None], targets)[0]
            (share * loss).backward()  # type: ignore[no-untyped-call]

    def logits(self, tokens: Tensor) -> Tensor:
        return torch.stack([self._logits(head, tokens) for head in self.heads])

    def _logits(self, head: AttentiveClassifier, tokens: Tensor) -> Tensor:
        with _autocast(tokens.device, self.dtype):
            logits: Tensor = head(tokens.float())
        return logits.float()


def _trainable(head: AttentiveClassifier) -> AttentiveClassifier:
    copy = deepcopy(head)
    copy.requires_grad_(True)
    return copy


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
