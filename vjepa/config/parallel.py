"""Settings of several processes, and of the guard over what they compute."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vjepa.config.section import Section


class Parallel(Section):
    """Set how the processes that torchrun starts share a run. It learns the same on any number of them.

    data.global_batch = ranks x micro-batch x accumulate: with more ranks or more micro-batches, each is smaller.
    """

    kind: Literal["auto", "ddp", "fsdp2"] = Field(
        "auto",
        description="ddp: every rank holds all weights; fsdp2: each holds a share of weights, gradients and moments "
        "(PyTorch 2.9); auto: ddp, or fsdp2 where these would take half of a GPU. One process has nothing to share",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="micro-batches of a rank in a step, one after the other: less memory. Terms over embeddings still "
        "compare all clips of the step, which costs a second pass of the context encoder",
    )
    timeout_s: float = Field(
        600.0, ge=2, description="a step that waits longer for another rank ends the run, and names that rank"
    )


class Guard(Section):
    """Set what happens where a loss or gradient is not finite, or the loss a spike: no rank takes that step, and its
    clips are named.
    """

    max_skips: int = Field(
        3, ge=1, description="so many steps that are not finite in a row end the run; its checkpoint is finite"
    )
    spike_std: float | None = Field(
        None, gt=0, description="skip a step whose loss is so many deviations above the mean of the last; null: none"
    )
    spike_window: int = Field(100, ge=2, description="steps of these; before there are so many nothing is a spike")
