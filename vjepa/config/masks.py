"""Settings of the mask sets, told apart by their kind."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from vjepa.config.section import Section, check_ranges


class RatioMask(Section):
    """Set the ratio of a mask set, which may change over training, in stages, so that shapes are static within each."""

    ratio: float = Field(0.75, gt=0, lt=1, description="share that is hidden")
    final_ratio: float | None = Field(
        None, gt=0, lt=1, description="share that is hidden at the end of training (linear); null: ratio throughout"
    )
    ratio_stages: int = Field(8, ge=2, description="equally long stages on the way from ratio to final_ratio")
    predicted_ratio: float = Field(
        1.0, gt=0, le=1, description="share of what is hidden that is predicted, at random; less of it is less work"
    )


class TubeMask(RatioMask):
    """Hide the same cells at every time (VideoMAE; V-JEPA section 3.2)."""

    kind: Literal["tube"] = Field(
        "tube", description="the same cells are hidden at every time; what a set without a kind is"
    )
    num_blocks: int = Field(
        0, ge=0, description="0: cells drawn one by one; otherwise rectangles, grown or shrunk to the exact count"
    )


class RandomMask(RatioMask):
    """Hide tokens anywhere in space and time, drawn one by one."""

    kind: Literal["random"] = Field(description="tokens anywhere are hidden")


class MultiblockMask(Section):
    """Hide the union of cuboids (V-JEPA section 3.2: 8 blocks of .15 and 2 of .7, through all of time)."""

    kind: Literal["multiblock"] = Field(description="the union of cuboids is hidden (V-JEPA)")
    num_blocks: int = Field(8, ge=1, description="cuboids; they may overlap")
    spatial_scale: tuple[float, float] = Field(
        (0.15, 0.15), description="area of a cuboid as a share of the frame, uniform in this range"
    )
    temporal_scale: tuple[float, float] = Field(
        (1.0, 1.0), description="duration of a cuboid as a share of the time slots, uniform in this range"
    )
    aspect_ratio: tuple[float, float] = Field(
        (0.75, 1.5), description="height over width of a cuboid, log-uniform in this range"
    )
    max_temporal_keep: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the time slots, from the first, that the context may see; the rest is target",
    )
    max_keep: int | None = Field(
        None, ge=1, description="most context tokens; what is visible beyond them is dropped; null: no limit"
    )
    full_complement: bool = Field(
        False, description="the target is everything outside the context, dropped tokens included"
    )
    inverse: bool = Field(False, description="the context sees the cuboids, and what is around them is predicted")
    num_context: int | None = Field(
        None, ge=1, description="context tokens; null: the expected number, whole cells through time"
    )
    num_target: int | None = Field(None, ge=1, description="target tokens; null: all that is not visible")
    trim: Literal["uniform", "raster"] = Field(
        "uniform", description="uniform: exact counts; raster: cut to the smallest of the batch, as V-JEPA's code does"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_ranges(self, spatial_scale=1.0, temporal_scale=1.0, aspect_ratio=None)
        if self.trim == "raster" and (self.num_context or self.num_target):
            raise ValueError("trim: raster takes its counts from the batch; leave num_context and num_target null")
        if self.num_context and self.max_keep:
            raise ValueError("max_keep: num_context is exact already; leave one of them null")
        if self.full_complement and self.num_target:
            raise ValueError("num_target: with full_complement it follows from the context; leave it null")
        return self


class IjepaMask(Section):
    """Predict several blocks apart from one context block without them (I-JEPA section 3).

    Blocks last for all of time.
    """

    kind: Literal["ijepa"] = Field(description="several blocks are predicted apart (I-JEPA)")
    num_targets: int = Field(
        4, ge=1, description="target blocks, each predicted in a pass of its own; they may overlap"
    )
    target_scale: tuple[float, float] = Field(
        (0.15, 0.2), description="area of a target block as a share of the frame; the smallest is predicted of each"
    )
    target_aspect: tuple[float, float] = Field((0.75, 1.5), description="height over width of a target block")
    context_scale: tuple[float, float] = Field(
        (0.85, 1.0), description="area of the square context block as a share of the frame"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_ranges(self, target_scale=1.0, target_aspect=None, context_scale=1.0)
        return self


Mask = TubeMask | RandomMask | MultiblockMask | IjepaMask
MASK_KINDS: Final[dict[str, type[Section]]] = {
    "tube": TubeMask,
    "random": RandomMask,
    "multiblock": MultiblockMask,
    "ijepa": IjepaMask,
}


def _mask_kind(value: Any) -> str:
    """Tell the `kind` of a set, as data or as a model; a set without one is a tube."""
    return str(value.get("kind", "tube") if isinstance(value, dict) else getattr(value, "kind", "tube"))


MaskSet = Annotated[
    Annotated[TubeMask, Tag("tube")]
    | Annotated[RandomMask, Tag("random")]
    | Annotated[MultiblockMask, Tag("multiblock")]
    | Annotated[IjepaMask, Tag("ijepa")],
    Discriminator(
        _mask_kind, custom_error_type="mask_kind", custom_error_message=f"kind is one of {', '.join(MASK_KINDS)}"
    ),
]
