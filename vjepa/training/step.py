"""One step of any method: a batch in, an update out. Training and `vjepa.bench` run this same code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from vjepa import config, schedules
from vjepa.ranks import ALONE, StepShare
from vjepa.records import ClipBatch, Observed
from vjepa.training.guard import UpdateGuard, spoils
from vjepa.training.optim import set_schedules
from vjepa.training.spread import Spread, whole
from vjepa.training.team import Team


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

    def terms(self, batch: ClipBatch, step: int, share: StepShare = ALONE) -> dict[str, Tensor]:
        """Compute named scalars on the device, of which `loss` is what is minimised: functions of weights and step.

        share: the part of the clips of a step that `batch` is; losses and gradients of the parts are averaged.
        """

    def embeddings(self, batch: ClipBatch, step: int, share: StepShare) -> dict[str, Tensor]:
        """Compute what `terms` compares over all clips of a step, [V, b, D] by name; {} where clips do not meet."""

    def after_update(self, step: int, skipped: Tensor | None = None) -> None:
        """Do what follows an update of the weights, such as a moving average.

        skipped: scalar on the device, 1.0 where the update was not made.
        """

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
    """Update the weights of a method once for the clips of a step: schedules, precision, backward, clipping, AdamW."""

    def __init__(
        self,
        method: MethodT_co,
        optimizer: torch.optim.Optimizer,
        optim: config.Optim,
        dtype: torch.dtype,
        total_steps: int,
        compiled: bool = False,
        spread: Spread | None = None,
        guard: config.Guard | None = None,
    ) -> None:
        """Begin a run of `method` as it is now, weights restored and on its device.

        dtype: of matrix products; weights, moments and loss are fp32. spread: `method` over several ranks; None: it is
        here alone. guard: which steps are not taken.
        """
        self.method, self.optimizer, self.optim, self.dtype = method, optimizer, optim, dtype
        self.spread = spread or Spread(cast(nn.Module, method))
        self.schedule_steps = schedules.laid_out(total_steps, optim)
        self.device = next(iter(method.parameters())).device
        self.guard = UpdateGuard(self.team, self.device, guard or config.Guard())
        method.begin(dtype, total_steps)
        if compiled:
            method.compile_blocks()

    @property
    def team(self) -> Team:
        """Give the ranks that take the step together."""
        return self.spread.team

    def __call__(self, step: int, *batches: ClipBatch, by_part: bool = False) -> dict[str, Tensor]:
        """Learn from the micro-batches of this rank. A step that the guard refuses is taken by no rank.

        Returns the terms of the loss of these clips, still on the device, and `grad_norm` where it is clipped.
        by_part: with the norm of the gradient of each network too, before it is clipped.
        """
        set_schedules(self.optimizer, self.optim, step, self.schedule_steps)
        shares = self._shares(step, batches)
        parts = [
            self._learn(step, batch, share, batch is batches[-1]) for batch, share in zip(batches, shares, strict=True)
        ]
        self.spread.rest()
        terms = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        if by_part:
            terms |= self._gradient_norms()
        gradients = [one.grad for one in self.method.parameters() if one.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if self.optim.clip_grad is not None:
            terms["grad_norm"] = norm
            torch.nn.utils.clip_grads_with_norm_(self.method.parameters(), self.optim.clip_grad, norm)
        skipped = self.guard.check(step, batches, terms["loss"], spoils(terms["loss"], shares), norm)
        self.optimizer.grad_scale, self.optimizer.found_inf = None, skipped  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.after_update(step, skipped)
        return terms

    def _shares(self, step: int, batches: Sequence[ClipBatch]) -> list[StepShare]:
        """Name the part of a step that each micro-batch is. Of several, what clips are compared by is computed first.

        Gradients come after: so the step compares all of its clips, whatever it holds at a time (GradCache, Gao et al.
        2021).
        """
        shares = self.team.shares(len(batches))
        if len(batches) == 1:
            return shares
        with torch.no_grad(), self._precision():
            parts = zip(batches, shares, strict=True)
            found = [self.spread(self.method.embeddings, batch, step, share) for batch, share in parts]
        known = {name: self.team.exchange(torch.cat([one[name] for one in found], dim=1)) for name in found[0]}
        return [replace(share, known=known) for share in shares]

    def _learn(self, step: int, batch: ClipBatch, share: StepShare, is_last: bool) -> dict[str, Tensor]:
        """Add the gradient of a micro-batch to those of the others; give its terms, detached."""
        with self.spread.apart(is_last):
            with self._precision():
                terms = self.spread(self.method.terms, batch, step, share)
            (terms["loss"] / (share.num // self.team.ranks.num)).backward()  # type: ignore[no-untyped-call]
        return {name: term.detach() for name, term in terms.items()}

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def observe(self: TrainingStep[ObservedMethodT], video: Tensor) -> Observed:
        """Show clips that are not learned from to the networks, in the precision of training."""
        self.method.train(False)
        with torch.no_grad(), self._precision():
            observed = self.method.observe(video)
        self.method.train()
        return observed

    def _gradient_norms(self) -> dict[str, Tensor]:
        """Compute the norm of the gradient of each network that has one."""
        found = {}
        for name, network in self.method.networks.items():
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            if gradients:
                found[f"gradient/{name}"] = whole(torch.nn.utils.get_total_norm(gradients))
        return found

    def scalars(self, step: int) -> dict[str, float]:
        """Give what a log shows of a step beside its terms."""
        first = self.optimizer.param_groups[0]
        return {"lr": first["lr"] / first["lr_scale"], **self.method.scalars(step)}
