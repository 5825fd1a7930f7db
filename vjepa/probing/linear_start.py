"""Start an attentive head where a linear read-out of the mean token stands, and where AdamW moves it well.

Attention is flat: the query is 0, so every score is. Blocks and MLP add nothing: their last layers are 0. What is left
is linear, mean of the normed tokens -> values -> classes, and equals ridge regression. Each of these zeros has a
gradient, so the head goes on from there.

AdamW moves every weight by about the learning rate, whatever the scale of what it multiplies. Tokens of one encoder
resemble each other: their mean varies from clip to clip in directions a hundred times smaller than others, which such
steps would drown. So the values whiten the mean token and the keys whiten single tokens, each turned at random, for an
attention head reads the values of some of the axes alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from vjepa.counter_rng import generator
from vjepa.models.attentive_pool import AttentiveClassifier, AttentivePooler
from vjepa.probing import linear
from vjepa.probing.metrics import Floats, Texts
from vjepa.probing.task import Targets, Task

_FLOOR: Final = 0.01  # of a variance, as a share of the mean variance: what is smaller is not blown up
_TOKENS: Final = 16  # of a clip, that count for the covariance of single tokens
_EPS: Final = 1e-5  # of the norm of the published heads


@dataclass(frozen=True)
class MeanTokens:
    """Hold the mean of the normed tokens of n clips.

    means: [n, V, D] for V views of each. covariance: float64 [D, D], of single tokens.
    """

    means: Floats
    covariance: Tensor

    @classmethod
    def of(cls, batches: Iterable[Iterable[Tensor]]) -> MeanTokens:
        """Read batches of clips, each as the tokens [B, K, D] of one view after the other, on any device."""
        means, num = [], 0
        for views in batches:
            normed = [functional.layer_norm(tokens.float(), tokens.shape[-1:], eps=_EPS) for tokens in views]
            means.append(torch.stack([tokens.mean(1) for tokens in normed], 1).cpu())
            stride = -(-normed[0].shape[1] // _TOKENS)
            few = torch.cat([tokens[:, ::stride].flatten(0, 1) for tokens in normed]).cpu().double()  # MPS has no fp64
            if not num:
                total, squares = torch.zeros_like(few[0]), torch.zeros_like(few.T @ few)
            num, total, squares = num + len(few), total + few.sum(0), squares + few.T @ few
        centre = total / num
        return cls(torch.cat(means).numpy(), squares / num - torch.outer(centre, centre))


def linear_start(
    pooler: AttentivePooler, train: MeanTokens, read_out: linear.LinearModel, seed: int
) -> AttentiveClassifier:
    """Make the head, its shape that of `pooler`, whose weights it takes and changes.

    read_out: of the mean of the normed tokens, whose outputs it starts with. seed: of the turns.
    """
    head = AttentiveClassifier(pooler, len(read_out.bias))
    for block in getattr(pooler, "blocks", ()):
        _silence(block.attn.proj, block.mlp.fc2)
    last = pooler.cross_attention_block
    _silence(last.mlp.fc2)
    with torch.no_grad():
        means = rearrange(torch.from_numpy(train.means), "n v d -> (n v) d").double()
        centre = means.mean(0)
        to_value = _turn(centre, seed, 0) @ _whiten((means - centre).T @ (means - centre) / len(means))
        to_key = _turn(centre, seed, 1) @ _whiten(train.covariance)
        weights = torch.from_numpy(read_out.weights)
        pooler.query_tokens.zero_()
        last.xattn.kv.weight.copy_(torch.cat([to_key, to_value]))
        last.xattn.kv.bias.copy_(torch.cat([0 * centre, -to_value @ centre]))
        head.linear.weight.copy_(torch.linalg.solve(to_value.T, weights).T)
        head.linear.bias.copy_(torch.from_numpy(read_out.bias) + centre @ weights)
    return head


def read_out(
    task: Task, train: MeanTokens, targets: Targets, selection: MeanTokens, labels: Texts
) -> linear.LinearModel:
    """Fit ridge regression on the mean token, its alpha and how it becomes logits (`task.starts`) chosen on selection.

    targets: of the n train clips; labels: of the selection clips. By the criterion of the task, then by the likelihood
    of the labels; views of a clip are averaged.
    """
    views, link = train.means.shape[1], linear.LINKS[task.link(task.heads[0])]
    samples = rearrange(train.means, "n v d -> (n v) d")
    learned, chosen_on = linear.prepare(samples, rearrange(selection.means, "n v d -> (n v) d"))
    weights = task.weights(targets)
    models = linear.fit_ridge(
        learned,
        np.repeat(targets.scaled(), views, 0),
        linear.ALPHA_CHOICES,
        None if weights is None else np.repeat(weights, views, 0),
    )

    def merit(choice: tuple[linear.LinearModel, tuple[float, float]]) -> tuple[float, float]:
        model, (factor, shift) = choice
        answers = link(factor * model.scores(chosen_on) + shift) * targets.spread + targets.centre
        answers = rearrange(answers, "(n v) c -> n v c", n=len(labels)).mean(1)
        ((value, _),) = task.judge([(labels, answers[None])], targets.names)
        return value, task.likelihood(answers, targets.names, labels)

    model, (factor, shift) = max(product(models, task.starts), key=merit)
    raw = linear.of_raw(model, learned, samples)
    return linear.LinearModel(factor * raw.weights, factor * raw.bias + shift, raw.loss)


def _whiten(covariance: Tensor) -> Tensor:
    """Compute (covariance + floor)^-1/2, float64 [D, D]."""
    values, axes = torch.linalg.eigh(covariance)
    floor = max(_FLOOR * float(values.mean()), 1e-12)
    scaled: Tensor = (axes * (values.clamp(min=0) + floor) ** -0.5) @ axes.T
    return scaled


def _turn(like: Tensor, seed: int, counter: int) -> Tensor:
    """Draw an orthogonal matrix float64 [D, D] for vectors `like` [D]."""
    noise = generator(seed, "probe_weights", 1 + counter).normal(size=(len(like), len(like)))
    turn: Tensor = torch.linalg.qr(torch.from_numpy(noise))[0]
    return turn


def _silence(*layers: torch.nn.Linear) -> None:
    for layer in layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
