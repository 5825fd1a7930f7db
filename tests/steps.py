"""Training steps for tests."""

from __future__ import annotations

import torch

from vjepa import config
from vjepa.jepa import Jepa, build
from vjepa.records import ClipBatch
from vjepa.training.optim import make_optimizer
from vjepa.training.step import TrainingStep

# Every kind of target and every term.
OBJECTIVES: dict[str, dict] = {
    "ema": {"cycle": 0.1, "vicreg_invariance": 0.1},
    "frozen": {"targets": "frozen", "teacher": "elsewhere", "loss": "huber"},
    "pixels": {"targets": "pixels", "loss": "mse"},
    "none": {"targets": "none", "sigreg": 0.05, "vicreg_variance": 0.1, "vicreg_covariance": 0.1},
    "views": {"targets": "none", "prediction": 0, "view_invariance": 1.0, "sigreg": 0.05, "projector_widths": [64, 32]},
}


def built(settings: config.Config) -> Jepa:
    """The method of `settings`; a frozen teacher has the initial weights of another method."""
    if settings.objective.targets != "frozen":
        return build(settings)
    other = build(settings.model_copy(update={"objective": config.Objective()}))
    return build(settings, other.encoder.requires_grad_(False).eval())


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
