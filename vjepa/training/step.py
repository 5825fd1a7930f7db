"""One step of the method: a batch in, an update out. Training and `vjepa.bench` run this same code."""

from __future__ import annotations

import torch
from torch import Tensor

from vjepa import config, schedules
from vjepa.counter_rng import generator
from vjepa.data.augment import normalise
from vjepa.jepa import Jepa
from vjepa.masking.draw import plan
from vjepa.models.layers import Block
from vjepa.objectives import sigreg
from vjepa.training import ema
from vjepa.training.optim import set_schedules


class TrainingStep:
    """Everything random in it is a function of (seed, step), so there is nothing to save beside weights and moments."""

    def __init__(
        self,
        settings: config.Config,
        model: Jepa,
        optimizer: torch.optim.Optimizer,
        dtype: torch.dtype,
        total_steps: int,
    ) -> None:
        """dtype: precision of matrix products; weights, moments, EMA and loss are fp32."""
        self.settings, self.model, self.optimizer, self.dtype, self.total_steps = (
            settings,
            model,
            optimizer,
            dtype,
            total_steps,
        )
        self.device = next(model.parameters()).device
        self.largest_batch = max(data.global_batch for data in settings.data.sources.values())
        model.train()
        self.shadow = None
        if model.target_encoder is not None and settings.objective.targets == "ema":
            self.shadow = ema.Shadow(model.target_encoder, dtype)
        elif model.target_encoder is not None:
            ema.cast_matrices(model.target_encoder, dtype)
        if settings.run.compile:
            grids = set(settings.grids.values())
            static = len(grids) == 1 and plan(settings.masks, *grids).has_constant_counts
            for block in {*model.modules(), *(self.shadow.encoder.modules() if self.shadow else ())}:
                if isinstance(block, Block):
                    block.compile(dynamic=False if static else None)

    def __call__(self, step: int, clips: Tensor) -> dict[str, Tensor]:
        """clips uint8 [B, 3, T, S, S], on any device -> the loss terms of `Jepa.forward`, still on the device, and
        `grad_norm` where it is clipped.
        """
        optim = self.settings.optim
        set_schedules(self.optimizer, optim, step, schedules.laid_out(self.total_steps, optim))
        terms = self.forward(step, clips)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        if optim.clip_grad is not None:
            terms["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.shadow is not None:
            ema.update(self.shadow.average, self.model.encoder, self.ema_decay(step))
            self.shadow.refresh()
        return terms

    def forward(self, step: int, clips: Tensor) -> dict[str, Tensor]:
        """The loss terms of the step alone."""
        video = normalise(clips.to(self.device, non_blocking=True), self.dtype)
        drawn = plan(self.settings.masks, self.model.encoder.grid(*video.shape[2:]))
        masks = drawn.draw(len(video), self.settings.run.seed, step * self.largest_batch, step, self.total_steps)
        torch.manual_seed(int(generator(self.settings.run.seed, "drop_path", step).integers(1 << 63)))
        objective = self.settings.objective
        context_weight = objective.context_weight * schedules.ramp(step, *objective.context_warmup_steps)
        target_encoder = self.shadow.encoder if self.shadow else None
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            terms: dict[str, Tensor] = self.model(
                video, [mask.to(self.device) for mask in masks], context_weight, self.directions(step), target_encoder
            )
        return terms

    def directions(self, step: int) -> Tensor | None:
        """Those that SIGReg looks along, where it has a weight: the same on every rank."""
        objective = self.settings.objective
        if not objective.sigreg:
            return None
        drawn = sigreg.directions(self.settings.run.seed, step, objective.sigreg_slices, self.model.embedding_width)
        return (drawn.pin_memory() if self.device.type == "cuda" else drawn).to(self.device, non_blocking=True)

    def ema_decay(self, step: int) -> float:
        optim = self.settings.optim
        return schedules.linear(
            step, schedules.laid_out(self.total_steps, optim), optim.ema_decay, optim.final_ema_decay
        )
