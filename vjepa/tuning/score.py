"""What a trial is worth: without labels, how many directions its features use, and how surely a part of a clip tells
which clip it is of; with labels, what the online probe reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from vjepa.config import Channels
from vjepa.counter_rng import generator
from vjepa.data.augment import RGB, normalise
from vjepa.health.measures import effective_rank
from vjepa.health.verdict import Row
from vjepa.models.encoder import Encoder

ScoreName = Literal["without labels", "k-NN"]
SCORES: Final[dict[ScoreName, Callable[[Row], float]]] = {
    "without labels": lambda row: row["tuner/rank"] * row["tuner/information"],
    "k-NN": lambda row: row["knn"],
}

_CROPS: Final = 3
_LEAST_SIDE: Final = 0.7  # of a crop, as a share of the frame's
_NOISE_FLOOR: Final = 1e-4  # of the variance of features


@torch.no_grad()
def label_free(
    encoder: Encoder, clips: Tensor, crops: Tensor, batch: int, dtype: torch.dtype, channels: Channels = RGB
) -> dict[str, float]:
    """Measure an encoder on clips [B, C, T, H, W] and on B x Q crops of them, those of a clip side by side."""
    whole = pooled(encoder, clips, batch, dtype, channels)
    views = rearrange(pooled(encoder, crops, batch, dtype, channels), "(b q) d -> b q d", b=len(clips))
    return {"tuner/rank": effective_rank(whole), "tuner/information": information(views)}


def crop(clips: Tensor, seed: int) -> Tensor:
    """Take _CROPS random parts of the shape of each clip, enlarged to its size: [B, C, T, H, W] -> [B * Q, C, T, H, W].

    Their places are drawn along the width, in which they have some room; the rows follow.
    """
    (height, side), found = clips.shape[-2:], []
    for number, clip in enumerate(clips):
        rng = generator(seed, "tuner_views", number)
        for _ in range(_CROPS):
            size = int(rng.integers(round(_LEAST_SIDE * side), side + 1))
            y, x = rng.integers(0, side - size + 1, 2)
            rows, y = round(size * height / side), int(y) * height // side
            frames = clip[:, :, y : y + rows, x : x + size].transpose(0, 1).float()
            found.append(functional.interpolate(frames, size=(height, side), mode="bilinear").transpose(0, 1))
    return torch.stack(found).round().to(clips.dtype)


def pooled(encoder: Encoder, videos: Tensor, batch: int, dtype: torch.dtype, channels: Channels = RGB) -> Tensor:
    """Compute mean-pooled features [N, D] of clips, in evaluation, `batch` at a time."""
    device, training = next(encoder.parameters()).device, encoder.training
    encoder.eval()
    with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
        clips = (normalise(part.to(device), dtype, channels) for part in torch.split(videos, batch))
        parts = [encoder(part).float().mean(dim=1) for part in clips]
    encoder.train(training)
    return torch.cat(parts)


def information(views: Tensor) -> float:
    """Estimate how many nats a view tells about which clip it is of: views [N, Q, D], Q >= 2.

    Of a Gaussian channel: half the sum of log(1 + s), s the eigenvalues of Sw^-1/2 Sb Sw^-1/2. Sw is the covariance of
    views around the mean of their clip, with a small floor; Sb that of the means, less the share of it that is noise
    of views, Sw / Q. Of more directions than Sw can be known in, the widest are taken. 0 where nothing tells clips
    apart.
    """
    views = views.detach().to("cpu", torch.float64)
    num, each = views.shape[:2]
    centred = views - views.mean(dim=(0, 1))
    scale = centred.square().mean().sqrt()
    if scale == 0:
        return 0.0
    _, _, axes = torch.linalg.svd((centred / scale).flatten(0, 1), full_matrices=False)
    inside = (centred / scale) @ axes[: max(1, num * (each - 1) // 2)].T
    means = inside.mean(dim=1)
    residuals = (inside - means.unsqueeze(1)).flatten(0, 1)
    within = residuals.T @ residuals / (num * (each - 1))
    between = means.T @ means / num - within / each
    root = torch.linalg.cholesky(within + _NOISE_FLOOR * torch.eye(len(within), dtype=within.dtype))
    half = torch.linalg.solve_triangular(root, between, upper=False)
    whitened = torch.linalg.solve_triangular(root, half.T, upper=False)
    signal = torch.linalg.eigvalsh((whitened + whitened.T) / 2).clamp(min=0)
    return float(torch.log1p(signal).sum() / 2)
