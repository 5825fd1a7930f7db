"""Settings of the data: which clips, and how they become batches."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from vjepa.config.channels import Channels
from vjepa.config.row_filter import Where
from vjepa.config.section import Section, check_ranges


def _text(value: Any) -> Any:
    return str(value) if type(value) is int else value


class Source(Section):
    """Name rows of a clip index, or of several. A plain path, or a list of paths, means all of their rows."""

    index: str | list[str] = Field(
        description="clip index (Parquet) made by data_prep.index, relative to the working directory; or a list of "
        "them, whose rows follow each other: columns and labels go by their names"
    )
    where: Where = Field({}, description="keep rows whose column equals the text, or one of the texts")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"index": value} if isinstance(value, str | list) else value

    @model_validator(mode="after")
    def _names_some(self) -> Self:
        if not self.paths:
            raise ValueError("index: names no index; give one, or a list of them")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """List the indexes that hold the rows, in order."""
        return (self.index,) if isinstance(self.index, str) else tuple(self.index)

    @field_validator("where", mode="before")
    @classmethod
    def _as_text(cls, where: Any) -> Any:
        """Take whole numbers too, which Python and earlier runs give."""
        if not isinstance(where, dict):
            return where
        return {name: [_text(one) for one in of] if isinstance(of, list) else _text(of) for name, of in where.items()}


class MixedSource(Source):
    """Name a further source of training clips beside data.train."""

    ratio: float = Field(
        gt=0,
        lt=1,
        description="share of the steps, or with `per: clip` of the clips of a batch; data.train has the rest",
    )
    per: Literal["step", "clip"] = Field(
        "step", description="step: batches of this source alone; clip: its clips stand in the batches of data.train"
    )
    num_frames: int | None = Field(None, ge=1, description="frames of a clip; 1: images; null: data.num_frames")
    clip_fps: float | None = Field(None, gt=0, description="frames per second of a clip; null: data.clip_fps")
    global_batch: int | None = Field(None, ge=1, description="clips per step; null: data.global_batch")

    @model_validator(mode="after")
    def _one_grid_per_batch(self) -> Self:
        own = [name for name in ("num_frames", "clip_fps", "global_batch") if getattr(self, name) is not None]
        if self.per == "clip" and own:
            raise ValueError(
                f"{own[0]}: clips that share the batches of data.train are read as those are; leave it out, "
                "or set per: step"
            )
        return self


class Data(Section):
    """Set how clips are read from the index and become uint8 batches."""

    prepare: Literal["none", "demo", "digits", "paddles", "bricks", "shapes", "camera", "rooms"] = Field(
        "none", description="write this data set beside data.train.index first: see configs/NAME.yaml"
    )
    train: Source = Field(description="rows to learn from")
    mix: list[MixedSource] = Field(
        [],
        max_length=256,
        description="further sources to learn from, each with a `ratio` of the steps (images beside clips)",
    )
    labelled: Source | None = Field(
        None, description="rows that probes learn from; null: the labelled rows of data.train"
    )
    selection: Source | None = Field(
        None, description="rows on which probes choose their settings; null: a fifth of those they learn from"
    )
    val: Source | None = Field(None, description="rows that the closing report is measured on; null: no report")
    num_frames: int = Field(
        16, ge=1, description="frames of a clip; 1: images (I-JEPA), and the default with a network of timm"
    )
    clip_fps: float | None = Field(
        None, gt=0, description="frames per second of a clip; without it, frame_step and duration_s: the whole video"
    )
    frame_step: int | None = Field(
        None, ge=1, description="every n-th frame of the file, whatever its rate (V-JEPA: 4)"
    )
    duration_s: float | None = Field(None, gt=0, description="num_frames spread over so many seconds")
    start: Literal["uniform", "keyframe"] = Field(
        "uniform", description="where a training clip may start; keyframe: only there, which decodes faster"
    )
    padding: Literal["hold_last", "loop"] = Field(
        "hold_last", description="a video that is too short: stay on its last frame, or start again"
    )
    actions: Literal["delta", "sum", "concat"] | None = Field(
        None,
        description="what a clip carries between two of its frames, from the tracks of the index; delta: from state to "
        "state, of rotations as V-JEPA 2-AC has them; sum, concat: of the actions recorded from one frame up to the "
        "next (concat: with frame_step); null: nothing",
    )
    clips_per_video: int = Field(
        1, ge=1, description="training clips drawn from a video when its turn comes, side by side in the batch"
    )
    clips_per_decode: int = Field(1, ge=1, description="random crops of each of them: as many clips from one decode")
    channels: Channels = Channels()
    crop_px: int | tuple[int, int] = Field(
        224, description="size of a clip, 8 or more: side of a square, or [height, width]"
    )
    fit: Literal["crop", "squash", "pad"] = Field(
        "crop",
        description="how frames of another shape fill it; crop: a random crop is resized, in evaluation the largest "
        "one in the centre; squash: the whole frame is, its shape lost; pad: it is with its shape, the mean colour "
        "around it",
    )
    crop_scale: tuple[float, float] = Field(
        (0.3, 1.0), description="area of a random crop (fit: crop) as a share of the frame (V-JEPA: .3 to 1)"
    )
    crop_aspect: tuple[float, float] = Field(
        (0.75, 1.35),
        description="width over height of a random crop (fit: crop), as a multiple of that of the clip (V-JEPA: .75 to "
        "1.35)",
    )
    flip: bool = Field(False, description="mirror half of the training clips; never where left and right matter")
    global_batch: int = Field(32, ge=1, description="clips per step")
    workers: int = Field(
        2,
        ge=0,
        description="processes that decode; 0: decode in the training process, where nothing can stop a decoder that "
        "hangs",
    )
    prefetch: int = Field(
        3,
        ge=0,
        description="batches that each of them decodes ahead; 0: they rest while a step is computed, which is quicker "
        "where that takes every core",
    )
    deadline_s: float = Field(
        60.0,
        gt=0,
        description="a decode that takes longer is stopped with its process, and the clip is put in quarantine",
    )

    @field_validator("crop_px", mode="before")
    @classmethod
    def _as_size(cls, size: Any) -> Any:
        """Take a side or [height, width], of which equal ones are a side."""
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2 or not all(type(side) is int and side >= 8 for side in sides):
            raise PydanticCustomError("size", "a side of 8 px or more, or [height, width]")
        return sides[0] if sides[0] == sides[1] else sides

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        check_ranges(self, crop_scale=1.0, crop_aspect=None)
        if self.prepare != "none" and len(self.train.paths) > 1:
            raise ValueError(f"prepare: {self.prepare} is written beside one index; give data.train one, or none here")
        self._check_actions()
        if self.fit != "crop" and self.clips_per_decode > 1:
            raise ValueError(
                f"clips_per_decode: {self.clips_per_decode} random crops of one clip, while fit: {self.fit} shows the "
                "whole frame in each; set clips_per_decode: 1, or fit: crop"
            )
        for per, what in (("step", "step"), ("clip", "clip in its batches")):
            total = sum(self._ratios(per))
            if total >= 1:
                raise ValueError(
                    f"mix: the ratios sum to {float(total):g}, which leaves data.train no {what}; keep the sum below 1"
                )
        given = [name for name in ("clip_fps", "frame_step", "duration_s") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: each says how far apart the frames are; set one of them to null")
        for batch in (self.global_batch, *(source.global_batch or self.global_batch for source in self.mix)):
            if batch % self.clips_in_turn:
                raise ValueError(
                    f"global_batch: {batch} clips are no multiple of clips_per_video * clips_per_decode = "
                    f"{self.clips_in_turn}"
                )
        return self

    def _check_actions(self) -> None:
        if self.actions and self.flip:
            raise ValueError("flip: a mirrored clip does not go with its actions; set flip: false, or actions: null")
        if self.actions and self.num_frames < 2:
            raise ValueError("actions: lead from frame to frame, and num_frames: 1 is a single one; set actions: null")
        if self.actions == "concat" and self.frame_step is None:
            raise ValueError(
                "actions: concat needs as many actions between any two frames; set frame_step, or actions: sum"
            )

    @property
    def crop_size(self) -> tuple[int, int]:
        """Give height and width of a clip, px."""
        return (self.crop_px, self.crop_px) if isinstance(self.crop_px, int) else self.crop_px

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Give T, H, W of a clip: frames, height and width in px."""
        return (self.num_frames, *self.crop_size)

    def _ratios(self, per: str) -> tuple[Fraction, ...]:
        """List the ratio of each source of `mix` that has this `per`, exactly as it is written: 0.1 is a tenth."""
        return tuple(Fraction(str(source.ratio)) for source in self.mix if source.per == per)

    @property
    def mix_ratios(self) -> tuple[Fraction, ...]:
        """List the share of the steps of each source that has batches of its own."""
        return self._ratios("step")

    @property
    def clip_ratios(self) -> tuple[Fraction, ...]:
        """List the share of each source that stands in the batches of data.train."""
        return self._ratios("clip")

    @property
    def clips_in_turn(self) -> int:
        """Count the clips that a batch gets of a video when its turn comes."""
        return self.clips_per_video * self.clips_per_decode

    @property
    def sources(self) -> dict[str, Data]:
        """Give name -> settings of each source of batches: data.train first, then each with batches of its own.

        Of the mix, the settings of data.train hold the sources that share its batches.
        """
        beside = [source for source in self.mix if source.per == "clip"]
        sources = {"data.train": self.model_copy(update={"mix": beside})}
        for number, source in enumerate(self.mix):
            if source.per == "step":
                own = {"num_frames": source.num_frames, "global_batch": source.global_batch}
                given: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
                if source.clip_fps is not None:
                    given |= {"clip_fps": source.clip_fps, "frame_step": None, "duration_s": None}
                sources[f"data.mix.{number}"] = self.model_copy(update={"train": source, "mix": [], **given})
        return sources
