"""Clip-consistent crop, resize, letterbox and flip in uint8; normalisation where the video is.

A box is (top, left, height, width) in pixels, a size (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional

from vjepa.config import Channels

Box = tuple[int, int, int, int]
Size = tuple[int, int]
RGB: Final = Channels()


@dataclass(frozen=True)
class Crop:
    """Name a box of the frames of a row, the size that it is brought to, and whether it is mirrored.

    Of a clip that is larger the rest, on both sides alike, has the mean colour. change: what is done to the clip then.
    """

    box: Box
    size: Size
    flip: bool = False
    change: Callable[[torch.Tensor], torch.Tensor] | None = None


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


def inscribed(shape: Size, frame: Size) -> Size:
    """Find the largest size within `frame` that has the proportions of `shape`, to a pixel; at least 1 px a side."""
    scale = min(frame[0] / shape[0], frame[1] / shape[1])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def view_boxes(height: int, width: int, num_crops: int, shape: Size) -> list[Box]:
    """Lay `num_crops` boxes of the proportions of `shape`, as large as fit, evenly along what they leave free.

    A single one is in the centre.
    """
    h, w = inscribed(shape, (height, width))
    places = [(k / (num_crops - 1) if num_crops > 1 else 0.5) for k in range(num_crops)]
    return [(int((height - h) * place), int((width - w) * place), h, w) for place in places]


def size_needed(crops: Sequence[Crop], height: int, width: int) -> Size | None:
    """Find the smallest whole fraction of a frame, (height, width), that leaves every box the size it is brought to.

    None: no smaller than the frame.
    """
    fraction = min(min(crop.box[2] // crop.size[0], crop.box[3] // crop.size[1]) for crop in crops)
    return (-(-height // fraction), -(-width // fraction)) if fraction > 1 else None


def scaled_box(box: Box, height: int, width: int, frames: np.ndarray) -> Box:
    """Scale a box of a frame of `height` x `width` to frames [T, H, W, 3] of another size."""
    top, left, h, w = box
    down, across = frames.shape[1] / height, frames.shape[2] / width
    new_h, new_w = min(round(h * down), frames.shape[1]), min(round(w * across), frames.shape[2])
    top, left = min(round(top * down), frames.shape[1] - new_h), min(round(left * across), frames.shape[2] - new_w)
    return top, left, new_h, new_w


def crop_resize(frames: np.ndarray, crop: Crop, size: Size, channels: Channels = RGB) -> torch.Tensor:
    """Cut the same box out of every frame: [T, H0, W0, C] -> [C, T, H, W] of the same type, H and W = `size`.

    It is resized, antialiased, to `crop.size`, mirrored if `crop.flip`, laid into the middle of the clip, and changed
    as `crop.change` says. uint8, or uint16, which PyTorch can hold and not resize: that is done in fp32.
    """
    top, left, h, w = crop.box
    cut = frames[:, top : top + h, left : left + w]
    is_deep = cut.dtype == np.uint16
    clip = rearrange(torch.from_numpy(cut.astype(np.float32) if is_deep else cut), "t h w c -> t c h w")
    if (h, w) != crop.size:
        clip = functional.interpolate(clip, size=crop.size, mode="bilinear", antialias=True)
    clip = rearrange(clip.flip(-1) if crop.flip else clip, "t c h w -> c t h w")
    clip = clip if crop.size == size else _letterboxed(clip, size, channels)
    clip = clip.round().to(torch.uint16) if is_deep else clip
    return crop.change(clip) if crop.change else clip


def _letterboxed(clip: torch.Tensor, size: Size, channels: Channels) -> torch.Tensor:
    """Lay [C, T, h, w] into the middle of the mean colour: [C, T, H, W], H and W = `size`.

    Normalised that colour is 0, to within half a level.
    """
    (h, w), full = clip.shape[2:], channels.full_scale
    colour = torch.tensor([round(full * mean) for mean in channels.mean], dtype=clip.dtype)
    framed = rearrange(colour, "c -> c 1 1 1").expand(-1, clip.shape[1], *size).clone()
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    framed[:, :, top : top + h, left : left + w] = clip
    return framed


def normalise(video: torch.Tensor, dtype: torch.dtype, channels: Channels = RGB) -> torch.Tensor:
    """Bring each channel to mean 0 and deviation 1: uint8 or uint16 [B, C, T, H, W] -> the same shape in `dtype`.

    By default these are the colours of ImageNet. The video stays on its device.
    """
    scale, shift = _scale_and_shift(video.device, channels)
    return video.float().mul_(scale).sub_(shift).to(dtype)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # they are kept, and training may want what an evaluation has made
def _scale_and_shift(device: torch.device, channels: Channels) -> tuple[torch.Tensor, torch.Tensor]:
    """Make both by channel, [C, 1, 1, 1], once a device: a copy in every step would make the host wait for the GPU."""
    values = torch.tensor([channels.mean, channels.std], device=device)
    mean, std = rearrange(values, "s c -> s c 1 1 1")
    return 1 / (channels.full_scale * std), mean / std
