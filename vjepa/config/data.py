"""Settings of the data: which clips, and how they become batches."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vjepa.config.section import Section, check_ranges


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
        check_ranges(self, crop_scale=1.0, crop_aspect=None)
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
