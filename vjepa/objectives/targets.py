"""What predictions are compared with: features or pixels, both normalised so that no scale is to be predicted."""

from __future__ import annotations

from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional

from vjepa.objectives.precision import at_least_fp32


def layer_normed(tokens: Tensor, width: int) -> Tensor:
    """Norm each group of d = `width` numbers of b n (g d) to mean 0 and deviation 1, without affine, in fp32.

    Groups are the levels of features (V-JEPA section 3.1), or the colours of pixels (VideoMAE, Tong et al. 2022; MAE
    section 3).
    """
    groups = rearrange(at_least_fp32(tokens), "b n (g d) -> b n g d", d=width)
    return rearrange(functional.layer_norm(groups, groups.shape[-1:]), "b n g d -> b n (g d)")


def normalised_pixels(pixels: Tensor, channels: int, taps: int, frames: int) -> Tensor:
    """Norm the pixels of every patch channel by channel: b n (c t p) -> b n (c frames p).

    A single frame (taps = 1) stands `frames` times.
    """
    if taps < frames:
        pixels = repeat(pixels, "b n (c p) -> b n (c t p)", c=channels, t=frames)
    return layer_normed(pixels, pixels.shape[-1] // channels)
