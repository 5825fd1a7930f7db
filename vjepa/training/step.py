"""One step of any method: a batch in, an update out. Training and `vjepa.bench` run this same code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vjepa import config, schedules
from vjepa.records import ClipBatch, Observed
from vjepa.training.optim import set_schedules


class Method(Protocol):
    """State what the loop needs of a method: `jepa.Jepa` is one, `finetuning.Finetuning` another.

    It is a module that holds all that is trained.
    """

    memory: dict[str, float]  # numbers that a checkpoint keeps beside the networks

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Name the networks that a checkpoint holds, each a file of its own."""

    def begin(self, dtype: torch.dtype, total_steps: int) -> None:
        """Get ready for a run of `total_steps` with matrix products in `dtype`."""

    def compile_blocks(self) -> None:
        """Compile what is worth it, after `begin`."""

    def terms(self, batch: ClipBatch, step: int) -> dict[str, Tensor]:
        """Compute named scalars on the device, of which `loss` is what is minimised: functions of weights and step."""

    def after_update(self, step: int) -> None:
        """Do what follows an update of the weights, such as a moving average."""

    def scalars(self, step: int) -> dict[str, float]:
        """Give what a log shows beside the terms."""

    def train(self, mode: bool = True) -> Any:
        """Set whether the networks are in training."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Go through all weights; those that require a gradient are trained."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Go through all weights with names that a checkpoint keeps."""


class ObservedMethod(Method, Protocol):
    """State what the health monitor needs of a method beside."""

    def observe(self, video: Tensor) -> Observed:
        """Run the networks on uint8 clips [B, C, T, H, W] for the monitor; nothing is drawn, nothing changes."""


MethodT_co = TypeVar("MethodT_co", bound=Method, covariant=True)
ObservedMethodT = TypeVar("ObservedMethodT", bound=ObservedMethod)


class TrainingStep(Generic[MethodT_co]):
    """Update the weights of a method once for each batch: schedules, precision, backward, clipping, AdamW."""

    def __init__(
        self,
        method: MethodT_co,
        optimizer: torch.optim.Optimizer,
        optim: config.Optim,
        dtype: torch.dtype,
        total_steps: int,
        compiled: bool = False,
    ) -> None:
        """Begin a run of `method` as it is now, weights restored and on its device.

        dtype: of matrix products; weights, moments and loss are fp32.
        """
        self.method, self.optimizer, self.optim, self.dtype = method, optimizer, optim, dtype
        self.schedule_steps = schedules.laid_out(total_steps, optim)
        self.device = next(iter(method.parameters())).device
        method.begin(dtype, total_steps)
        if compiled:
            method.compile_blocks()

    def __call__(self, step: int, batch: ClipBatch, by_part: bool = False) -> dict[str, Tensor]:
        """Return the terms of the loss, still on the device, and `grad_norm` where it is clipped.

        by_part: with the norm of the gradient of each network too, before it is clipped.
        """
        set_schedules(self.optimizer, self.optim, step, self.schedule_steps)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            terms = self.method.terms(batch, step)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        if by_part:
            terms |= self._gradient_norms()
        if self.optim.clip_grad is not None:
            terms["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.optim.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.after_update(step)
        return terms

    def observe(self: TrainingStep[ObservedMethodT], video: Tensor) -> Observed:
        """Show clips that are not learned from to the networks, in the precision of training."""
        self.method.train(False)
        with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            observed = self.method.observe(video)
        self.method.train()
        return observed

    def _gradient_norms(self) -> dict[str, Tensor]:
        """Compute the norm of the gradient of each network that has one."""
        found = {}
        for name, network in self.method.networks.items():
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            if gradients:
                found[f"gradient/{name}"] = torch.nn.utils.get_total_norm(gradients)
        return found

    def scalars(self, step: int) -> dict[str, float]:
        """Give what a log shows of a step beside its terms."""
        first = self.optimizer.param_groups[0]
        return {"lr": first["lr"] / first["lr_scale"], **self.method.scalars(step)}
