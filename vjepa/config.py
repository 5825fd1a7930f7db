"""Every setting of a run: typed, frozen, strict, one default each.

A run is described by one YAML file and overrides `section.key=value`; both go through the same validation. An
unknown key, a wrong type or an impossible value is a `ConfigError` with one line: the path of the key, what is
wrong, and the remedy. Counts of time are in steps unless the name says otherwise (`_s` seconds, `_px` pixels).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vjepa.errors import UserError
from vjepa.records import TokenGrid


class ConfigError(UserError):
    """A setting that cannot be used. The message is one line and names the key."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Run(Section):
    """Where a run lives, and how it executes."""

    dir: str | None = Field(None, description="run folder; null: runs/<name of the config file>")
    seed: int = Field(0, ge=0, description="every random choice is a function of it and of a counter")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: the GPU where there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where this machine is fast at it")
    log_every_steps: int = Field(10, ge=1, description="metrics are read from the device only on these steps")
    save_every_steps: int = Field(100, ge=1, description="a checkpoint is written after so many steps, and after the last")
    keep_checkpoints: int = Field(2, ge=1, description="older checkpoints are removed")


class Source(Section):
    """Rows of a clip index. A plain path means all of its rows."""

    index: str = Field(description="clip index (Parquet) made by data_prep.index; relative to the working directory")
    where: dict[str, str | int | list[str | int]] = Field({}, description="keep rows whose column equals the value, or one of the values")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"index": value} if isinstance(value, str) else value


class MixedSource(Source):
    """A further source of training clips beside data.train: every batch comes from one source, so it has one token grid."""

    ratio: float = Field(gt=0, lt=1, description="share of the steps; data.train has what the mix leaves")
    num_frames: int | None = Field(None, ge=1, description="frames of a clip; 1: images; null: data.num_frames")
    clip_fps: float | None = Field(None, gt=0, description="frames per second of a clip; null: data.clip_fps")
    global_batch: int | None = Field(None, ge=1, description="clips per step; null: data.global_batch")


class Data(Section):
    """From the clip index to uint8 batches."""

    prepare: Literal["none", "demo"] = Field("none", description="demo: write the demo data set beside data.train.index first")
    train: Source = Field(description="rows to learn from")
    mix: list[MixedSource] = Field([], max_length=256, description="further sources to learn from, each with a `ratio` of the steps (images beside clips)")
    selection: Source | None = Field(None, description="rows on which probes choose their settings; null: a fifth of the labelled train rows")
    val: Source | None = Field(None, description="rows that the closing report is measured on; null: no report")
    num_frames: int = Field(16, ge=1, description="frames of a clip; 1: images (I-JEPA)")
    clip_fps: float | None = Field(None, gt=0, description="frames per second of a clip; null: num_frames spread over the whole video")
    crop_px: int = Field(224, ge=8, description="side of the square crop")
    crop_scale: tuple[float, float] = Field((0.3, 1.0), description="area of a random crop as a share of the frame (V-JEPA: .3 to 1)")
    crop_aspect: tuple[float, float] = Field((0.75, 1.35), description="width over height of a random crop (V-JEPA: .75 to 1.35)")
    flip: bool = Field(False, description="mirror half of the training clips; never where left and right matter")
    global_batch: int = Field(32, ge=1, description="clips per step")
    workers: int = Field(2, ge=0, description="processes that decode; 0: decode in the training process")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for key in ("crop_scale", "crop_aspect"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ValueError(f"{key}: needs 0 < low <= high, got [{low:g}, {high:g}]")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale: a crop is at most the whole frame (1.0), got {self.crop_scale[1]:g}")
        if sum(self.mix_ratios) >= 1:
            raise ValueError(f"mix: the ratios sum to {float(sum(self.mix_ratios)):g}, which leaves data.train no step; keep the sum below 1")
        return self

    @property
    def mix_ratios(self) -> tuple[Fraction, ...]:
        """The ratio of each source of `mix`, exactly as it is written: 0.1 is a tenth."""
        return tuple(Fraction(str(source.ratio)) for source in self.mix)

    @property
    def sources(self) -> dict[str, Data]:
        """Name -> the settings that hold for the clips of `train`, for data.train and each source of the mix, in order."""
        sources = {"data.train": self}
        for number, source in enumerate(self.mix):
            given = {key: getattr(source, key) for key in ("num_frames", "clip_fps", "global_batch") if getattr(source, key) is not None}
            sources[f"data.mix.{number}"] = self.model_copy(update={"train": source, "mix": [], **given})
        return sources


class TubeMask(Section):
    """Hide the same cells at every time (VideoMAE; V-JEPA section 3.2)."""

    kind: Literal["tube"] = "tube"
    ratio: float = Field(0.75, gt=0, lt=1, description="share of the cells that is hidden, as one or several blocks")
    num_blocks: int = Field(0, ge=0, description="0: cells drawn one by one; otherwise rectangles, trimmed to the exact count")


# width, depth, heads, hidden width of the MLP over width: the published shapes (ViT, DeiT; giant and gigantic as in V-JEPA 2).
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3, "mlp_ratio": 4.0},
    "small": {"width": 384, "depth": 12, "heads": 6, "mlp_ratio": 4.0},
    "base": {"width": 768, "depth": 12, "heads": 12, "mlp_ratio": 4.0},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp_ratio": 4.0},
    "huge": {"width": 1280, "depth": 32, "heads": 16, "mlp_ratio": 4.0},
    "giant": {"width": 1408, "depth": 40, "heads": 22, "mlp_ratio": 48 / 11},
    "gigantic": {"width": 1664, "depth": 48, "heads": 26, "mlp_ratio": 64 / 13},
}


class Transformer(Section):
    """Shape of a stack of transformer blocks (Dosovitskiy et al. 2021)."""

    width: int = Field(192, ge=8, description="features per token")
    depth: int = Field(12, ge=1, description="blocks")
    heads: int = Field(3, ge=1, description="attention heads; they divide the width")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLP over width")
    mlp: Literal["gelu", "swiglu"] = Field("gelu", description="swiglu: gated, with two thirds of the hidden width (Shazeer 2020)")
    drop_path: float = Field(0.0, ge=0, lt=1, description="chance that a clip skips the last block in training; it rises linearly with depth")
    recompute: Literal["none", "mlp", "block"] = Field("none", description="what the backward pass computes again rather than keep (activation checkpointing)")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} heads do not divide a width of {self.width}")
        return self


class Encoder(Transformer):
    """The ViT that is context encoder and target encoder."""

    preset: Literal["tiny", "small", "base", "large", "huge", "giant", "gigantic"] | None = Field(
        None, description="width, depth, heads and mlp_ratio of a published size; those that are given win"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        return {**PRESETS.get(str(value.get("preset")), {}), **value} if isinstance(value, dict) else value


class Predictor(Transformer):
    """Narrow network from context features and mask tokens to predictions (V-JEPA section 3.1)."""

    kind: Literal["transformer", "mlp"] = Field("transformer", description="mlp: from the mean of the context and the place of the target alone")
    width: int = Field(384, ge=8, description="features per token")
    depth: int = Field(6, ge=1, description="blocks")
    heads: int = Field(12, ge=1, description="attention heads; they divide the width")
    mask_tokens: int | None = Field(None, ge=1, description="learned mask tokens; null: one per mask set")
    out_width: int | None = Field(None, ge=1, description="features of a prediction; null: the width of the encoder (distilled V-JEPA 2.1: the teacher's)")


class Model(Section):
    """The networks. The target encoder has the shape of the context encoder."""

    patch_px: int = Field(16, ge=1, description="side of a patch")
    tubelet_frames: int = Field(2, ge=1, description="frames of a patch; a single frame is one time slot, whatever this is")
    positions: Literal["rope", "sincos", "sincos_uniform", "sincos_2d"] = Field(
        "rope", description="rope: rotations (V-JEPA 2); fixed sin-cos: half of the features for time, equal shares (V-JEPA), or space alone (I-JEPA)"
    )
    rope: Literal["rotation", "vjepa2"] = Field("rotation", description="vjepa2: the published V-JEPA 2 weights need its formula, which is no rotation")
    rope_grid: int | None = Field(None, ge=2, description="scale rows and columns to a square of so many cells (V-JEPA 2.1: 16); null: as they are")
    sincos_grid: tuple[int, int, int] | None = Field(
        None, description="time slots, rows, columns of the sin-cos table; other grids interpolate it; null: a table for each grid"
    )
    image_mode: Literal["summed", "own", "repeat"] = Field(
        "summed", description="a single frame: kernel summed over time, a kernel of its own (V-JEPA 2.1), or repeated to image_repeats frames (V-JEPA 1, 2)"
    )
    image_repeats: int = Field(16, ge=1, description="frames that image_mode: repeat makes of one")
    modality_embedding: bool = Field(False, description="a learned vector tells images from clips (V-JEPA 2.1)")
    levels: Literal[1, 4] = Field(1, description="depths of the encoder whose features are predicted; 4: quarter by quarter (V-JEPA 2.1)")
    level_norms: bool = Field(False, description="a norm for each of 4 levels, in place of a single last one (V-JEPA 2.1; levels: 4 needs it)")
    encoder: Encoder = Encoder()
    predictor: Predictor = Predictor()

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if self.levels > 1 and not self.level_norms:
            raise ValueError("level_norms: levels: 4 needs level_norms: true")
        if self.level_norms and self.encoder.depth < 4:
            raise ValueError(f"level_norms: 4 levels need a depth of 4 or more, encoder.depth is {self.encoder.depth}")
        for name, shape in (("encoder", self.encoder), ("predictor", self.predictor)):
            if self.positions == "rope" and shape.width // shape.heads < 6:
                raise ValueError(f"{name}.heads: heads of {shape.width // shape.heads} features are too narrow to rotate along 3 axes; 6 is the least")
        return self

    def grid(self, num_frames: int, height: int, width: int) -> TokenGrid:
        """The token grid of a video of this size; a single frame is one time slot, but for `image_mode: repeat`.

        What does not fill a patch at the far end of an axis is left out, as a strided convolution does. Raises ConfigError where nothing is left.
        """
        if num_frames == 1 and self.image_mode == "repeat":
            num_frames = self.image_repeats
        grid = TokenGrid(1 if num_frames == 1 else num_frames // self.tubelet_frames, height // self.patch_px, width // self.patch_px)
        if not grid.num_tokens:
            raise ConfigError(
                f"{num_frames} frames of {height}x{width} px hold no patch of {self.tubelet_frames} frames and {self.patch_px} px; give longer or larger clips"
            )
        return grid


class Objective(Section):
    """The loss: distance of predictions to layer-normed targets, plus weighted terms."""

    loss: Literal["l1", "smooth_l1", "mse"] = Field("l1", description="distance (V-JEPA: l1; I-JEPA: smooth_l1)")
    context_weight: float = Field(0.0, ge=0, description="weight of the loss on visible tokens, less far from the hidden ones (V-JEPA 2.1's lambda)")
    context_warmup_steps: tuple[int, int] = Field((0, 0), description="context_weight rises linearly between these steps")
    vicreg_variance: float = Field(0.0, ge=0, description="weight of the hinge on the standard deviation over clips (VICReg eq. 1)")
    vicreg_covariance: float = Field(0.0, ge=0, description="weight of the off-diagonal covariance over clips (VICReg eq. 3)")


class Optim(Section):
    """AdamW, its schedules, and the EMA of the target encoder. Schedules are pure functions of the step."""

    total_steps: int | None = Field(None, ge=1, description="length of the run; give this or epochs")
    epochs: float | None = Field(None, gt=0, description="length in passes over data.train; give this or total_steps")
    lr: float = Field(1e-3, gt=0, description="learning rate after warm-up, for the configured global batch")
    final_lr: float = Field(1e-6, ge=0, description="learning rate at the last step (cosine)")
    warmup_steps: int = Field(0, ge=0, description="linear rise from 0 to lr")
    weight_decay: float = Field(0.04, ge=0, description="AdamW decay of matrices; biases and norms have none")
    final_weight_decay: float = Field(0.04, ge=0, description="weight decay at the last step (cosine)")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW moments")
    clip_grad: float | None = Field(None, gt=0, description="largest gradient norm; null: none")
    ema_decay: float = Field(0.998, ge=0, le=1, description="share of the target encoder that stays at each step")
    final_ema_decay: float = Field(1.0, ge=0, le=1, description="the same at the last step (linear)")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.total_steps is None) == (self.epochs is None):
            raise ValueError("total_steps: give either total_steps or epochs")
        return self


class Eval(Section):
    """What the closing report measures on frozen, mean-pooled features."""

    labels: list[str] = Field(["label"], description="columns of the index that probes predict")
    group: str = Field("group", description="column whose equal rows stay together when selection clips are held out (null data.selection)")
    encoder: Literal["encoder", "target_encoder"] = Field("encoder", description="which frozen encoder is measured")
    baselines: list[Literal["random_init", "pixels", "motion_energy", "shuffled_frames"]] = Field(
        ["random_init", "pixels"],
        description="measured too: the encoder untrained, raw pixels, frame differences, the trained encoder on clips shuffled in time",
    )
    batch: int = Field(64, ge=1, description="clips per forward pass")


class Config(Section):
    run: Run = Run()
    data: Data
    masks: list[TubeMask] = Field([TubeMask()], min_length=1, max_length=16, description="mask sets; each is predicted in every step")
    model: Model = Model()
    objective: Objective = Objective()
    optim: Optim
    eval: Eval = Eval()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.objective.context_weight and self.model.predictor.kind == "mlp":
            raise ValueError("objective.context_weight: visible tokens are predicted by a transformer alone; set model.predictor.kind: transformer")
        if self.data.crop_px % self.model.patch_px:
            raise ValueError(f"data.crop_px: {self.data.crop_px} px is not a whole number of patches of model.patch_px={self.model.patch_px}")
        for name, data in self.data.sources.items():
            if data.num_frames > 1 and data.num_frames % self.model.tubelet_frames:
                path = f"{name.removesuffix('.train')}.num_frames"
                raise ValueError(f"{path}: {data.num_frames} is not a whole number of tubelets of model.tubelet_frames={self.model.tubelet_frames}")
        return self

    @property
    def grid(self) -> TokenGrid:
        """The token grid of a clip of data.train, and of evaluation."""
        return self.grids["data.train"]

    @property
    def grids(self) -> dict[str, TokenGrid]:
        """Name -> the token grid of a clip, for every source of `data.sources`."""
        return {name: self.model.grid(data.num_frames, data.crop_px, data.crop_px) for name, data in self.data.sources.items()}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps: `1e-4` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"line {node.start_mark.line + 1}: the key {key!r} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader


def config_path(name: str) -> Path:
    """The file called `name`, or the shipped config of that name (`demo`, `configs/demo.yaml`).

    Raises ConfigError where there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    package = Path(__file__).parent
    shipped = [folder / f"{Path(name).stem}.yaml" for folder in (package / "configs", package.parent / "configs")]
    for path in shipped:
        if path.is_file():
            return path
    known = sorted({path.stem for folder in shipped for path in folder.parent.glob("*.yaml")})
    raise ConfigError(f"{name}: no such config file, and none of this name is shipped (shipped: {', '.join(known)})")


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a config file and overrides `section.key=value`. Raises ConfigError with one line."""
    path = config_path(name)
    try:
        tree = _parse(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, this is a {type(tree).__name__}")
    for override in overrides:
        _set(tree, override)
    tree.setdefault("run", {})
    if isinstance(tree["run"], dict) and tree["run"].get("dir") is None:
        tree["run"]["dir"] = f"runs/{path.stem}"
    return validate(tree, str(path))


def validate(tree: Mapping[str, Any], origin: str) -> Config:
    """A `Config` from plain data; `origin` names the source in the one-line ConfigError."""
    try:
        return Config.model_validate_json(json.dumps(tree))
    except (ValidationError, TypeError) as error:
        if isinstance(error, TypeError):  # a YAML date or set, which no setting takes
            raise ConfigError(f"{origin}: {error}") from None
        raise ConfigError(f"{origin}: " + "; ".join(_explain(one) for one in error.errors())) from None


def dump(config: Config) -> str:
    """The resolved config as YAML; reading it back gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def describe() -> Iterator[str]:
    """One line per setting: path, type, default, meaning."""
    yield from _describe(Config, "")


def _describe(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _describe(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else json.dumps(field.get_default(), default=lambda value: value.model_dump())
        yield f"  {prefix}{name} = {default}  {field.description or ''}"


def _set(tree: dict[str, Any], override: str) -> None:
    """Apply one `section.key=value`; the value is YAML, and a number in the path is a place in a list."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"{override!r}: an override is written section.key=value")
    try:
        value = _parse(text)
    except (yaml.YAMLError, ConfigError):
        raise ConfigError(f"{override!r}: {text!r} is not a YAML value") from None
    node: Any = tree
    *parents, last = path.split(".")
    for key in parents:
        if isinstance(node, list):
            node = _place(node, key, override)
        elif isinstance(node.get(key), str) and path.startswith("data."):
            node[key] = {"index": node[key]}  # the short form of a Source
            node = node[key]
        else:
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
        if not isinstance(node, (dict, list)):
            raise ConfigError(f"{override!r}: {key} is a value, it has no settings inside")
    if isinstance(node, list):
        _place(node, last, override)
        node[int(last)] = value
    else:
        node[last] = value


def _place(items: list[Any], key: str, override: str) -> Any:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"{override!r}: {key!r} is not a place in a list of {len(items)}")
    return items[int(key)]


def _explain(error: Any) -> str:
    """One validation error as `path: what is wrong; remedy`."""
    path = [str(part) for part in error["loc"]]
    where = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = _keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        return f"{where}: unknown key" + (f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}")
    if error["type"] == "missing":
        return f"{where}: required, and not given"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}.{message}" if where else message
    return f"{where}: {message}, got {error['input']!r}"


def _keys(path: Sequence[str]) -> list[str]:
    """The keys that a section knows, found by walking the path through the models."""
    section: Any = Config
    for part in path:
        if part.isdigit():
            continue
        annotation = section.model_fields[part].annotation
        choices = [annotation, *getattr(annotation, "__args__", ())]
        section = next(choice for choice in choices if isinstance(choice, type) and issubclass(choice, Section))
    return list(section.model_fields)
