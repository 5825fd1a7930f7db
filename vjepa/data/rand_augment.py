"""RandAugment of clips, as fine-tuning asks for it, in the processes that decode them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from einops import rearrange
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from vjepa.counter_rng import generator

_GREY: Final = 124  # what comes into a clip that is turned or moved: about ImageNet's mean


@dataclass(frozen=True)
class RandAugment:
    """Change clips by `num_ops` operations of RandAugment (Cubuk et al. 2020), drawn by (seed, sample).

    magnitude: of 30.
    """

    num_ops: int
    magnitude: int
    seed: int

    def __call__(self, sample: int, clip: Tensor) -> Tensor:
        """Change the clip of a sample, its frames alike: uint8 [3, T, H, W], and so the result."""
        change = v2.RandAugment(self.num_ops, self.magnitude, fill=_GREY)
        with drawn(self.seed, "rand_augment", sample):
            frames = change(tv_tensors.Video(rearrange(clip, "c t h w -> t c h w")))
        changed: Tensor = rearrange(frames.as_subclass(Tensor), "t c h w -> c t h w")
        return changed


class drawn:
    """Have torchvision draw what (seed, stream, counter) says, and leave the state of PyTorch's generator alone."""

    def __init__(self, seed: int, stream: str, counter: int) -> None:
        self.number = int(generator(seed, stream, counter).integers(1 << 63))

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.default_generator.manual_seed(self.number)

    def __exit__(self, *_: Any) -> None:
        torch.set_rng_state(self.state)
