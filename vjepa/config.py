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
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

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


class Data(Section):
    """From the clip index to uint8 batches."""

    prepare: Literal["none", "demo"] = Field("none", description="demo: write the demo data set beside data.train.index first")
    train: Source = Field(description="rows to learn from")
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
        return self


class RatioMask(Section):
    """What mask sets with a ratio share: it may change over training, in stages, so that shapes are static within each."""

    ratio: float = Field(0.75, gt=0, lt=1, description="share that is hidden")
    final_ratio: float | None = Field(None, gt=0, lt=1, description="share that is hidden at the end of training (linear); null: ratio throughout")
    ratio_stages: int = Field(8, ge=2, description="equally long stages on the way from ratio to final_ratio")


class TubeMask(RatioMask):
    """Hide the same cells at every time (VideoMAE; V-JEPA section 3.2)."""

    kind: Literal["tube"] = Field("tube", description="the same cells are hidden at every time; what a set without a kind is")
    num_blocks: int = Field(0, ge=0, description="0: cells drawn one by one; otherwise rectangles, grown or shrunk to the exact count")


class RandomMask(RatioMask):
    """Hide tokens anywhere in space and time, drawn one by one."""

    kind: Literal["random"] = Field(description="tokens anywhere are hidden")


class MultiblockMask(Section):
    """Hide the union of cuboids (V-JEPA section 3.2: 8 blocks of .15 and 2 of .7, through all of time)."""

    kind: Literal["multiblock"] = Field(description="the union of cuboids is hidden (V-JEPA)")
    num_blocks: int = Field(8, ge=1, description="cuboids; they may overlap")
    spatial_scale: tuple[float, float] = Field((0.15, 0.15), description="area of a cuboid as a share of the frame, uniform in this range")
    temporal_scale: tuple[float, float] = Field((1.0, 1.0), description="duration of a cuboid as a share of the time slots, uniform in this range")
    aspect_ratio: tuple[float, float] = Field((0.75, 1.5), description="height over width of a cuboid, log-uniform in this range")
    max_temporal_keep: float = Field(1.0, gt=0, le=1, description="share of the time slots, from the first, that the context may see; the rest is target")
    max_keep: int | None = Field(None, ge=1, description="most context tokens; what is visible beyond them is dropped; null: no limit")
    full_complement: bool = Field(False, description="the target is everything outside the context, dropped tokens included")
    inverse: bool = Field(False, description="the context sees the cuboids, and what is around them is predicted")
    num_context: int | None = Field(None, ge=1, description="context tokens; null: the expected number, whole cells through time")
    num_target: int | None = Field(None, ge=1, description="target tokens; null: all that is not visible")
    trim: Literal["uniform", "raster"] = Field("uniform", description="uniform: exact counts; raster: cut to the smallest of the batch, as V-JEPA's code does")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_ranges(self, spatial_scale=1.0, temporal_scale=1.0, aspect_ratio=None)
        if self.trim == "raster" and (self.num_context or self.num_target):
            raise ValueError("trim: raster takes its counts from the batch; leave num_context and num_target null")
        if self.num_context and self.max_keep:
            raise ValueError("max_keep: num_context is exact already; leave one of them null")
        if self.full_complement and self.num_target:
            raise ValueError("num_target: with full_complement it follows from the context; leave it null")
        return self


class IjepaMask(Section):
    """Predict several blocks apart from one context block without them (I-JEPA section 3); through time where there is time."""

    kind: Literal["ijepa"] = Field(description="several blocks are predicted apart (I-JEPA)")
    num_targets: int = Field(4, ge=1, description="target blocks, each predicted in a pass of its own; they may overlap")
    target_scale: tuple[float, float] = Field((0.15, 0.2), description="area of a target block as a share of the frame; the smallest is predicted of each")
    target_aspect: tuple[float, float] = Field((0.75, 1.5), description="height over width of a target block")
    context_scale: tuple[float, float] = Field((0.85, 1.0), description="area of the square context block as a share of the frame")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_ranges(self, target_scale=1.0, target_aspect=None, context_scale=1.0)
        return self


def _check_ranges(section: Section, **most: float | None) -> None:
    """Raise ValueError unless every named field is a range 0 < low <= high, and high is at most the number given."""
    for key, limit in most.items():
        low, high = getattr(section, key)
        if not 0 < low <= high:
            raise ValueError(f"{key}: needs 0 < low <= high, got [{low:g}, {high:g}]")
        if limit is not None and high > limit:
            raise ValueError(f"{key}: a share is at most {limit:g}, got {high:g}")


Mask = TubeMask | RandomMask | MultiblockMask | IjepaMask
MASK_KINDS: Final[dict[str, type[Section]]] = {"tube": TubeMask, "random": RandomMask, "multiblock": MultiblockMask, "ijepa": IjepaMask}


def _mask_kind(value: Any) -> str:
    """The `kind` of a set, as data or as a model; a set without one is a tube."""
    return str(value.get("kind", "tube") if isinstance(value, dict) else getattr(value, "kind", "tube"))


MaskSet = Annotated[
    Annotated[TubeMask, Tag("tube")] | Annotated[RandomMask, Tag("random")] | Annotated[MultiblockMask, Tag("multiblock")] | Annotated[IjepaMask, Tag("ijepa")],
    Discriminator(_mask_kind, custom_error_type="mask_kind", custom_error_message=f"kind is one of {', '.join(MASK_KINDS)}"),
]


class Encoder(Section):
    """Width and depth of the ViT (Dosovitskiy et al. 2021)."""

    width: int = Field(192, ge=8, description="features per token")
    depth: int = Field(12, ge=1, description="blocks")
    heads: int = Field(3, ge=1, description="attention heads; they divide the width")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLP over width")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} heads do not divide a width of {self.width}")
        return self


class Predictor(Encoder):
    """Narrow transformer from context features and mask tokens to predictions (V-JEPA section 3.1)."""

    width: int = Field(384, ge=8, description="features per token")
    depth: int = Field(6, ge=1, description="blocks")
    heads: int = Field(12, ge=1, description="attention heads; they divide the width")


class Model(Section):
    """The networks. The target encoder has the shape of the context encoder."""

    patch_px: int = Field(16, ge=1, description="side of a patch")
    tubelet_frames: int = Field(2, ge=1, description="frames of a patch; a single frame is one time slot, whatever this is")
    positions: Literal["sincos"] = Field("sincos", description="how a token knows its place: fixed 3D sin-cos")
    encoder: Encoder = Encoder()
    predictor: Predictor = Predictor()


class Objective(Section):
    """The loss: distance of predictions to layer-normed targets, plus weighted terms."""

    loss: Literal["l1", "smooth_l1", "mse"] = Field("l1", description="distance (V-JEPA: l1; I-JEPA: smooth_l1)")
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
    masks: list[MaskSet] = Field([TubeMask()], min_length=1, max_length=16, description="mask sets; each is predicted in every step")
    model: Model = Model()
    objective: Objective = Objective()
    optim: Optim
    eval: Eval = Eval()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.data.crop_px % self.model.patch_px:
            raise ValueError(f"data.crop_px: {self.data.crop_px} px is not a whole number of patches of model.patch_px={self.model.patch_px}")
        if self.data.num_frames > 1 and self.data.num_frames % self.model.tubelet_frames:
            raise ValueError(f"data.num_frames: {self.data.num_frames} is not a whole number of tubelets of model.tubelet_frames={self.model.tubelet_frames}")
        return self

    @property
    def grid(self) -> TokenGrid:
        """The token grid of a clip of this run; a single frame is one time slot."""
        side = self.data.crop_px // self.model.patch_px
        return TokenGrid(max(1, self.data.num_frames // self.model.tubelet_frames), side, side)


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
    for kind, section in MASK_KINDS.items():
        yield from _describe(section, f"masks.N[{kind}].")


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
    where = ".".join(path[:2] + path[3:] if path[:1] == ["masks"] else path)  # a mask's kind is no part of its path
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
    if path[:1] == ["masks"]:  # masks, place, kind
        return list(MASK_KINDS[path[2]].model_fields)
    section: Any = Config
    for part in path:
        if part.isdigit():
            continue
        annotation = section.model_fields[part].annotation
        choices = [annotation, *getattr(annotation, "__args__", ())]
        section = next(choice for choice in choices if isinstance(choice, type) and issubclass(choice, Section))
    return list(section.model_fields)
