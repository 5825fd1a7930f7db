"""Clip-consistent crop and flip in uint8; normalisation where the video is.

A box is (top, left, height, width) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional

Box = tuple[int, int, int, int]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


def random_crop_box(
    rng: np.random.Generator, height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    """Draw a box: area a uniform share in `scale` of the frame, width over height log-uniform in `aspect`.

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


def view_boxes(height: int, width: int, num_crops: int) -> list[Box]:
    """Lay `num_crops` squares, as large as fit, evenly along the longer side from end to end.

    A single one is in the centre.
    """
    side = min(height, width)
    places = [(k / (num_crops - 1) if num_crops > 1 else 0.5) for k in range(num_crops)]
    return [(int((height - side) * place), int((width - side) * place), side, side) for place in places]


def size_needed(boxes: Sequence[Box], height: int, width: int, crop_px: int) -> tuple[int, int] | None:
    """Find the smallest whole fraction of a frame, (height, width), that leaves every box `crop_px` a side.

    None: no smaller than the frame.
    """
    fraction = min(min(h, w) for _, _, h, w in boxes) // crop_px
    return (-(-height // fraction), -(-width // fraction)) if fraction > 1 else None


def scaled_box(box: Box, height: int, width: int, frames: np.ndarray) -> Box:
    """Scale a box of a frame of `height` x `width` to frames [T, H, W, 3] of another size."""
    top, left, h, w = box
    down, across = frames.shape[1] / height, frames.shape[2] / width
    new_h, new_w = min(round(h * down), frames.shape[1]), min(round(w * across), frames.shape[2])
    top, left = min(round(top * down), frames.shape[1] - new_h), min(round(left * across), frames.shape[2] - new_w)
    return top, left, new_h, new_w


def crop_resize(frames: np.ndarray, box: Box, crop_px: int, flip: bool = False) -> torch.Tensor:
    """Cut the same box out of every frame: uint8 [T, H0, W0, 3] -> uint8 [3, T, S, S], S = crop_px.

    It is resized, antialiased, and mirrored if `flip`.
    """
    top, left, h, w = box
    clip = rearrange(torch.from_numpy(frames[:, top : top + h, left : left + w]), "t h w c -> t c h w")
    if (h, w) != (crop_px, crop_px):
        clip = functional.interpolate(clip, size=(crop_px, crop_px), mode="bilinear", antialias=True)
    return rearrange(clip.flip(-1) if flip else clip, "t c h w -> c t h w")


def normalise(video: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bring each channel to mean 0 and deviation 1 on ImageNet: uint8 [B, 3, T, S, S] -> the same shape in `dtype`.

    The video stays on its device.
    """
    scale, shift = _scale_and_shift(video.device)
    return video.float().mul_(scale).sub_(shift).to(dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(mode=False)  # they are kept, and training may want what an evaluation has made
def _scale_and_shift(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Make both by channel, [3, 1, 1, 1], once a device: a copy in every step would make the host wait for the GPU."""
    values = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=device)
    mean, std = rearrange(values, "s c -> s c 1 1 1")
    return 1 / (255 * std), mean / std
