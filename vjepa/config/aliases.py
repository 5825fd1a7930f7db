"""Short names of settings, at the top level of a config (`mask_ratio: 0.5`) and as overrides (`mask_ratio=0.6`)."""

from __future__ import annotations

from typing import Final

ALIASES: Final[dict[str, str]] = {
    "backbone": "model.backbone",
    "mask_ratio": "masks.0.ratio",
    "batch_size": "data.global_batch",
    "learning_rate": "optim.lr",
    "epochs": "optim.epochs",
    "ema_decay": "optim.ema_decay",
    "loss_type": "objective.loss",
}
