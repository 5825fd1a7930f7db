"""Decoded clips with their frames in another order: controls without the order of time, and with the wrong one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vjepa.counter_rng import generator

Time = Literal["forward", "shuffled", "reversed"]


def in_time(video: Tensor, clip_ids: Tensor, time: Time) -> Tensor:
    """Put the frames of clips [B, 3, T, H, W] in another order; shuffled, one that is fixed by the clip id."""
    if time == "reversed":
        return video.flip(2)
    if time == "shuffled":
        num_frames = video.shape[2]
        orders = [generator(0, "shuffled_frames", clip_id).permutation(num_frames) for clip_id in clip_ids.tolist()]
        return torch.stack([clip[:, torch.from_numpy(order)] for clip, order in zip(video, orders, strict=True)])
    return video
