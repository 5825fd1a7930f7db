"""Settings of the monitor: how often the health of a run is measured, on what, and when that ends it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vjepa.config.section import Section

# what a run can be said to be; `health.verdict` has the rules
HealthState = Literal[
    "healthy",
    "watch",
    "collapsing",
    "partial_collapse",
    "no_skill",
    "positions_only",
    "overfitting",
    "getting_worse",
]


class Monitor(Section):
    """Set how the representation is watched while it trains. Nothing here changes what is learned."""

    every_steps: int | None = Field(
        25,
        ge=1,
        description="rank, LiDAR, spread and skill are measured after so many steps and after the last, and a verdict "
        "is given; null: never",
    )
    clips: int | None = Field(
        None,
        ge=4,
        description="clips that are measured, always the same ones: of data.selection, else of data.train; null: half "
        "as many as a step has, 16 to 64, which costs about 1 % of the time of 25 steps",
    )
    stop_on: list[HealthState] = Field([], description="verdicts that end a run, such as [collapsing]")
    wandb: bool = Field(False, description="send all that TensorBoard gets to Weights & Biases too (extra `wandb`)")
