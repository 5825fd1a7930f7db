"""Clip-consistent crop and flip in uint8; normalisation where the video is. A box is (top, left, height, width) in pixels."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional

Box = tuple[int, int, int, int]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


def random_crop_box(rng: np.random.Generator, height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float]) -> Box:
    """A box whose area is a uniform share in `scale` of the frame and whose width over height is log-uniform in `aspect`.

    After ten boxes that do not fit in the frame, the last one is cut to it.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            break
    h, w = min(max(h, 1), height), min(max(w, 1), width)
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def centre_crop_box(height: int, width: int) -> Box:
    """The largest centred square."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def crop_resize(frames: np.ndarray, box: Box, crop_px: int, flip: bool = False) -> torch.Tensor:
    """uint8 [T, H0, W0, 3] -> uint8 [3, T, S, S], S = crop_px: the same box of every frame, antialiased, mirrored if `flip`."""
    top, left, h, w = box
    clip = rearrange(torch.from_numpy(frames[:, top : top + h, left : left + w]), "t h w c -> t c h w")
    if (h, w) != (crop_px, crop_px):
        clip = functional.interpolate(clip, size=(crop_px, crop_px), mode="bilinear", antialias=True)
    return rearrange(clip.flip(-1) if flip else clip, "t c h w -> c t h w")


def normalise(video: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 [B, 3, T, S, S] -> `dtype` of the same shape, on the same device: mean 0 and deviation 1 on ImageNet, by channel."""
    mean = rearrange(torch.tensor(IMAGENET_MEAN, device=video.device), "c -> c 1 1 1")
    std = rearrange(torch.tensor(IMAGENET_STD, device=video.device), "c -> c 1 1 1")
    return video.float().mul_(1 / (255 * std)).sub_(mean / std).to(dtype)
