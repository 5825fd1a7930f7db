"""What leads from each frame of a clip to the next: the actions between chosen frames, and the states at them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from vjepa.config import Data
from vjepa.data.clip_index import ClipIndex, IndexRow
from vjepa.data.frame_times import frame_ids
from vjepa.data.media import DecodeError
from vjepa.data.poses import difference
from vjepa.data.tracks import Moments, RowTracks, TrackInfo, Tracks
from vjepa.errors import UserError

_POSITIONS = (0.125, 0.375, 0.625, 0.875)  # of the clips of a row that are measured
_NUM_MEASURED = 4096  # rows


def clip_tracks(row: IndexRow, ids: np.ndarray, data: Data) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Give actions, float32 [T - 1, A], and states, float32 [T, S], of the frames `ids` of a row, int64 [T].

    Both are None without `data.actions`, and of a single frame. Raises DecodeError where frames repeat, as there is no
    action between them, and where the row lacks what is asked for.
    """
    if data.actions is None or len(ids) < 2:
        return None, None
    tracks = row.tracks or RowTracks()
    samples = tracks.state if data.actions == "delta" else tracks.action
    if samples is None:
        raise DecodeError(f"has no track for actions: {data.actions}")
    if not (np.diff(ids) > 0).all():
        raise DecodeError(f"has too few frames for a clip of {len(ids)} with an action between each two")
    states = None if tracks.state is None else torch.from_numpy(tracks.state[ids])
    if data.actions == "delta":
        exact = torch.from_numpy(samples[ids].astype(np.float64))
        return difference(exact[:-1], exact[1:], tracks.rotations).float(), states
    between = [samples[start:end] for start, end in pairwise(ids.tolist())]
    joined = [some.sum(axis=0, dtype=np.float64) if data.actions == "sum" else some.ravel() for some in between]
    return torch.from_numpy(np.stack(joined).astype(np.float32)), states


def clip_actions(tracks: Tracks, data: Data) -> TrackInfo | None:
    """Name the dimensions of the actions of clips; None without `data.actions`. Raises UserError without the track."""
    if data.actions is None:
        return None
    which = "state" if data.actions == "delta" else "action"
    info: TrackInfo | None = getattr(tracks, which)
    if info is None:
        raise UserError(
            f"data.actions: {data.actions} is made of the {which} of each frame, which the index has not; set another, "
            "or index the films with their tracks (data_prep/README.md)"
        )
    if data.actions == "concat":
        steps = range(data.frame_step or 1)
        return TrackInfo(tuple(f"{name}+{step}" for step in steps for name in info.names), info.units * len(steps))
    return TrackInfo(info.names, info.units, info.rotations if data.actions == "delta" else {})


def require_tracks(index: ClipIndex, rows: np.ndarray, data: Data) -> None:
    """Raise UserError, before anything is read, where rows lack the track that `data.actions` is made of.

    rows: int64 [n] of the index.
    """
    if data.actions is None:
        return
    clip_actions(index.tracks, data)
    which = "state" if data.actions == "delta" else "action"
    missing = rows[~np.asarray(index.arrow(which).is_valid())[rows]]
    if len(missing):
        raise UserError(
            f"{index.path}: {len(missing)} of {len(rows)} clips have no {which}, of which data.actions: {data.actions} "
            f"is made; the first is {index.uri(int(missing[0]))}. data.train.where leaves rows out"
        )


def measured_actions(index: ClipIndex, rows: np.ndarray, data: Data) -> TrackInfo:
    """Measure mean and deviation of the actions of clips, from four clips of each of up to 4,096 rows, evenly.

    rows: int64 [n], n >= 1. Nothing is decoded. Raises UserError where no row has a clip with actions.
    """
    info = clip_actions(index.tracks, data)
    if info is None:
        raise UserError("data.actions: null, so that clips have no actions; set delta, sum or concat")
    moments = Moments(info.size)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _NUM_MEASURED)).round().astype(int))
    for row in map(index.row, rows[chosen].tolist()):
        for position in _POSITIONS:
            try:
                actions, _ = clip_tracks(row, frame_ids(row, data, position), data)
            except DecodeError:
                continue
            if actions is not None:
                moments.add(actions.numpy())
    if not moments.num:
        raise UserError(f"{index.path}: none of {len(rows)} clips has frames for a clip with actions; shorten the clip")
    return info.measured(moments)
