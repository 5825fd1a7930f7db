"""Settings of a world model: what a frame becomes on a frozen encoder, how it is predicted, and how it is planned in.

Names are those of V-JEPA 2-AC (Assran et al. 2025, section 3). The published recipe is configs/vjepa2_ac_vitg16.yaml;
defaults are what later comparisons found better (JEPA-WMs, Terver et al. 2025).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vjepa.config.data import Data
from vjepa.config.model import Transformer
from vjepa.config.parallel import Guard
from vjepa.config.section import Section
from vjepa.config.settings import Optim, Run


class WorldPredictor(Transformer):
    """Shape the predictor of frames from frames, actions and states."""

    width: int = Field(128, ge=8, description="features per token")
    depth: int = Field(4, ge=1, description="blocks")
    heads: int = Field(4, ge=1, description="attention heads; they divide the width")
    rope: Literal["rotation", "vjepa2"] = Field(
        "rotation", description="vjepa2: the published weights need its formula, which is no rotation"
    )
    rope_grid: int | None = Field(
        None, ge=1, description="scale rows and columns to so many cells (V-JEPA 2-AC: 16); null: as they are"
    )

    @model_validator(mode="after")
    def _turns(self) -> Self:
        head_width = self.width // self.heads
        if head_width < 6 or head_width % 2:
            raise ValueError(
                f"heads: heads of {head_width} features cannot be rotated along 3 axes; an even number, 6 or more, can"
            )
        return self


class WorldSettings(Section):
    """Set what the latents of a frame are, and how they are learned to be predicted."""

    model_path: str = Field(
        description="the encoder: run, checkpoint, exported or published file, Hugging Face folder, or timm:NAME"
    )
    pretrain: str | None = Field(
        None, description="config that vjepa.train makes `model_path` of first, where that is no finished run"
    )
    encoder: Literal["encoder", "target_encoder"] | None = Field(
        None, description="which of its encoders; null: the one that vjepa.probe measures"
    )
    targets: Literal["frozen", "none"] = Field(
        "frozen",
        description="none: the encoder learns too, with no target apart (end to end); sigreg and inverse_weight keep "
        "it from collapse",
    )
    from_scratch: bool = Field(False, description="targets: none: random weights in place of those of `model_path`")
    latents: Literal["tokens", "grid", "vector"] = Field(
        "tokens",
        description="what a frame is; grid: means of grid_side x grid_side cells of its tokens; vector: a linear map "
        "of those cells that is learned",
    )
    grid_side: int = Field(4, ge=1, description="cells along a side, of grid and vector")
    vector_width: int = Field(32, ge=2, description="features of a vector")
    state: bool = Field(False, description="a token of the state at each step (V-JEPA 2-AC: true)")
    normalise: bool = Field(
        True, description="actions and states by mean and deviation of the index (V-JEPA 2-AC: false)"
    )
    rollout_steps: int = Field(2, ge=1, description="predicted frames in the term of roll-out (auto_steps); 1: none")
    rollout_start: Literal["random", "first"] = Field(
        "random", description="true frames before a roll-out: a random number, or one (V-JEPA 2-AC)"
    )
    rollout_detach: bool = Field(True, description="predictions are fed back without gradient (V-JEPA 2-AC: false)")
    rollout_weight: float = Field(1.0, ge=0, description="weight of the term of roll-out; that of prediction is 1")
    loss: Literal["l1", "l2"] = Field("l2", description="mean absolute or mean squared difference (V-JEPA 2-AC: l1)")
    inverse_weight: float = Field(
        0.0,
        ge=0,
        description="of inverse dynamics: the action by a linear map of the difference of two vectors that follow each "
        "other (PLDM)",
    )
    sigreg: float = Field(0.0, ge=0, description="of SIGReg on the latents of a batch (LeJEPA); for learned latents")
    sigreg_slices: int = Field(64, ge=1, description="random directions of SIGReg")
    goal_width: int = Field(
        256, ge=0, description="hidden width of the inverse model: frame and goal -> action; 0: without one"
    )
    keep_features: bool = Field(
        True, description="features of all frames are computed once and kept in the cache; false: at every step"
    )
    feature_batch: int = Field(256, ge=1, description="frames per forward pass of the encoder")
    eval_every_steps: int | None = Field(
        None, ge=1, description="errors on data.val after so many steps; the best are kept. null: at the end alone"
    )
    predictor: WorldPredictor = WorldPredictor()

    @property
    def learns_latents(self) -> bool:
        """Tell whether what is predicted changes while it is learned."""
        return self.latents == "vector" or self.targets == "none"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.from_scratch and self.targets == "frozen":
            raise ValueError("from_scratch: a frozen encoder at random weights never learns; set targets: none")
        if self.learns_latents and not (self.inverse_weight or self.sigreg):
            raise ValueError(
                f"inverse_weight: latents: {self.latents} with targets: {self.targets} are learned, and collapse "
                "without it; give inverse_weight or sigreg"
            )
        if not self.learns_latents and (self.inverse_weight or self.sigreg):
            name = "inverse_weight" if self.inverse_weight else "sigreg"
            raise ValueError(
                f"{name}: latents of a frozen encoder do not change; leave it out, or take latents: vector"
            )
        if self.keep_features and self.targets == "none":
            raise ValueError("keep_features: the encoder learns, so that its features change; set keep_features: false")
        if self.inverse_weight and self.latents != "vector":
            raise ValueError("inverse_weight: reads one vector a frame; set latents: vector")
        return self


class Planning(Section):
    """Set where is planned, and how: sampled sequences, rolled out in the model, by their energy to the goal."""

    environment: str = Field(
        "offline",
        description="rooms, gym:NAME of an environment of Gymnasium that draws pictures, or offline: clips of data.val",
    )
    options: dict[str, Any] = Field({}, description="what gymnasium.make is given beside the name")
    episodes: int = Field(50, ge=1, description="tasks, each done by every policy; offline: clips")
    budget_steps: int = Field(50, ge=1, description="steps of the environment in an episode")
    goal_steps: int = Field(25, ge=1, description="random steps of gym:NAME from the start to a goal")
    radius: float | None = Field(
        None, gt=0, description="distance to the state of the goal that is success; null: .07 of the side of rooms"
    )
    films: int = Field(4, ge=0, description="episodes that are drawn and filmed")

    method: Literal["cem", "mppi", "inverse"] = Field(
        "cem", description="inverse: no search, the goal-conditioned inverse model alone"
    )
    horizon: int = Field(4, ge=1, description="steps of the model that are planned (V-JEPA 2-AC: 1 or 2)")
    samples: int = Field(64, ge=2, description="sequences of a round (V-JEPA 2-AC: 800)")
    rounds: int = Field(5, ge=1, le=4096, description="rounds of a search (V-JEPA 2-AC: 10)")
    elites: int = Field(10, ge=2, description="cem: the best sequences, which the next round is drawn around")
    mean_momentum: float = Field(0.0, ge=0, lt=1, description="share of the old mean that stays (V-JEPA 2-AC: .15)")
    std_momentum: float = Field(0.0, ge=0, lt=1, description="the same of the deviation (V-JEPA 2-AC: .15)")
    temperature: float = Field(0.5, gt=0, description="mppi: of weights, in deviations of the cost")
    std: float = Field(1.0, gt=0, description="deviation of the first round, as a share of half the range of an action")
    noise_exponent: float = Field(
        0.0,
        ge=0,
        description="power of the noise along a sequence falls as 1 / frequency to this, so that actions of steps that "
        "follow each other resemble each other (iCEM); 0: white",
    )
    keep_best: bool = Field(True, description="the best sequence of all rounds, where it is better than the last mean")
    start: Literal["shifted", "inverse", "zero"] = Field(
        "shifted",
        description="mean of the first round: the last plan one step on, the inverse model's roll-out, or no action",
    )
    energy: Literal["l1", "l2"] = Field("l1", description="mean absolute or squared difference to the goal")
    energy_of: Literal["last", "sum", "least"] = Field(
        "last",
        description="of the last predicted frame, of all of them, or at each of them the least so far: what has to "
        "lead away first costs no more than staying",
    )
    chunk: int = Field(256, ge=1, description="sequences that are rolled out together")
    context: int = Field(1, ge=1, description="frames that the model is shown before it plans, those of past steps")
    low: list[float] | None = Field(
        None,
        description="least action of a step of the model, a number for each; null: that of the environment, else two "
        "deviations below the mean of the index",
    )
    high: list[float] | None = Field(None, description="greatest action; null: the same above")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.elites > self.samples:
            raise ValueError(f"elites: {self.elites} of {self.samples} samples; give fewer, or plan.samples more")
        if (self.low is None) != (self.high is None):
            raise ValueError("low: give both low and high, or none of them")
        if self.low and self.high and len(self.low) != len(self.high):
            raise ValueError(f"low: {len(self.low)} numbers, and high {len(self.high)}; give as many")
        return self


class WorldConfig(Section):
    """Hold all settings of a world model's run. The encoder brings its own settings."""

    EVIDENCE: ClassVar[tuple[str, ...]] = ("plan.", "data.val")

    run: Run = Run()
    data: Data
    world: WorldSettings
    optim: Optim
    guard: Guard = Guard()
    plan: Planning = Planning()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        data, world = self.data, self.world
        refused = {"mix": bool(data.mix), "labelled": data.labelled is not None, "flip": data.flip}
        for name, is_given in refused.items():
            if is_given:
                raise ValueError(f"data.{name}: does not go with actions; leave it out")
        if data.num_frames < 1 + world.rollout_steps:
            raise ValueError(
                f"data.num_frames: {data.num_frames} frames cannot hold a roll-out of {world.rollout_steps}; give "
                f"{1 + world.rollout_steps} or more"
            )
        if data.frame_step is None and data.clip_fps is None and data.duration_s is None:
            raise ValueError("data.frame_step: a step of the model needs a length; give it, or clip_fps")
        if data.actions is None:
            raise ValueError("data.actions: null, so that clips have no actions; set delta, sum or concat")
        if world.state and data.actions != "delta":
            raise ValueError(
                "world.state: what an action does to a state is known of differences alone; set data.actions: delta, "
                "or world.state: false"
            )
        if "inverse" in (self.plan.start, self.plan.method) and not world.goal_width:
            raise ValueError("world.goal_width: 0, so that there is no inverse model to plan by; give a width")
        if world.eval_every_steps and data.val is None:
            raise ValueError("world.eval_every_steps: there is nothing to measure on; set data.val, or leave it out")
        if self.run.init_from is not None:
            raise ValueError("run.init_from: is for pre-training; the encoder is world.model_path")
        if self.optim.lr is None:
            raise ValueError("optim.lr: null is a rule for pre-training; give a number")
        if world.keep_features and (data.fit == "crop") and not _shows_all(data):
            raise ValueError(
                "world.keep_features: features are kept of whole frames; set data.crop_scale and crop_aspect to "
                "[1, 1], or data.fit: squash or pad, or world.keep_features: false"
            )
        return self

    @property
    def networks(self) -> tuple[str, ...]:
        """Name the networks of a checkpoint."""
        world = self.world
        named = {
            "encoder": world.targets == "none",
            "head": world.latents == "vector",
            "predictor": True,
            "goal_model": world.goal_width > 0,
        }
        return tuple(name for name, is_there in named.items() if is_there)


def _shows_all(data: Data) -> bool:
    return data.crop_scale == (1.0, 1.0) and data.crop_aspect == (1.0, 1.0)
