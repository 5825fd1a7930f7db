"""Training steps for tests."""

from __future__ import annotations

import torch

from vjepa import config
from vjepa.jepa import Jepa
from vjepa.records import ClipBatch
from vjepa.training.optim import make_optimizer
from vjepa.training.step import TrainingStep


def step_of(
    settings: config.Config,
    method: Jepa,
    dtype: torch.dtype = torch.float32,
    total_steps: int = 8,
    optimizer: torch.optim.Optimizer | None = None,
) -> TrainingStep:
    """Make the step that training takes with these settings."""
    optimizer = optimizer or make_optimizer(method, settings.optim)
    return TrainingStep(method, optimizer, settings.optim, dtype, total_steps, settings.run.compile)


def batch_of(clips: torch.Tensor) -> ClipBatch:
    """Name uint8 clips [B, 3, T, S, S] by their place."""
    return ClipBatch(clips, torch.arange(len(clips)))
