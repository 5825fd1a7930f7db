"""Settings of fine-tuning: a pre-trained encoder and a head learn the labels of clips together.

Names are those of the recipes of VideoMAE and V-JEPA 2. Defaults are those that read most on selection
clips of small data in few passes, where changing and mixing clips costs more than it brings.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vjepa.config.data import Data
from vjepa.config.model import Model
from vjepa.config.parallel import Guard
from vjepa.config.section import Section
from vjepa.config.settings import Optim, Run, check_sizes


class FinetuneOptim(Optim):
    """Set AdamW and its schedules, with defaults for weights that have learned already."""

    epochs: float | None = Field(
        20.0, gt=0, description="length in passes over data.train, unless total_steps is given"
    )
    lr: float = Field(5e-4, gt=0, description="learning rate of the last layer and the head, after warm-up")
    weight_decay: float = Field(0.05, ge=0, description="AdamW decay of matrices; biases and norms have none")
    final_weight_decay: float = Field(0.05, ge=0, description="weight decay at the last step (cosine)")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW moments")
    clip_grad: float | None = Field(1.0, gt=0, description="largest gradient norm; null: none")
    ema_decay: float = Field(
        0.99, ge=0, le=1, description="share of the average that stays at each step (finetune.ema)"
    )
    final_ema_decay: float = Field(0.999, ge=0, le=1, description="the same at the last step (linear)")


class Finetune(Section):
    """Set what is learned from which start, and how it is kept from learning the training clips by heart."""

    model_path: str = Field(description="the start: run, checkpoint, exported or published file, Hugging Face folder")
    encoder: Literal["encoder", "target_encoder"] | None = Field(
        None, description="which of its encoders; null: the one that vjepa.probe measures"
    )
    from_scratch: bool = Field(
        False,
        description="random weights in its place: a baseline, without what pre-trained weights need (layer_decay, "
        "freeze_layers, head_start)",
    )
    data_root: str | None = Field(
        None,
        description="folder of an image data set that is known by name (cifar10); null: the cache of the user",
    )
    label: str = Field("label", description="column of the index that is learned")
    group: str = Field(
        "group", description="column whose equal rows stay together, in selection clips and in the bootstrap"
    )
    head: Literal["mean", "attentive"] = Field(
        "mean", description="what a linear layer reads: the mean of all tokens, or the answer of a query to them"
    )
    head_depth: Literal[1, 2, 3, 4] = Field(
        1, description="attentive: 1 for the query alone, 4 with 3 blocks before it"
    )
    head_heads: int | None = Field(
        None, ge=1, description="attentive: attention heads; null: 16, or the next fewer that divide the width"
    )
    head_start: Literal["linear", "random"] = Field(
        "linear", description="linear: where a linear read-out of the frozen encoder stands; random: at small weights"
    )
    head_lr: float = Field(1.0, gt=0, description="learning rate of the head over that of the last layer")
    layer_decay: float = Field(
        0.75, gt=0, le=1, description="learning rate of a layer over that of the next one (BEiT); 1: all learn alike"
    )
    freeze_layers: int = Field(
        0, ge=0, description="first layers that stay as they are: the first embeds patches, blocks follow"
    )
    drop_path: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="chance that a clip skips the last block; it rises linearly with depth. null: .1, or 0 for a "
        "backbone that has no blocks to skip",
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of each answer that is spread over all classes")
    mixup: float = Field(
        0.0, ge=0, description="two clips are shown through each other, by shares of Beta(a, a) (VideoMAE: .8); 0: none"
    )
    cutmix: float = Field(
        0.0, ge=0, description="a box of one clip covers another, its area of Beta(a, a) (VideoMAE: 1); 0: none"
    )
    mix_share: float = Field(1.0, ge=0, le=1, description="share of the steps whose clips are mixed, by one of the two")
    rand_augment_ops: int = Field(
        0, ge=0, description="RandAugment: changes of a clip, the same in all frames (VideoMAE: 2 to 4); 0: none"
    )
    rand_augment_magnitude: int = Field(9, ge=0, le=30, description="RandAugment: how strong they are, of 30")
    ema: bool = Field(
        False, description="a moving average of the weights (optim.ema_decay) is what is chosen, measured and published"
    )
    eval_every_steps: int | None = Field(
        None,
        ge=1,
        description="selection clips are measured after so many steps, and the best are kept; null: an epoch",
    )


class Closing(Section):
    """Set what validation clips are measured by, once, at the end."""

    num_clips: int = Field(1, ge=1, description="clips of a video, evenly in time; their answers are averaged")
    num_crops: int = Field(1, ge=1, description="crops of each, evenly along the longer side")
    probes: list[Literal["knn", "linear", "attentive"]] = Field(
        ["knn", "linear"], description="probes of the frozen start, measured beside"
    )
    scratch: bool = Field(
        False,
        description="train the same network from random weights too, in scratch/ of the run, and measure it beside",
    )
    batch: int = Field(64, ge=1, description="views per forward pass")


class FinetuneConfig(Section):
    """Hold all settings of a fine-tuning run. `model` is that of the start, and no choice."""

    EVIDENCE: ClassVar[tuple[str, ...]] = ("test.", "data.val")

    run: Run = Run()
    data: Data
    model: Model
    optim: FinetuneOptim = FinetuneOptim()
    finetune: Finetune
    test: Closing = Closing()
    guard: Guard = Guard()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        refused = {
            "prepare": self.data.prepare != "none",
            "mix": bool(self.data.mix),
            "labelled": self.data.labelled is not None,
        }
        for name, is_given in refused.items():
            if is_given:
                raise ValueError(f"data.{name}: is for pre-training; leave it out")
        if self.data.channels.num != self.model.channels:
            raise ValueError(
                f"data.channels: names {self.data.channels.num}, while the networks of the start read "
                f"{self.model.channels}; leave it out"
            )
        if self.finetune.rand_augment_ops and (self.data.channels.num, self.data.channels.bits) != (3, 8):
            raise ValueError("finetune.rand_augment_ops: RandAugment changes colours of 8 bits; set it to 0")
        if self.run.init_from is not None:
            raise ValueError("run.init_from: is for pre-training; the start is finetune.model_path")
        check_sizes(self.model, self.data)
        if self.finetune.drop_path is None:
            chance = 0.1 if self.model.backbone == "vit" else 0.0
            self.__dict__["finetune"] = self.finetune.model_copy(update={"drop_path": chance})
        return self

    @property
    def networks(self) -> tuple[str, ...]:
        """Name the networks of a checkpoint: those that learn, then their moving averages."""
        return ("encoder", "head", "target_encoder", "target_head") if self.finetune.ema else ("encoder", "head")

    @property
    def measured(self) -> tuple[str, str]:
        """Name the encoder and the head that are measured."""
        return ("target_encoder", "target_head") if self.finetune.ema else ("encoder", "head")
