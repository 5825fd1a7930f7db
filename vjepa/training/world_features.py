"""Features of every frame that a world model learns from, computed once and kept where probes keep theirs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from vjepa import command, config
from vjepa.data.actions import clip_tracks
from vjepa.data.clip_index import ClipIndex
from vjepa.data.loader import plan_loader
from vjepa.data.media import DecodeError
from vjepa.data.plan import Attempt, Decode
from vjepa.data.plan_rows import Passes, Views
from vjepa.data.plan_training import TrainPlan
from vjepa.data.plan_windows import CutVideos, EveryFrame, WindowPlan
from vjepa.errors import UserError
from vjepa.probing.banks import Bank, Extractor, SampleViews
from vjepa.probing.datasets import ClipSource
from vjepa.probing.store import Store, default_folder
from vjepa.records import ClipBatch, LatentBatch
from vjepa.world_model import WorldModel


@dataclass(frozen=True)
class FrameSource:
    """Read the frames of some rows of an index, int64 [n], as samples: frame by frame, row by row."""

    index: ClipIndex
    rows: np.ndarray
    data: config.Data

    @property
    def frames(self) -> CutVideos:
        """List the frames, which samples are named by."""
        data = self.data.model_copy(update={"num_frames": 1, "actions": None, "clips_per_decode": 1})
        return CutVideos.of(self.index, self.rows, data, EveryFrame())

    def loader(self, clip_ids: np.ndarray, views: Views | Passes, batch: int) -> Iterable[ClipBatch]:
        """Read frames, `batch` at a time; those of one row that follow each other are decoded together."""
        ids = clip_ids.tolist()
        batches = [range(ids[i], ids[min(i + batch, len(ids)) - 1] + 1) for i in range(0, len(ids), batch)]
        frames = self.frames
        return plan_loader(WindowPlan(frames, batches), frames.data)

    def facts(self, clip_ids: np.ndarray, views: Views | Passes) -> dict[str, Any]:
        """Give what the frames depend on: the rows and how they are read."""
        read = self.data.model_copy(update={"num_frames": 1, "clip_fps": None, "frame_step": None, "duration_s": None})
        return {"frames": "each", "num": len(clip_ids), **ClipSource(self.index, read).facts(self.rows, Views())}

    def uri(self, clip_id: int) -> str:
        return self.index.uri(int(self.frames.rows[clip_id]))


@dataclass(frozen=True)
class KeptFrames:
    """Hold features of every frame of some rows of an index: row i has those from `first[i]` on, in its order.

    values: fp16 or bf16 [N, 1, h w, D], mapped from disk.
    """

    values: Tensor
    first: dict[int, int]
    shape: tuple[int, int, int]

    def of(self, row: int, ids: np.ndarray) -> Tensor:
        """Give the features of frames `ids`, int64 [T], of a row: [T, h, w, D]."""
        found = self.values[torch.from_numpy(self.first[row] + ids), 0]
        return rearrange(found, "t (h w) d -> t h w d", h=self.shape[0])


def keep_frames(
    model: WorldModel, weights: str, source: FrameSource, settings: config.WorldConfig, shown: bool
) -> KeptFrames:
    """Find the features of all frames of `source`, or compute them. weights: the hash of the encoder.

    Raises UserError where frames cannot be read: a row without all of its frames has no roll-outs.
    """
    data, device, world = settings.data, model.action_mean.device, settings.world

    def run(video: Tensor, _: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            return {"frames": rearrange(model.features(video.to(device)), "b 1 h w d -> b (h w) d")}

    pooling = "tokens" if world.latents == "tokens" else f"grid:{world.grid_side}"
    facts = {"weights": weights, "frames": pooling, "channels": data.channels.model_dump(mode="json")}
    frames = source.frames
    folder = default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    bar = partial(command.progress_bar, shown=shown, desc="features", leave=False)
    store = Store(folder, "fp16", partial(tqdm.write, file=sys.stderr) if shown else lambda line: None, bar)
    samples = SampleViews(source, np.arange(len(frames)), Views())
    bank = store.banks(samples, {"encoder": Extractor(facts, ("frames",), run)}, world.feature_batch)["encoder"][
        "frames"
    ]
    _refuse_missing(bank, source)
    first = {int(row): int(place) for place, row in reversed(list(enumerate(frames.rows.tolist())))}
    return KeptFrames(bank.values, first, model.feature_shape)


def _refuse_missing(bank: Bank, source: FrameSource) -> None:
    if bank.failures:
        clip_id, reason = bank.failures[0]
        rows = sorted({int(source.frames.rows[one]) for one, _ in bank.failures})
        raise UserError(
            f"{source.uri(clip_id)}: {reason}; {len(rows)} of {len(source.rows)} rows lack frames. Index them again, "
            "leave them out by data.train.where, or set world.keep_features: false, which replaces such clips"
        )


@dataclass(frozen=True)
class KeptClip:
    """Hold one clip of a batch, as `LatentBatch` has many."""

    features: Tensor
    actions: Tensor
    states: Tensor | None
    clip_id: int


def kept_batches(plan: TrainPlan, kept: KeptFrames, steps: Iterable[int]) -> Iterator[LatentBatch]:
    """Give the batches of a plan from kept features: nothing is decoded, and frames and actions are those it names.

    A row without enough frames for its clip is replaced, as a clip that cannot be read is. Raises UserError where no
    replacement has any.
    """
    for step in steps:
        batch = plan.batch(step)
        clips, failures, replaced = list[KeptClip](), list[tuple[int, str]](), 0
        for place in batch.places:
            failed = len(failures)
            found = _first_whole(place, kept, batch.data, failures)
            if not found:
                clip_id, reason = failures[-1]
                raise UserError(f"{plan.uri(0, clip_id)}: {reason}; none of its replacements has a clip either")
            replaced += len(found) if len(failures) > failed else 0
            clips += found
        states = [clip.states for clip in clips if clip.states is not None]
        yield LatentBatch(
            torch.stack([clip.features for clip in clips]),
            torch.stack([clip.actions for clip in clips]),
            torch.stack(states) if len(states) == len(clips) else None,
            torch.tensor([clip.clip_id for clip in clips]),
            tuple(failures),
            replaced,
        )


def _first_whole(
    place: Iterable[Attempt], kept: KeptFrames, data: config.Data, failures: list[tuple[int, str]]
) -> list[KeptClip]:
    """Give the clips of the first attempt that has them all; none where none has, and note why."""
    for attempt in place:
        try:
            return [_clip(decode, kept, data, attempt.clip_id) for decode in attempt.decodes()]
        except DecodeError as error:
            failures.append((attempt.clip_id, str(error)))
    return []


def _clip(decode: Decode, kept: KeptFrames, data: config.Data, clip_id: int) -> KeptClip:
    actions, states = clip_tracks(decode.row, decode.frame_ids, data)
    if actions is None:
        raise DecodeError("has no actions")
    return KeptClip(kept.of(decode.row.clip_id, decode.frame_ids), actions, states, clip_id)
