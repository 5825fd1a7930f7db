"""Tracks: what goes into the index comes out; poses against SciPy; actions of clips against plain loops."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import scanned
from scipy.spatial.transform import Rotation

from vjepa.config import Data
from vjepa.data import clip_index
from vjepa.data.actions import clip_actions, clip_tracks, measured_actions
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.frame_times import frame_ids
from vjepa.data.joined_index import open_index
from vjepa.data.loader import eval_loader, train_loader
from vjepa.data.media import DecodeError
from vjepa.data.plan_windows import Cut
from vjepa.data.poses import composed, difference, from_matrix, identity, inverse, to_matrix
from vjepa.data.sources import open_sources
from vjepa.data.tracks import TrackInfo, Tracks
from vjepa.errors import UserError

FRAMES, STATE, ACTION = 40, 7, 2
POSE = TrackInfo(tuple("xyzabcg"), ("m",) * 3 + ("rad",) * 3 + ("",), {3: "euler"})
MOVE = TrackInfo(("dx", "dy"), ("m", "m"))
TRACKS = Tracks(MOVE, POSE)


def settings(index, **values) -> Data:
    values = {"train": str(index), "num_frames": 5, "crop_px": 16, "workers": 0, "global_batch": 4} | values
    return Data.model_validate_json(json.dumps(values))


def angles(num: int, seed: int = 0) -> np.ndarray:
    """Angles all over, at the seams too: float64 [num, 3]."""
    found = np.random.default_rng(seed).uniform(-math.pi, math.pi, (num, 3)) * [1, 0.5, 1]
    found[:6] = [
        [math.pi, 0, 0], [-math.pi, 0, math.pi], [0, 0, -math.pi], [math.pi - 1e-9, 0.3, 1e-9 - math.pi],
        [math.pi, 1.2, math.pi], [0, 0, 0],
    ]  # fmt: skip
    return found


@pytest.fixture
def tracked(make_video, tmp_path):
    """Write an index of three films, 40 frames at 10 fps, with random tracks; give them too, by row."""
    path, rng = make_video("a.mp4", FRAMES, fps=10, gop=8), np.random.default_rng(1)
    tracks, rows = [], []
    for _ in range(3):
        state = np.concatenate([rng.normal(size=(FRAMES, 3)), angles(FRAMES), rng.random((FRAMES, 1))], 1).astype("f4")
        action = rng.normal(size=(FRAMES, ACTION)).astype(np.float32)
        action[-1] = np.nan
        tracks.append((action, state))
        flat = {"action": action.ravel().tolist(), "state": state.ravel().tolist()}
        rows.append({"uri": "a.mp4", "label_id": -1, **scanned(path), **flat})
    write_index(tmp_path / "x.parquet", rows, tracks=TRACKS)
    return ClipIndex.open(tmp_path / "x.parquet"), tracks


@pytest.mark.fast
def test_tracks_come_back_as_written_and_are_measured(tracked):
    index, tracks = tracked
    assert (index.tracks.action.kind, index.tracks.state.kind) == (MOVE.kind, POSE.kind)
    for i, (action, state) in enumerate(tracks):
        assert np.array_equal(index.row(i).tracks.action, action, equal_nan=True)
        assert np.array_equal(index.row(i).tracks.state, state)
        assert index.row(i).tracks.rotations == {3: "euler"} and index.row(i).tracks.times_s is None
    states = np.concatenate([state for _, state in tracks]).astype(np.float64)
    actions = np.concatenate([action[:-1] for action, _ in tracks]).astype(np.float64)
    assert (index.tracks.state.num_frames, index.tracks.action.num_frames) == (3 * FRAMES, 3 * (FRAMES - 1))
    for info, values in ((index.tracks.state, states), (index.tracks.action, actions)):
        assert np.allclose(info.mean, values.mean(0), atol=1e-12) and np.allclose(info.std, values.std(0), atol=1e-12)


@pytest.mark.fast
def test_tracks_of_many_rows_lie_in_groups_of_rows(tracked, tmp_path, monkeypatch):
    """A group is closed when its tracks are many; what is in the index is the same."""
    index, tracks = tracked
    monkeypatch.setattr(clip_index, "_TRACKED_PER_GROUP", FRAMES * (STATE + ACTION) + 1)  # two rows each
    write_index(tmp_path / "y.parquet", index.records(), extra=[], tracks=TRACKS)
    other = ClipIndex.open(tmp_path / "y.parquet")
    assert pq.ParquetFile(other.path).num_row_groups == 2 and other.tracks.state.num_frames == 3 * FRAMES
    assert np.allclose(other.tracks.state.std, index.tracks.state.std, atol=1e-12)
    assert [row["uri"] for row in other.records(["uri"])] == ["a.mp4"] * 3
    assert all(np.array_equal(other.row(i).tracks.state, state) for i, (_, state) in enumerate(tracks))


@pytest.mark.fast
def test_two_indexes_are_described_as_one_or_refused(tracked, tmp_path):
    index, _ = tracked
    records = list(index.records())
    write_index(tmp_path / "one.parquet", records[:1], tracks=TRACKS)
    write_index(tmp_path / "two.parquet", records[1:], tracks=TRACKS)
    write_index(tmp_path / "other.parquet", records[1:], tracks=Tracks(MOVE, TrackInfo(POSE.names, POSE.units)))
    joined = open_index([str(tmp_path / "one.parquet"), str(tmp_path / "two.parquet")])
    assert joined.tracks.state.num_frames == 3 * FRAMES
    for which in ("action", "state"):
        one, both = getattr(index.tracks, which), getattr(joined.tracks, which)
        assert np.allclose(one.mean, both.mean, atol=1e-12) and np.allclose(one.std, both.std, atol=1e-12)
    assert np.array_equal(joined.row(2).tracks.state, index.row(2).tracks.state)
    with pytest.raises(UserError, match=r"other\.parquet: its state is .*one\.parquet.*rotations differ"):
        open_index([str(tmp_path / "one.parquet"), str(tmp_path / "other.parquet")])


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["euler", "quaternion", "rotation6d"])
def test_rotations_are_those_of_scipy(kind):
    turns = Rotation.from_euler("xyz", angles(2000))
    matrices = torch.from_numpy(turns.as_matrix())
    numbers = from_matrix(matrices, kind)
    expected = {
        "euler": turns.as_euler("xyz"),
        "quaternion": turns.as_quat(canonical=True),
        "rotation6d": turns.as_matrix()[:, :2].reshape(-1, 6),
    }[kind]
    apart = np.abs(numbers.numpy() - expected)
    if kind == "euler":
        apart = np.minimum(apart, 2 * math.pi - apart)  # pi and -pi are one angle
    if kind == "quaternion":
        apart = np.minimum(apart.max(1), np.abs(numbers.numpy() + expected).max(1))  # so are q and -q where w = 0
    assert apart.max() < 1e-6
    assert (to_matrix(torch.from_numpy(expected), kind) - matrices).abs().max() < 1e-6
    assert (to_matrix(numbers, kind) - matrices).abs().max() < 1e-6


@pytest.mark.fast
def test_the_seam_of_the_angles_about_y_loses_no_rotation():
    turned = angles(500)
    turned[:, 1] = np.where(np.arange(500) % 2, 1, -1) * (math.pi / 2 - np.geomspace(1e-12, 1e-3, 500))
    matrices = torch.from_numpy(Rotation.from_euler("xyz", turned).as_matrix())
    assert (to_matrix(from_matrix(matrices, "euler"), "euler") - matrices).abs().max() < 1e-6


@pytest.mark.fast
@pytest.mark.parametrize("kind", ["euler", "quaternion", "rotation6d"])
def test_differences_lead_there_and_back(kind):
    """As of SciPy: Euler(R(k+1) R(k)^T) beside plain numbers, wherever the rotation stands among them."""
    one, two = (Rotation.from_euler("xyz", angles(500, seed)) for seed in (1, 2))
    rng, rotations = np.random.default_rng(0), {2: kind}
    places, grips = rng.normal(size=(2, 500, 2)), rng.random((2, 500, 1))
    before, after = (
        torch.cat([torch.from_numpy(p), from_matrix(torch.from_numpy(r.as_matrix()), kind), torch.from_numpy(g)], -1)
        for p, r, g in zip(places, (one, two), grips, strict=True)
    )
    delta = difference(before, after, rotations)
    turn = to_matrix(delta[:, 2:-1], kind).numpy()
    assert np.abs(turn - (two * one.inv()).as_matrix()).max() < 1e-6
    assert np.allclose(delta[:, :2], places[1] - places[0]) and np.allclose(delta[:, -1:], grips[1] - grips[0])
    for state, expected in (
        (composed(before, delta, rotations), after),
        (composed(after, inverse(delta, rotations), rotations), before),
    ):
        assert (state[:, :2] - expected[:, :2]).abs().max() < 1e-6
        assert (to_matrix(state[:, 2:-1], kind) - to_matrix(expected[:, 2:-1], kind)).abs().max() < 1e-6
    nothing = identity(before.shape[-1], rotations, before)
    assert (composed(before, nothing, rotations) - before).abs().max() < 1e-6


def test_actions_of_clips_are_those_of_a_plain_loop(tracked):
    index, tracks = tracked
    for actions, more in (("delta", {"clip_fps": 2.5}), ("sum", {"clip_fps": 4}), ("concat", {"frame_step": 3})):
        data = settings(index.path, actions=actions, **more)
        for i, (action, state) in enumerate(tracks):
            ids = frame_ids(index.row(i), data, 0.7)
            found, states = clip_tracks(index.row(i), ids, data)
            expected = []
            for start, end in pairwise(ids):
                if actions == "delta":
                    turned = (
                        Rotation.from_euler("xyz", state[end, 3:6])
                        * Rotation.from_euler("xyz", state[start, 3:6]).inv()
                    )
                    plain = state[end].astype(float) - state[start]
                    expected.append(np.concatenate([plain[:3], turned.as_euler("xyz"), plain[6:]]))
                else:
                    some = [action[k].astype(float) for k in range(start, end)]
                    expected.append(sum(some) if actions == "sum" else np.concatenate(some))
            assert found.dtype == states.dtype == torch.float32
            assert np.abs(found.numpy() - np.array(expected)).max() < 1e-5
            assert np.array_equal(states, state[ids])
        info = clip_actions(index.tracks, data)
        assert info.size == found.shape[1] == len(info.units)
    assert info.names == ("dx+0", "dy+0", "dx+1", "dy+1", "dx+2", "dy+2")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_the_tracks_of_their_frames(tracked, workers):
    """Also through processes; a plan without actions carries none."""
    index, tracks = tracked
    data = settings(index.path, actions="delta", clip_fps=5, workers=workers, crop_scale=[1, 1])
    for batch in train_loader(open_sources(data), data, 0, range(3)):
        assert batch.actions.shape == (4, 4, STATE) and batch.states.shape == (4, 5, STATE) and not batch.failures
        for clip, states, i in zip(batch.video, batch.states, batch.clip_ids.tolist(), strict=True):
            known = [int(np.flatnonzero((tracks[i][1] == state.numpy()).all(1))[0]) for state in states]
            levels = clip.float().mean((0, 2, 3))
            assert (levels - torch.tensor([20 + k * 17 % 43 * 5 for k in known])).abs().max() < 4
    data = settings(index.path, clip_fps=5, workers=workers)
    batch = next(iter(eval_loader(index, np.arange(3), data, 3, workers)))
    assert batch.actions is None and batch.states is None


@pytest.mark.fast
def test_measured_actions_are_those_of_the_clips(tracked):
    index, _ = tracked
    data = settings(index.path, actions="delta", clip_fps=5)
    all_of_them = [
        clip_tracks(index.row(i), frame_ids(index.row(i), data, position), data)[0]
        for i in range(3)
        for position in (0.125, 0.375, 0.625, 0.875)
    ]
    expected, info = torch.cat(all_of_them).double().numpy(), measured_actions(index, np.arange(3), data)
    assert np.allclose(info.mean, expected.mean(0)) and np.allclose(info.std, expected.std(0))
    with pytest.raises(UserError, match="shorten the clip"):
        measured_actions(index, np.arange(3), settings(index.path, actions="delta", clip_fps=0.5))


@pytest.mark.fast
def test_frames_are_chosen_by_the_clock_of_the_track(tracked, tmp_path):
    """A film of 10 fps that was taken at 2.5 Hz: a clip of 5 frames at 1 fps spans 4 true seconds, 10 frames."""
    index, _ = tracked
    slow = [row | {"track_times_s": (100 + np.arange(FRAMES) / 2.5).tolist()} for row in index.records()]
    write_index(tmp_path / "slow.parquet", slow, tracks=TRACKS)
    row = ClipIndex.open(tmp_path / "slow.parquet").row(0)
    assert row.clock()[1] == pytest.approx(100 + FRAMES / 2.5) and row.times()[-1] == pytest.approx(3.9)
    ids = frame_ids(row, settings("slow.parquet", clip_fps=1), 0.0)
    assert ids.tolist() == [0, 2, 5, 7, 10]
    assert frame_ids(row, settings("slow.parquet", clip_fps=1), 0.5, index.keyframes(0))[0] == 8 * 2  # of 0, 8, 16, 24
    assert Cut(1, window_s=4, stride_s=4).count(row) == 4


@pytest.mark.fast
def test_what_has_no_actions_is_refused_or_named(tracked, make_index, tmp_path):
    index, _ = tracked
    plain = make_index([{"label": "a"}] * 2)
    with pytest.raises(UserError, match="which the index has not"):
        open_sources(settings(plain, actions="delta"))
    records = list(index.records())
    del records[1]["state"]
    write_index(tmp_path / "gaps.parquet", records, tracks=TRACKS)
    with pytest.raises(UserError, match=r"1 of 3 clips have no state.*where leaves rows out"):
        open_sources(settings(tmp_path / "gaps.parquet", actions="delta"))
    assert len(open_sources(settings(tmp_path / "gaps.parquet", actions="sum"))) == 1
    with pytest.raises(DecodeError, match="too few frames for a clip of 5"):
        clip_tracks(index.row(0), np.array([0, 3, 3, 4, 5]), settings(index.path, actions="delta"))
    for wrong, message in (({"flip": True}, "flip: a mirrored clip"), ({"actions": "concat"}, "set frame_step")):
        with pytest.raises(ValueError, match=message):
            settings(index.path, **{"actions": "delta"} | wrong)
