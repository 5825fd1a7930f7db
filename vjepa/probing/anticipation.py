"""Action anticipation: what a probe may see ends some time before an action, and a predictor may roll its features on
(V-JEPA 2, section 6).

Each row of the clip index is one action: the row is what comes before it in its video, and ends where the action
starts. A manifest for `data_prep.index` says so by `end_s`, the start of the action, and `label`; without `start_s` the
row reaches back to the start of the video. No later frame is in the row, so none can be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vjepa.config import Data
from vjepa.data.augment import view_boxes
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.clips import Clips, EvalClips, Views
from vjepa.data.decode import DecodeError
from vjepa.data.frame_times import clip_whole, frame_ids_at
from vjepa.data.loader import ClipLoader
from vjepa.errors import UserError
from vjepa.models.encoder import Encoder, patchify
from vjepa.models.predictor import MlpPredictor, Predictor, make_predictor
from vjepa.probing.banks import Extractor
from vjepa.probing.datasets import ClipSource, Dataset
from vjepa.probing.extractors import Readout, Time, levels_extractor, network_hash, read_levels, weights_hash
from vjepa.probing.passes import AugmentedClips, Passes
from vjepa.records import TokenGrid

MASK_INDEX: Final = 0  # the mask token of the first mask set; of published V-JEPA 2 files the only one that was trained
_EPS_S: Final = 1e-6


def observed_frames(row: IndexRow, data: Data, anticipation_s: float) -> np.ndarray:
    """int64 [T]: the frames of the clip that ends `anticipation_s` before the end of `row`, all on screen before then.

    The clip lasts T / clip_fps up to that moment (with frame_step: T steps; where neither is set: all that is seen).
    Where it reaches back beyond the row, the first frame is repeated. Raises DecodeError where the row has no frame
    that may be seen.
    """
    cut_s, times = row.end_s - anticipation_s, row.times()
    times = times[: int(np.searchsorted(times, cut_s - _EPS_S))]
    if not len(times):
        raise DecodeError(
            f"lasts {row.end_s - row.start_s:.3g} s, so that nothing is seen {anticipation_s:g} s before its end"
        )
    before = np.arange(data.num_frames) - data.num_frames  # -T to -1
    if data.frame_step is not None:
        return np.maximum(len(times) + (before + 1) * data.frame_step - 1, 0)
    clip_fps = _clip_fps(data)
    return (
        clip_whole(times, cut_s, data.num_frames, 0.5)
        if clip_fps is None
        else frame_ids_at(times, cut_s + before / clip_fps)
    )


def _clip_fps(data: Data) -> float | None:
    return data.num_frames / data.duration_s if data.duration_s is not None else data.clip_fps


class ObservedClips(EvalClips):
    """As `EvalClips`, the one clip of `observed_frames`; a row too short for it is left out and named in `failures`."""

    def __init__(
        self, index: ClipIndex, rows: np.ndarray, data: Data, batch: int, views: Views, anticipation_s: float
    ) -> None:
        super().__init__(index, rows, data, batch, views)
        self.anticipation_s = anticipation_s

    def _views(self, row: IndexRow) -> list[Tensor]:
        ids = self._in_time(observed_frames(row, self.data, self.anticipation_s), row.clip_id)
        boxes = view_boxes(row.height, row.width, self.views.num_crops)
        return self.crops(row, (0, row.clip_id), ids, boxes, [False] * len(boxes), self.data.crop_px)


class AugmentedObservedClips(AugmentedClips):
    """As `AugmentedClips`, with the frames of `observed_frames` in every pass."""

    def __init__(
        self, index: ClipIndex, rows: np.ndarray, data: Data, batch: int, passes: Passes, anticipation_s: float
    ) -> None:
        super().__init__(index, rows, data, batch, passes)
        self.anticipation_s = anticipation_s

    def _frame_ids(self, row: IndexRow, position: float) -> np.ndarray:
        return observed_frames(row, self.data, self.anticipation_s)


@dataclass(frozen=True)
class ActionSource(ClipSource):
    """Rows of a clip index that end where an action starts, seen up to `anticipation_s` before."""

    anticipation_s: float = 0.0

    def loader(self, clip_ids: np.ndarray, views: Views | Passes, batch: int) -> Iterable[Any]:
        clips: Clips
        if isinstance(views, Passes):
            clips = AugmentedObservedClips(self.index, clip_ids, self.data, batch, views, self.anticipation_s)
        elif views.num_clips == 1:
            clips = ObservedClips(self.index, clip_ids, self.data, batch, views, self.anticipation_s)
        else:
            raise UserError(
                f"--num_clips {views.num_clips}: of an action there is one clip, the last before it; leave it "
                "out with --anticipation_s"
            )
        return ClipLoader(
            clips, range(-(-len(clip_ids) // batch)), self.data.workers, self.data.deadline_s, self.data.prefetch
        )

    def facts(self, clip_ids: np.ndarray, views: Views | Passes) -> dict[str, Any]:
        return {**super().facts(clip_ids, views), "anticipation_s": self.anticipation_s}


def ahead(dataset: Dataset, anticipation_s: float) -> Dataset:
    """The same trials, seen up to `anticipation_s` before each action. Raises UserError for images."""
    if not isinstance(dataset.source, ClipSource):
        raise UserError("--anticipation_s: is for clip indexes; images have no time")
    return replace(dataset, source=ActionSource(dataset.source.index, dataset.source.data, anticipation_s))


@dataclass(frozen=True)
class RollOut:
    """An encoder, and the predictor that says what it would see in the `num_slots` time slots after the clip; both on
    one device.

    trained_slots: of the clips that the predictor learned from.
    """

    encoder: Encoder
    predictor: Predictor | MlpPredictor
    num_slots: int
    trained_slots: int

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        predictor: Predictor | MlpPredictor,
        data: Data,
        anticipation_s: float,
        trained_frames: int,
    ) -> RollOut:
        """As many slots as there are up to the one in which the action starts (V-JEPA 2 predicts that last one alone).

        trained_frames: of the clips that the predictor learned from: added positions mean nothing beyond them,
        rotations may. Raises UserError for clips without a rate, and where the predictor cannot reach so far.
        """
        model, clip_fps = encoder.model, _clip_fps(data)
        if model.positions == "sincos_2d":
            raise UserError("--rollout: the positions of this model have no time; give --rollout none")
        if clip_fps is None:
            raise UserError(
                "--rollout: a predictor's time slots need clips at a rate; give --clip_fps, or --rollout none"
            )
        if data.num_frames % model.tubelet_frames:
            raise UserError(
                f"--num_frames {data.num_frames}: time slots have {model.tubelet_frames} frames; --rollout "
                "needs a multiple of it"
            )
        num_slots = math.floor(anticipation_s * clip_fps / model.tubelet_frames + _EPS_S) + 1
        trained = model.sincos_grid[0] if model.sincos_grid else trained_frames // model.tubelet_frames
        rotary = model.positions == "rope" and isinstance(predictor, Predictor)
        if not rotary and data.num_frames // model.tubelet_frames + num_slots > trained:
            most = (trained - num_slots) * model.tubelet_frames
            remedy = f"--num_frames {most} or fewer" if most > 0 else "a lower --clip_fps"
            raise UserError(
                f"--anticipation_s {anticipation_s:g}: needs {num_slots} of the {trained} time slots that the "
                f"predictor knows; give {remedy}"
            )
        width = predictor.predictor_proj.out_features // model.levels
        if width != encoder.width:
            raise UserError(
                f"--rollout: the predictor gives {width} features, a token of the encoder has "
                f"{encoder.width}; give --rollout none"
            )
        return cls(encoder, predictor, num_slots, trained)

    def read(self, clips: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """[B, 3, T, H, W], normalised -> features [B, N, D] after each of `blocks`, then those that are predicted, [B,
        slots * h * w, D].
        """
        model, patches = self.encoder.model, patchify(clips, self.encoder.model)
        seen = patches.grid
        total = (
            model.sincos_grid[0] if model.sincos_grid else seen.t + self.num_slots
        )  # a table of positions is right on its own grid alone
        longer = TokenGrid(total, seen.h, seen.w)
        ids = torch.arange(seen.num_tokens + self.num_slots * seen.cells, device=clips.device).expand(len(clips), -1)
        context_ids, target_ids = ids[:, : seen.num_tokens], ids[:, seen.num_tokens :]
        context = self.encoder.encode(
            replace(patches, grid=longer), context_ids
        )  # the clip as the start of a longer one
        predicted: Tensor = self.predictor(context, context_ids, target_ids, longer, MASK_INDEX)
        same = list(blocks) == [self.encoder.depth - 1] and model.sincos_grid is None
        found = [context[..., -self.encoder.width :]] if same else read_levels(self.encoder, clips, blocks)
        return [*found, predicted[..., -self.encoder.width :]]

    def time_slots(self, data: Data) -> dict[str, int]:
        """For the report."""
        return {
            "observed": data.num_frames // self.encoder.model.tubelet_frames,
            "predicted": self.num_slots,
            "trained": self.trained_slots,
        }

    def extractor(self, readout: Readout, time: Time = "forward") -> Extractor:
        """As `extractors.encoder_extractor`, with what is predicted as one more level, so that only the mean can pool
        both.
        """
        ahead = {
            "predictor": network_hash(self._settings.model_dump_json(), self.predictor),
            "num_slots": self.num_slots,
            "mask_index": MASK_INDEX,
        }
        facts = {"weights": weights_hash(self.encoder), "rollout": ahead}
        return levels_extractor(facts, lambda clips: self.read(clips, readout.blocks), readout, time)

    def with_untrained_predictor(self) -> RollOut:
        """The same encoder, and a predictor of the same architecture with initial weights of seed 0."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = make_predictor(
                self._settings, len(self.predictor.mask_tokens), hasattr(self.predictor, "predictor_proj_context")
            )
        if hasattr(self.predictor, "positions"):  # a table that a file brought
            fresh.positions.table = self.predictor.positions.table
        device = self.predictor.predictor_proj.weight.device
        return replace(self, predictor=fresh.to(device).requires_grad_(False).eval())

    @property
    def _settings(self) -> Any:
        """Those of the predictor; an encoder that was read from a training file alone does not know them."""
        return getattr(self.predictor, "model", self.encoder.model)
