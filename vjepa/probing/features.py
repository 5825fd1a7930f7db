"""Clips to frozen features, one row per clip. A pass over the loader decodes once and serves several
kinds of features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

from vjepa.data.augment import normalise
from vjepa.errors import UserError
from vjepa.records import ClipBatch

# uint8 [B, 3, T, S, S] -> float [B, D]
Extractor = Callable[[torch.Tensor], torch.Tensor]

PIXELS_PX = 32
_CPU_CLIPS = 16  # the demo's encoder makes 138 clips/s of them, 119 of batches of 64


@dataclass(frozen=True)
class Features:
    """What an extractor made of the clips that could be read.

    values: float32 [N, D].
    clip_ids: int64 [N], rows of the clip index.
    failures: the rows that could not be read, as (clip_id, reason).
    """

    values: np.ndarray
    clip_ids: np.ndarray
    failures: tuple[tuple[int, str], ...] = ()


def extract(loader: Iterable[ClipBatch], extractors: Mapping[str, Extractor]) -> dict[str, Features]:
    """Features of every clip of `loader` under the name of each extractor. Raises UserError where none could be read,
    or a feature is NaN.
    """
    values: dict[str, list[np.ndarray]] = {name: [] for name in extractors}
    clip_ids: list[np.ndarray] = []
    failures: list[tuple[int, str]] = []
    for batch in loader:
        failures += batch.failures
        if not len(batch.clip_ids):
            continue
        clip_ids.append(batch.clip_ids.numpy())
        for name, extractor in extractors.items():
            values[name].append(extractor(batch.video).cpu().numpy())
    if not clip_ids:
        raise UserError(
            "no clip to measure could be read" + (f"; row {failures[0][0]}: {failures[0][1]}" if failures else "")
        )
    ids = np.concatenate(clip_ids)
    features = {name: Features(np.concatenate(parts), ids, tuple(failures)) for name, parts in values.items()}
    for name, found in features.items():
        if not np.isfinite(found.values).all():
            raise UserError(
                f"{name}: features hold NaN or infinity; the encoder has diverged, measure an earlier checkpoint"
            )
    return features


def encode(encoder: nn.Module, device: torch.device, dtype: torch.dtype) -> Extractor:
    """The extractor of a frozen encoder on `device`: the mean over its tokens, [B, 3, T, S, S] -> [B, D].

    `dtype` is the precision of the forward pass; the mean is taken in fp32. A CPU gets a few clips at a time, so that
    what it makes of them stays in its cache.
    """

    def extractor(video: torch.Tensor) -> torch.Tensor:
        few = _CPU_CLIPS if device.type == "cpu" else len(video)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            tokens: list[torch.Tensor] = [
                encoder(normalise(clips.to(device), dtype)) for clips in torch.split(video, few)
            ]
        return torch.cat([clips.float().mean(1) for clips in tokens])

    return extractor


def pixels(video: torch.Tensor) -> torch.Tensor:
    """[B, 3, T, S, S] -> [B, T * 3 * 32 * 32] in 0..1: every frame as it is, shrunk to at most 32 px a side."""
    return rearrange(_small(video), "b t c h w -> b (t c h w)")


def motion_energy(video: torch.Tensor) -> torch.Tensor:
    """[B, 3, T, S, S] -> [B, (T - 1) * 32 * 32]: how much each grey pixel changes from frame to frame, in order.

    It sees where and when things move and nothing of how they look; a single frame has none (one zero).
    """
    grey = _small(video).mean(2)
    change = (grey[:, 1:] - grey[:, :-1]).abs()
    return rearrange(change, "b t h w -> b (t h w)") if video.shape[2] > 1 else grey.new_zeros(len(grey), 1)


def _small(video: torch.Tensor) -> torch.Tensor:
    """b c t h w, uint8 -> b t c h w, float in 0..1, at most 32 px a side, antialiased."""
    frames = rearrange(video, "b c t h w -> (b t) c h w").float() / 255
    if frames.shape[-1] > PIXELS_PX:
        frames = functional.interpolate(frames, size=(PIXELS_PX, PIXELS_PX), mode="bilinear", antialias=True)
    return rearrange(frames, "(b t) c h w -> b t c h w", b=len(video))
