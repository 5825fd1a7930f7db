"""Action anticipation: what a probe may see ends some time before an action, and a predictor may roll its features on
(V-JEPA 2, section 6).

Each row of the clip index is one action: the row is what comes before it in its video, and ends where the action
starts. A manifest for `data_prep.index` says so by `end_s`, the start of the action, and `label`; without `start_s` the
row reaches back to the start of the video. No later frame is in the row, so none can be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from vjepa.config import Data
from vjepa.data.frame_times import clip_rate
from vjepa.data.time_order import Time
from vjepa.errors import UserError
from vjepa.models.encoder import Encoder, patchify
from vjepa.models.predictor import MlpPredictor, Predictor, make_predictor
from vjepa.probing.datasets import ClipSource, Dataset
from vjepa.probing.recipes import Reading, levels_recipe, network_hash, read_levels, weights_hash
from vjepa.probing.store import Recipe
from vjepa.records import TokenGrid

MASK_INDEX: Final = 0  # the mask token of the first mask set; of published V-JEPA 2 files the only one that was trained
_EPS_S: Final = 1e-6


def ahead(dataset: Dataset, anticipation_s: float) -> Dataset:
    """Show the same trials up to `anticipation_s` before each action. Raises UserError for images."""
    if not isinstance(dataset.source, ClipSource):
        raise UserError("--anticipation_s: is for clip indexes; images have no time")
    return replace(dataset, source=replace(dataset.source, anticipation_s=anticipation_s))


@dataclass(frozen=True)
class RollOut:
    """Hold an encoder, and the predictor that says what it would see in the `num_slots` time slots after the clip.

    Both are on one device. trained_slots: of the clips that the predictor learned from.
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
        """Roll out to the slot in which the action starts (V-JEPA 2 predicts that last one alone).

        trained_frames: of the clips that the predictor learned from: added positions mean nothing beyond them,
        rotations may. Raises UserError for clips without a rate, and where the predictor cannot reach so far.
        """
        model, clip_fps = encoder.model, clip_rate(data)
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
        """Read features [B, N, D] after each of `blocks`, then those that are predicted, [B, slots * h * w, D].

        clips: [B, 3, T, H, W], normalised.
        """
        model, patches = self.encoder.model, patchify(clips, self.encoder.model)
        seen = patches.grid
        # a table of positions is right on its own grid alone
        total = model.sincos_grid[0] if model.sincos_grid else seen.t + self.num_slots
        longer = TokenGrid(total, seen.h, seen.w)
        ids = torch.arange(seen.num_tokens + self.num_slots * seen.cells, device=clips.device).expand(len(clips), -1)
        context_ids, target_ids = ids[:, : seen.num_tokens], ids[:, seen.num_tokens :]
        # the clip as the start of a longer one
        context = self.encoder.encode(replace(patches, grid=longer), context_ids)
        predicted: Tensor = self.predictor(context, context_ids, target_ids, longer, MASK_INDEX)
        same = list(blocks) == [self.encoder.depth - 1] and model.sincos_grid is None
        found = [context[..., -self.encoder.width :]] if same else read_levels(self.encoder, clips, blocks)
        return [*found, predicted[..., -self.encoder.width :]]

    def time_slots(self, data: Data) -> dict[str, int]:
        """Count the time slots, for the report."""
        return {
            "observed": data.num_frames // self.encoder.model.tubelet_frames,
            "predicted": self.num_slots,
            "trained": self.trained_slots,
        }

    def recipe(self, reading: Reading, time: Time = "forward") -> Recipe:
        """Make the recipe of `recipes.encoder_recipe`, with what is predicted as one more level.

        Only the mean can pool both.
        """
        ahead = {
            "predictor": network_hash(self._settings.model_dump_json(), self.predictor),
            "num_slots": self.num_slots,
            "mask_index": MASK_INDEX,
        }
        facts = {"weights": weights_hash(self.encoder), "rollout": ahead}
        return levels_recipe(facts, lambda clips: self.read(clips, reading.blocks), reading, time)

    def with_untrained_predictor(self) -> RollOut:
        """Give the same encoder, and a predictor of the same architecture with initial weights of seed 0."""
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
        """Give the settings of the predictor; an encoder read from a training file alone does not know them."""
        return getattr(self.predictor, "model", self.encoder.model)
