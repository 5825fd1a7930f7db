"""Settings of the networks."""

from __future__ import annotations

from functools import reduce
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from vjepa.config.section import ConfigError, Section
from vjepa.records import TokenGrid

# width, depth, heads, hidden width of the MLP over width: the published shapes (ViT, DeiT; giant and gigantic as in
# V-JEPA 2).
PRESETS: Final[dict[str, dict[str, Any]]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3, "mlp_ratio": 4.0},
    "small": {"width": 384, "depth": 12, "heads": 6, "mlp_ratio": 4.0},
    "base": {"width": 768, "depth": 12, "heads": 12, "mlp_ratio": 4.0},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp_ratio": 4.0},
    "huge": {"width": 1280, "depth": 32, "heads": 16, "mlp_ratio": 4.0},
    "giant": {"width": 1408, "depth": 40, "heads": 22, "mlp_ratio": 48 / 11},
    "gigantic": {"width": 1664, "depth": 48, "heads": 26, "mlp_ratio": 64 / 13},
}

Backbone = Literal["vit", "energy", "timm"]

# Settings that not every kind of backbone has, by their path in `Model`: the kinds that have them.
USED_BY: Final[dict[str, tuple[Backbone, ...]]] = {
    "pretrained": ("timm",),
    "image_mode": ("vit", "energy"),
    "modality_embedding": ("vit", "energy"),
    "level_norms": ("vit",),
    "encoder": ("vit", "energy"),
    "encoder.mlp": ("vit",),
    "encoder.drop_path": ("vit",),
    "encoder.recompute": ("vit",),
    "encoder.step_size": ("energy",),
}


class Transformer(Section):
    """Shape a stack of transformer blocks (Dosovitskiy et al. 2021)."""

    width: int = Field(192, ge=8, description="features per token")
    depth: int = Field(12, ge=1, description="blocks")
    heads: int = Field(3, ge=1, description="attention heads; they divide the width")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLP over width")
    mlp: Literal["gelu", "swiglu"] = Field(
        "gelu", description="swiglu: gated, with two thirds of the hidden width (Shazeer 2020)"
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="chance that a clip skips the last block in training; it rises linearly with depth"
    )
    recompute: Literal["none", "mlp", "block"] = Field(
        "none", description="what the backward pass computes again rather than keep (activation checkpointing)"
    )

    @property
    def has_heads(self) -> bool:
        """Tell whether it attends at all."""
        return True

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.has_heads and self.width % self.heads:
            raise ValueError(f"heads: {self.heads} heads do not divide a width of {self.width}")
        return self


class EncoderSettings(Transformer):
    """Shape the ViT, or the energy transformer, that is context encoder and target encoder.

    Of an energy transformer depth is the number of steps, and the hidden width of the MLP that of the Hopfield
    network's memories.
    """

    preset: Literal["tiny", "small", "base", "large", "huge", "giant", "gigantic"] | None = Field(
        None, description="width, depth, heads and mlp_ratio of a published size; those that are given win"
    )
    step_size: float = Field(
        0.1, gt=0, description="of an energy transformer: length of a step down the gradient (alpha)"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        return {**PRESETS.get(str(value.get("preset")), {}), **value} if isinstance(value, dict) else value


class PredictorSettings(Transformer):
    """Shape the narrow network from context features and mask tokens to predictions (V-JEPA section 3.1)."""

    kind: Literal["transformer", "mlp"] = Field(
        "transformer", description="mlp: from the mean of the context and the place of the target alone"
    )
    width: int = Field(384, ge=8, description="features per token")
    depth: int = Field(6, ge=1, description="blocks")
    heads: int = Field(12, ge=1, description="attention heads; they divide the width")
    mask_tokens: int | None = Field(None, ge=1, description="learned mask tokens; null: one per mask set")
    out_width: int | None = Field(
        None,
        ge=1,
        description="features of a prediction; null: the width of the encoder (distilled V-JEPA 2.1: the teacher's)",
    )

    @property
    def has_heads(self) -> bool:
        """Tell whether it attends at all: an MLP predicts each target by itself."""
        return self.kind == "transformer"

    @model_validator(mode="after")
    def _of_kind(self) -> Self:
        for name in ("mlp", "drop_path", "recompute") if self.kind == "mlp" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: kind: mlp has none, only transformer; leave it out")
        return self


class Model(Section):
    """Set the networks. The target encoder has the shape of the context encoder, `encoder`."""

    backbone: str = Field(
        "vit",
        min_length=1,
        description="vit, energy (an energy transformer, Hoover et al. 2023), or a network of timm by name: resnet50, "
        "convnext_tiny, ...",
    )
    input: Literal["frames", "changes"] = Field(
        "frames",
        description="what is cut into patches; changes: each frame's difference to the next, over the root mean square "
        "of those of its clip, "
        "in which a scene that stands still leaves no trace",
    )
    pretrained: bool = Field(
        False, description="a network of timm starts from its published weights, which are fetched; false: random"
    )
    patch_px: int = Field(
        16,
        ge=1,
        description="side of a patch; of a CNN, the stride of the map that is read as tokens: mostly 32 for its last "
        "stage, 16 for the one before",
    )
    channels: int = Field(
        3, ge=1, le=64, description="of the videos that it is given; a run takes it from data.channels"
    )
    tubelet_frames: int = Field(
        2,
        ge=1,
        description="frames of a patch, of which timm's networks give the mean; a single frame is one time slot, "
        "whatever this is",
    )
    positions: Literal["rope", "sincos", "sincos_uniform", "sincos_2d"] = Field(
        "rope",
        description="rope: rotations (V-JEPA 2); fixed sin-cos: half of the features for time, equal shares (V-JEPA), "
        "or space alone (I-JEPA); with a network of timm they are the predictor's",
    )
    rope: Literal["rotation", "vjepa2"] = Field(
        "rotation", description="vjepa2: the published V-JEPA 2 weights need its formula, which is no rotation"
    )
    rope_grid: int | None = Field(
        None,
        ge=2,
        description="scale rows and columns to a square of so many cells (V-JEPA 2.1: 16); null: as they are",
    )
    sincos_grid: tuple[int, int, int] | None = Field(
        None,
        description="time slots, rows, columns of the sin-cos table, which other grids interpolate; null: one for each",
    )
    image_mode: Literal["summed", "own", "repeat"] = Field(
        "summed",
        description="a single frame: kernel summed over time, a kernel of its own (V-JEPA 2.1), or repeated to "
        "image_repeats frames (V-JEPA 1, 2)",
    )
    image_repeats: int = Field(16, ge=1, description="frames that image_mode: repeat makes of one")
    modality_embedding: bool = Field(False, description="a learned vector tells images from clips (V-JEPA 2.1)")
    levels: Literal[1, 4] = Field(
        1, description="depths of the encoder whose features are predicted; 4: quarter by quarter (V-JEPA 2.1)"
    )
    level_norms: bool = Field(
        False, description="a norm for each of 4 levels, in place of a single last one (V-JEPA 2.1; levels: 4 needs it)"
    )
    encoder: EncoderSettings = EncoderSettings()
    predictor: PredictorSettings = PredictorSettings()

    @model_validator(mode="after")
    def _of_backbone(self) -> Self:
        for path, kinds in USED_BY.items():
            if self.backbone_kind not in kinds and self._is_changed(path):
                raise ValueError(
                    f"{path}: backbone: {self.backbone} has none, only {' and '.join(kinds)}; leave it out"
                )
        if self.backbone == "energy" and self.positions == "rope":
            raise ValueError(
                "positions: rope: backbone: energy adds its positions; set positions: sincos, sincos_uniform "
                "or sincos_2d"
            )
        return self

    @model_validator(mode="after")
    def _levels(self) -> Self:
        if self.levels > 1 and not self.level_norms:
            raise ValueError("level_norms: levels: 4 needs level_norms: true")
        if self.level_norms and self.encoder.depth < 4:
            raise ValueError(f"level_norms: 4 levels need a depth of 4 or more, encoder.depth is {self.encoder.depth}")
        rotated = {"predictor": self.predictor} | ({"encoder": self.encoder} if self.backbone == "vit" else {})
        for name, shape in rotated.items():
            head_width = shape.width // shape.heads
            if self.positions == "rope" and shape.has_heads and (head_width < 6 or head_width % 2):
                raise ValueError(
                    f"{name}.heads: heads of {head_width} features cannot be rotated along 3 axes; an even "
                    "number, 6 or more, can"
                )
        return self

    @property
    def patch_values(self) -> int:
        """Count the numbers in the pixels of a patch: channels, tubelet_frames frames, patch_px rows and columns."""
        return self.channels * self.tubelet_frames * self.patch_px**2

    def _is_changed(self, path: str) -> bool:
        *parents, name = path.split(".")
        section = reduce(getattr, parents, self)
        return bool(getattr(section, name) != type(section).model_fields[name].default)

    @property
    def backbone_kind(self) -> Backbone:
        own: dict[str, Backbone] = {"vit": "vit", "energy": "energy"}
        return own.get(self.backbone, "timm")

    @property
    def known_width(self) -> int | None:
        """Tell the features per token of the encoder; None for a network of timm, which knows its own.

        `vjepa.models.backbone.encoder_width` asks it.
        """
        return None if self.backbone_kind == "timm" else self.encoder.width

    def grid(self, num_frames: int, height: int, width: int) -> TokenGrid:
        """Give the token grid (t, h, w) of a video of so many frames, and of this height and width in pixels.

        A single frame is one time slot, but for `image_mode: repeat`. What does not fill a patch at the far end of an
        axis is left out, as a strided convolution does. Raises ConfigError where nothing is left, and for the changes
        of a single frame.
        """
        if num_frames == 1 and self.input == "changes":
            raise ConfigError(
                "a single frame has no changes, which model.input: changes needs; give 2 frames or more, or "
                "take model.input: frames"
            )
        if num_frames == 1 and self.image_mode == "repeat":
            num_frames = self.image_repeats
        slots = 1 if num_frames == 1 else num_frames // self.tubelet_frames
        grid = TokenGrid(slots, height // self.patch_px, width // self.patch_px)
        if not grid.num_tokens:
            raise ConfigError(
                f"{num_frames} frames of {height}x{width} px hold no patch of {self.tubelet_frames} frames "
                f"and {self.patch_px} px; give longer or larger clips"
            )
        return grid
