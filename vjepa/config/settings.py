"""All sections of a run: how it executes, its optimizer and closing report; and what they have to agree on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from vjepa.config.data import Data
from vjepa.config.masks import MaskSet, RandomMask
from vjepa.config.model import Model
from vjepa.config.monitor import Monitor
from vjepa.config.objective import Objective
from vjepa.config.parallel import Guard, Parallel
from vjepa.config.section import ConfigError, Section
from vjepa.records import TokenGrid
from vjepa.run_folder import RunFolder


class Run(Section):
    """Set where a run lives, and how it executes."""

    dir: str | None = Field(None, description="run folder; null: runs/<name of the config file>")
    seed: int = Field(0, ge=0, description="every random choice is a function of it and of a counter")
    init_from: str | None = Field(
        None,
        description="weights that the first step starts from: a run or checkpoint (a cool-down), a published file of "
        "V-JEPA, V-JEPA 2, 2.1 or I-JEPA, a folder of Hugging Face, an export; null: random",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: the GPU where there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where this machine is fast at it"
    )
    compile: bool = Field(
        False,
        description="torch.compile each transformer block, but not those of timm or energy: minutes to warm up, then "
        "fewer kernels",
    )
    log_every_steps: int = Field(10, ge=1, description="metrics are read from the device only on these steps")
    save_every_steps: int = Field(
        100, ge=1, description="a checkpoint is written after so many steps, and after the last"
    )
    keep_checkpoints: int = Field(2, ge=1, description="older checkpoints are removed")

    @property
    def folder(self) -> RunFolder:
        """Give the folder of this run: `dir`, or runs/unnamed for settings that came from no file."""
        return RunFolder(Path(self.dir or "runs/unnamed"))


class Optim(Section):
    """Set AdamW, its schedules, and the EMA of the target encoder. Schedules are pure functions of the step."""

    total_steps: int | None = Field(None, ge=1, description="length of the run; give this or epochs")
    epochs: float | None = Field(None, gt=0, description="length in passes over data.train; give this or total_steps")
    lr: float | None = Field(
        None,
        gt=0,
        description="learning rate after warm-up, for the configured global batch; null: 6e-4 for 32 clips or more of "
        "128 tokens or fewer and a width of 192, less by the root of the batch for fewer clips, and by the roots of "
        "tokens and width for more tokens or wider encoders",
    )
    final_lr: float = Field(1e-6, ge=0, description="learning rate at the last step")
    lr_shape: Literal["cosine", "linear"] = Field(
        "cosine", description="way from lr to final_lr; V-JEPA 2's cool-down is linear"
    )
    start_lr: float = Field(0.0, ge=0, description="learning rate that warm-up starts from")
    warmup_steps: int | None = Field(
        None, ge=0, description="linear rise from start_lr to lr; null: a tenth of what schedules are laid out over"
    )
    decay_steps: int | None = Field(
        None,
        ge=1,
        description="last steps, in which lr goes to final_lr; before them it stays (V-JEPA 2-AC: 4500); null: all "
        "after warm-up",
    )
    schedule_stretch: float = Field(
        1.0, ge=1, description="schedules are laid out over so many times the run and cut where it ends (V-JEPA: 1.25)"
    )
    weight_decay: float = Field(0.04, ge=0, description="AdamW decay of matrices; biases and norms have none")
    final_weight_decay: float = Field(0.04, ge=0, description="weight decay at the last step (cosine)")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW moments (V-JEPA: .9 and .999)")
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm; null: none")
    ema_decay: float = Field(0.998, ge=0, le=1, description="share of the target encoder that stays at each step")
    final_ema_decay: float = Field(1.0, ge=0, le=1, description="the same at the last step (linear)")

    @property
    def peak_lr(self) -> float:
        """Give `lr` as `Config` has resolved it."""
        if self.lr is None:
            raise ValueError("lr: null stands for a function of batch and width, which only a whole config knows")
        return self.lr

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.total_steps is None) == (self.epochs is None):
            raise ValueError("total_steps: give either total_steps or epochs")
        return self


TARGETS: Final = ("auto", "classification", "regression", "multilabel")


class Eval(Section):
    """Set what the closing report measures on frozen, mean-pooled features."""

    labels: list[str] = Field(["label"], description="columns of the index that probes predict")
    targets: str | dict[str, str] = Field(
        "auto",
        description="what labels are: classification (a class), regression (a number, measured by R2), multilabel "
        "(classes with | between them, by mAP), or auto: as the column looks; {label: ...} for some of them alone",
    )
    group: str = Field(
        "group",
        description="column whose equal rows stay together when selection clips are held out (null data.selection)",
    )
    encoder: Literal["encoder", "target_encoder"] = Field("encoder", description="which frozen encoder is measured")
    baselines: list[Literal["random_init", "pixels", "motion_energy", "shuffled_frames"]] = Field(
        ["random_init", "pixels"],
        description="measured too: the encoder untrained, raw pixels, frame differences, the trained encoder on clips "
        "shuffled in time",
    )
    batch: int = Field(64, ge=1, description="clips per forward pass")
    every_steps: int | None = Field(
        None,
        ge=1,
        description="a k-NN probe on selection clips after so many steps; its best is checkpoints/best. null: never, "
        "and the monitor tells by LiDAR which is best",
    )
    online_clips: int = Field(512, ge=2, description="train clips, and selection clips, of that probe at most")

    def targets_of(self, label: str) -> str:
        """Give `targets` of one of `labels`."""
        return self.targets.get(label, "auto") if isinstance(self.targets, dict) else self.targets

    @model_validator(mode="after")
    def _targets_are_known(self) -> Self:
        named = self.targets if isinstance(self.targets, dict) else dict.fromkeys(self.labels, self.targets)
        for label, target in named.items():
            if target not in TARGETS:
                raise ValueError(f"targets: {target!r} is none of {', '.join(TARGETS)}")
            if label not in self.labels:
                raise ValueError(f"targets: {label!r} is none of eval.labels; add it there, or take it out")
        return self


def check_sizes(model: Model, data: Data) -> None:
    """Check that clips are whole numbers of patches and tubelets, and have a grid. Raises ValueError."""
    for side in data.crop_size:
        if side % model.patch_px:
            raise ValueError(
                f"data.crop_px: {side} px is not a whole number of patches of model.patch_px={model.patch_px}"
            )
    for name, source in data.sources.items():
        path = f"{name.removesuffix('.train')}.num_frames"
        if source.num_frames > 1 and source.num_frames % model.tubelet_frames:
            raise ValueError(
                f"{path}: {source.num_frames} is not a whole number of tubelets of "
                f"model.tubelet_frames={model.tubelet_frames}"
            )
        try:
            model.grid(*source.clip_size)
        except ConfigError as error:
            raise ValueError(f"{path}: {error}") from None


class Config(Section):
    run: Run = Run()
    data: Data
    masks: list[MaskSet] = Field(
        [RandomMask(kind="random", ratio=0.75, predicted_ratio=0.25)] * 2,
        min_length=1,
        max_length=16,
        description="mask sets; each is predicted in every step",
    )
    model: Model = Model()
    objective: Objective = Objective()
    optim: Optim
    eval: Eval = Eval()
    monitor: Monitor = Monitor()
    parallel: Parallel = Parallel()
    guard: Guard = Guard()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._check_choices()
        self._check_views()
        check_sizes(self.model, self.data)
        resolved = self._with_channels()._with_view_invariance()._with_initial_std()._with_lr()._with_out_width()
        self.__dict__.update(resolved.__dict__)  # `Config(...)` gives itself, whatever a validator returns
        return self

    def _check_choices(self) -> None:
        """Check that what one section asks for is there in the others."""
        if self.eval.every_steps is not None and self.data.val is None:
            raise ValueError("eval.every_steps: probes need labelled clips; set data.val, or eval.every_steps to null")
        if self.eval.encoder not in self.objective.networks:
            raise ValueError(
                f"eval.encoder: with objective.targets: {self.objective.targets} there is no target_encoder; "
                "set eval.encoder: encoder"
            )
        if self.run.init_from is not None and self.model.pretrained:
            raise ValueError("run.init_from: model.pretrained names other weights to start from; keep one of them")
        if self.objective.context_weight and self.model.predictor.kind == "mlp":
            raise ValueError(
                "objective.context_weight: visible tokens are predicted by a transformer alone; set "
                "model.predictor.kind: transformer"
            )
        if self.objective.cycle and self.model.predictor.out_width not in (None, self.model.known_width):
            raise ValueError(
                "objective.cycle: predictions go into the predictor again, so they need the width of the "
                "encoder; leave predictor.out_width out"
            )
        if self.objective.context_weight and any(mask.kind == "ijepa" for mask in self.masks):
            raise ValueError(
                "objective.context_weight: masks of kind ijepa predict each target apart, with no loss on "
                "visible tokens; use another kind"
            )

    def _check_views(self) -> None:
        """Check that terms over embeddings have clips, or views of a clip, to compare."""
        objective, crops = self.objective, self.data.clips_per_decode
        if objective.view_invariance and len(self.masks) * crops < 2:
            raise ValueError(
                "objective.view_invariance: a clip has a single view; give masks a second set, or set "
                "data.clips_per_decode: 2"
            )
        compares = objective.sigreg or objective.vicreg_variance or objective.vicreg_covariance
        for name, data in self.data.sources.items():
            if compares and data.global_batch < 2 * crops:
                path = f"{name.removesuffix('.train')}.global_batch"
                raise ValueError(
                    f"{path}: terms of objective compare clips, and a batch shows a single one; set {2 * crops} or more"
                )

    def _with_channels(self) -> Self:
        """Give the networks the number of channels of the clips; another number is a mistake."""
        num = self.data.channels.num
        if self.model.channels not in (Model.model_fields["channels"].default, num):
            raise ValueError(f"model.channels: {self.model.channels}, while data.channels names {num}; leave it out")
        return self.model_copy(update={"model": self.model.model_copy(update={"channels": num})})

    def _with_view_invariance(self) -> Self:
        """Set the weight of agreement between views where none is given; see `Objective.view_invariance`."""
        objective = self.objective
        if objective.view_invariance is not None:
            return self
        agree = len(self.masks) * self.data.clips_per_decode > 1 and objective.keeps_apart
        if not agree and not objective.predicts:
            raise ValueError(
                "objective.prediction: nothing is predicted, and no views have to agree; give prediction a weight, or "
                "masks a second set"
            )
        changed = objective.model_copy(update={"view_invariance": 0.05 if agree else 0.0})
        return self.model_copy(update={"objective": changed})

    def _with_initial_std(self) -> Self:
        """Set the deviation that embeddings begin with where none is given; see `Objective.initial_std`."""
        objective = self.objective
        if objective.initial_std is not None:
            return self
        scaled = objective.view_invariance and objective.vicreg_variance and not objective.projector_widths
        changed = objective.model_copy(update={"initial_std": 0.1 if scaled and not objective.sigreg else 0.0})
        return self.model_copy(update={"objective": changed})

    def _with_lr(self) -> Self:
        """Set the learning rate where none is given; see `Optim.lr`. A network of timm counts as of width 768."""
        if self.optim.lr is not None:
            return self
        scales = (self.data.global_batch / 32, 192 / (self.model.known_width or 768), 128 / self.grid.num_tokens)
        lr = 6e-4 * math.sqrt(math.prod(min(1.0, scale) for scale in scales))
        return self.model_copy(update={"optim": self.optim.model_copy(update={"lr": float(f"{lr:.3g}")})})

    def _with_out_width(self) -> Self:
        """Set the width of predictions where it is that of pixels, and check it elsewhere.

        Of features it is the encoder's, of a frozen teacher that of its file.
        """
        model, targets = self.model, self.objective.targets
        if targets == "frozen" or not self.objective.predicts:
            return self
        if targets == "pixels" and model.levels > 1:
            raise ValueError("model.levels: pixels have one level; set model.levels: 1, or objective.targets: ema")
        wanted = model.patch_values if targets == "pixels" else model.known_width
        if wanted is not None and model.predictor.out_width not in (None, wanted):
            raise ValueError(
                f"model.predictor.out_width: with objective.targets: {targets} it is {wanted}, not "
                f"{model.predictor.out_width}; leave it out"
            )
        if targets != "pixels" or model.predictor.out_width == wanted:
            return self
        predictor = model.predictor.model_copy(update={"out_width": wanted})
        return self.model_copy(update={"model": model.model_copy(update={"predictor": predictor})})

    @property
    def grid(self) -> TokenGrid:
        """Give the token grid of a clip of data.train, and of evaluation."""
        return self.grids["data.train"]

    @property
    def grids(self) -> dict[str, TokenGrid]:
        """Give name -> the token grid of a clip, for every source of `data.sources`."""
        return {name: self.model.grid(*data.clip_size) for name, data in self.data.sources.items()}
