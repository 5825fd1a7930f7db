"""Tracks of recordings: LeRobot, DROID and robomimic, files beside films; what does not fit its film has a status."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numbered import COLUMNS, ROWS, numbers, picture
from scipy.spatial.transform import Rotation

from data_prep import describe, transcode
from data_prep import index as index_command
from data_prep.copying.shard import make_shards
from data_prep.copying.transcode import CopyOptions
from data_prep.copying.transcode import transcode as make_copies
from data_prep.listing import robot_files
from data_prep.listing.tracks import FileTracks, Numbers, TrackChoice, film_tracks, side_by_side
from data_prep.scanning.alignment import fitted
from data_prep.scanning.build import build_index
from vjepa.config import Data
from vjepa.data.clip_index import ClipIndex
from vjepa.data.decode import read_frames
from vjepa.data.frame_times import frame_ids
from vjepa.data.loader import train_loader
from vjepa.data.media import DecodeError
from vjepa.data.sources import open_sources
from vjepa.data.track_files import save_tracks
from vjepa.data.tracks import RowTracks, TrackInfo, Tracks
from vjepa.errors import UserError

FPS = 15
CAMERAS = ("observation.images.left", "observation.images.wrist")
LENGTHS = (21, 13, 34, 16, 25)
STATE = ("episode", "frame", "roll", "pitch", "yaw")


def film(path: Path, pictures, fps=FPS) -> Path:
    """Write numbered pictures as a film with B-frames and few keyframes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"g": "12", "bf": "2", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = COLUMNS, ROWS, "yuv420p"
        for one in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="rgb24")))
        container.mux(stream.encode())
    return path


def states(episode: int, length: int) -> np.ndarray:
    turns = np.random.default_rng(episode).uniform(-3, 3, (length, 3)) * [1, 0.5, 1]
    return np.concatenate([np.full((length, 1), episode), np.arange(length)[:, None], turns], axis=1).astype(np.float32)


def table_of(episodes) -> pa.Table:
    """Make the table of some episodes as LeRobot has it."""
    rows = [
        {
            "observation.state": state.tolist(),
            "action": [frame / 8.0],
            "timestamp": frame / FPS,
            "frame_index": frame,
            "episode_index": episode,
        }
        for episode in episodes
        for frame, state in enumerate(states(episode, LENGTHS[episode]))
    ]
    numbers_of = {"observation.state": pa.list_(pa.float32(), len(STATE)), "action": pa.list_(pa.float32(), 1)}
    kinds = numbers_of | {"timestamp": pa.float32(), "frame_index": pa.int64(), "episode_index": pa.int64()}
    return pa.Table.from_pylist(rows, pa.schema(list(kinds.items())))


def information(version: str, root: Path, data_path: str, video_path: str) -> None:
    """Write meta/info.json."""
    videos = {name: {"dtype": "video", "shape": [ROWS, COLUMNS, 3], "names": None} for name in CAMERAS}
    tracks = {
        "observation.state": {"dtype": "float32", "shape": [len(STATE)], "names": {"motors": list(STATE)}},
        "action": {"dtype": "float32", "shape": [1], "names": None},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    about = {"codebase_version": version, "fps": FPS, "chunks_size": 1000, "splits": {"train": "0:3", "val": "3:5"}}
    about |= {"data_path": data_path, "video_path": video_path, "features": videos | tracks}
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(about))


def write_v3(root: Path) -> Path:
    """Write five episodes to the layout of v3.0: two tables; films of 3 + 2 episodes, of the other camera 2 + 3."""
    path = "{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}"
    information("v3.0", root, "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", f"videos/{path}.mp4")
    files = {"data": (0, 0, 1, 1, 1), CAMERAS[0]: (0, 0, 0, 1, 1), CAMERAS[1]: (0, 0, 1, 1, 1)}
    episodes = [
        {"episode_index": i, "tasks": [f"task {i % 2}"], "length": length, "data/chunk_index": 0}
        for i, length in enumerate(LENGTHS)
    ]
    for name, of_episode in files.items():
        for number in set(of_episode):
            inside = [i for i, file in enumerate(of_episode) if file == number]
            if name == "data":
                (root / "data/chunk-000").mkdir(parents=True, exist_ok=True)
                pq.write_table(table_of(inside), root / f"data/chunk-000/file-{number:03d}.parquet")
                for i in inside:
                    episodes[i]["data/file_index"] = number
                continue
            camera, start = CAMERAS.index(name), 0
            shown = [picture(i, frame, camera) for i in inside for frame in range(LENGTHS[i])]
            film(root / f"videos/{name}/chunk-000/file-{number:03d}.mp4", shown)
            for i in inside:
                times = {"from_timestamp": start / FPS, "to_timestamp": (start + LENGTHS[i]) / FPS}
                told = {"chunk_index": 0, "file_index": number} | times
                episodes[i] |= {f"videos/{name}/{key}": value for key, value in told.items()}
                start += LENGTHS[i]
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    return root


def write_v2(root: Path) -> Path:
    """Write the same to the layout of v2.1: a table and a film of each camera for each episode."""
    data, videos = "data/chunk-{episode_chunk:03d}", "videos/chunk-{episode_chunk:03d}/{video_key}"
    name = "episode_{episode_index:06d}"
    information("v2.1", root, f"{data}/{name}.parquet", f"{videos}/{name}.mp4")
    (root / "data/chunk-000").mkdir(parents=True)
    lines = []
    for i, length in enumerate(LENGTHS):
        pq.write_table(table_of([i]), root / f"data/chunk-000/episode_{i:06d}.parquet")
        for camera, key in enumerate(CAMERAS):
            film(
                root / f"videos/chunk-000/{key}/episode_{i:06d}.mp4",
                [picture(i, frame, camera) for frame in range(length)],
            )
        lines.append(json.dumps({"episode_index": i, "tasks": [f"task {i % 2}"], "length": length}))
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    return root


WRITE = {"v3.0": write_v3, "v2.1": write_v2}


@pytest.mark.parametrize("version", WRITE)
def test_no_frame_of_lerobot_is_read_wrong(version, tmp_path, capsys):
    """Seams of episodes in one film and two cameras included; 1,000 reads of a folder that `lerobot` itself wrote are
    in tests/benchmarks/tracks.py.
    """
    index = build_index(WRITE[version](tmp_path / "set"), tmp_path / "x.parquet", workers=1, progress=False)
    assert index.column("status") == ["ok"] * 10
    assert index.column("camera") == list(CAMERAS) * 5 and index.column("label")[:4] == ["task 0"] * 2 + ["task 1"] * 2
    assert index.column("group")[:4] == ["set/0", "set/0", "set/1", "set/1"]
    assert index.column("split") == ["train"] * 6 + ["val"] * 4
    assert index.tracks.state.kind == (STATE, ("", "", "rad", "rad", "rad"), {2: "euler"})
    for i in range(10):
        row, episode = index.row(i), i // 2
        assert (row.num_frames, row.tracks.times_s) == (LENGTHS[episode], None)
        assert np.array_equal(row.tracks.state, states(episode, LENGTHS[episode]))
        for frame in (0, row.num_frames - 1, *np.random.default_rng(i).integers(row.num_frames, size=4).tolist()):
            assert numbers(read_frames(row, np.array([frame]), None)) == [(episode, frame, i % 2)]
    data = json.dumps({
        "train": str(index.path), "num_frames": 4, "clip_fps": 5, "crop_px": [ROWS, COLUMNS], "fit": "squash",
        "actions": "delta", "workers": 0, "global_batch": 10,
    })  # fmt: skip
    data = Data.model_validate_json(data)
    for batch in train_loader(open_sources(data), data, 0, range(3)):
        for clip, found, i in zip(batch.video, batch.states, batch.clip_ids.tolist(), strict=True):
            expected = [(int(state[0]), int(state[1]), i % 2) for state in found]
            assert numbers(clip.permute(1, 2, 3, 0).numpy()) == expected
        assert (batch.actions[:, :, 1] == 3).all()  # three frames of 15 fps on, at 5
    assert describe.main([str(index.path)]) == 0
    said = capsys.readouterr().out
    assert "State of each frame" in said and "a rotation begins at roll: euler" in said
    assert "10 clips of 13 to 34 frames (median 21), 218 in all" in said


def test_lerobot_that_does_not_fit_has_a_status_or_one_line(tmp_path):
    root = write_v2(tmp_path / "set")
    tables = [root / f"data/chunk-000/episode_{i:06d}.parquet" for i in range(5)]
    pq.write_table(table_of([0]).slice(1), tables[0])  # a row fewer than its length
    late = table_of([1]).to_pylist()
    times = [row["timestamp"] + (0.04 if row["frame_index"] > 4 else 0) for row in late]
    pq.write_table(table_of([1]).set_column(2, "timestamp", pa.array(times, pa.float32())), tables[1])
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    lines[2] = json.dumps({"episode_index": 2, "tasks": [], "length": 33})
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    pq.write_table(table_of([2]).slice(0, 33), tables[2])  # the table and the length agree, the film has 34
    tables[3].unlink()
    index = build_index(root, tmp_path / "x.parquet", workers=1, progress=False)
    status = index.column("status")[::2]
    assert status[0] == "track: its table has 20 rows of episode 0, its length is 21"
    assert status[1] == "track: its time of frame 5 is 0.04 s from that of the film, more than half a frame"
    assert status[2] == "track: 33 samples of state for 34 frames"
    assert status[3].startswith("track: its table cannot be read") and status[4] == "ok"
    assert index.column("status")[1::2] == status
    about = json.loads((root / "meta/info.json").read_text())
    for change, message in (
        ({"codebase_version": "v1.6"}, "LeRobot v1.6, of which v2.0, v2.1, v3.0 are read"),
        ({"features": {}}, "no feature of it is a video"),
        ({"fps": "x"}, "is not that of a LeRobot data set"),
        ({"codebase_version": "v3.0"}, "meta/episodes"),
    ):
        (root / "meta/info.json").write_text(json.dumps(about | change))
        with pytest.raises(UserError, match=message):
            build_index(root, tmp_path / "y.parquet", workers=1, progress=False)
    (root / "meta/info.json").write_text(json.dumps(about))
    with pytest.raises(
        UserError, match=r"no feature observation\.pose of numbers for the state; it has observation\.state"
    ):
        index_command.main([str(root), "--out", str(tmp_path / "y.parquet"), "--state", "observation.pose"])


def beside(folder: Path, name: str, num: int, fps: int = FPS, **arrays) -> Path:
    """Write a film of `num` numbered frames, and arrays as its NPZ."""
    path = film(folder / name, [picture(0, frame, 0) for frame in range(num)], fps)
    np.savez(path.with_suffix(".npz"), **arrays)
    return path


def test_npz_and_csv_beside_films_are_their_tracks(tmp_path):
    folder, rng = tmp_path / "films", np.random.default_rng(0)
    info = Tracks(
        TrackInfo(("dx", "dy"), ("m", "m")), TrackInfo((*"xyabcd",), ("m", "m", *[""] * 4), {2: "quaternion"})
    )
    turns = Rotation.random(20, random_state=0).as_quat()
    state = np.concatenate([rng.normal(size=(20, 2)), turns], 1).astype(np.float32)
    action = rng.normal(size=(19, 2)).astype(np.float32)
    path = film(folder / "a.mp4", [picture(0, frame, 0) for frame in range(20)])
    save_tracks(path, info, RowTracks(action, state))
    film(folder / "deep/b.mp4", [picture(1, frame, 0) for frame in range(20)])
    with (folder / "deep/b.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            [
                "time_s",
                *(f"state.{n} [m]" for n in "xy"),
                *(f"state.{n}" for n in "abcd"),
                "action.dx [m]",
                "action.dy [m]",
            ]
        )
        padded = np.concatenate([action, action[-1:]])
        table.writerows([k / FPS, *s, *a] for k, (s, a) in enumerate(zip(state, padded, strict=True)))
    film(folder / "c.mp4", [picture(2, frame, 0) for frame in range(20)])
    np.savez(folder / "stack.npz", np.zeros((4, 16, 16), np.uint8))  # a clip of its own
    choice = TrackChoice(rotations={"a": "quaternion"})
    index = build_index(folder, tmp_path / "x.parquet", workers=1, progress=False, tracks=choice)
    assert [Path(uri).name for uri in index.uris()] == ["a.mp4", "c.mp4", "b.mp4", "stack.npz"]
    assert index.column("status") == ["ok"] * 4 and (index.row(1).tracks, index.row(3).tracks) == (None, None)
    assert (index.tracks.state.kind, index.tracks.action.kind) == (info.state.kind, info.action.kind)
    for i in (0, 2):
        tracks = index.row(i).tracks
        assert np.array_equal(tracks.state, state) and np.array_equal(tracks.action[:-1], action)
    assert np.isnan(index.row(0).tracks.action[-1]).all() and np.array_equal(index.row(2).tracks.action[-1], action[-1])


def test_a_film_of_60_fps_that_was_taken_at_15_hz_spans_what_it_should(tmp_path, capsys):
    taken_s = 1700000000 + np.arange(60) / 15 + np.random.default_rng(0).uniform(0, 0.01, 60)
    beside(tmp_path / "films", "a.mp4", 60, 60, state=np.arange(60.0), times_s=taken_s)
    index = build_index(tmp_path / "films", tmp_path / "x.parquet", workers=1, progress=False)
    row = index.row(0)
    assert row.fps == pytest.approx(60) and np.array_equal(row.tracks.times_s, taken_s)
    data = Data.model_validate_json(json.dumps({"train": "x", "num_frames": 8, "clip_fps": 4}))
    for position in (0.0, 0.4, 0.99):
        ids = frame_ids(row, data, position)
        assert abs(taken_s[ids[-1]] - taken_s[ids[0]] - 7 / 4) < 1 / 15 + 0.02  # within a frame, not a quarter of it
        wanted = [max(k for k in range(60) if taken_s[k] <= taken_s[ids[0]] + n / 4 + 1 / 15) for n in range(8)]
        assert np.abs(np.array(wanted) - ids).max() <= 1
    assert describe.main([str(index.path)]) == 0
    assert re.search(r"clips whose film runs (4|3\.9\d|4\.0\d) times .* as it was taken.*: 1;", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"state": np.zeros((19, 2))}, "19 samples of state for 20 frames"),
        ({"state": np.zeros((20, 2)), "action": np.zeros((18, 2))}, "18 samples of action for 20 frames"),
        ({"state": np.zeros((20, 2)), "times_s": np.arange(19) / 15}, "19 samples of times for 20 frames"),
        ({"state": np.full((20, 2), np.nan)}, "its state is no number at frame 0"),
        ({"state": np.zeros((20, 2)), "times_s": np.arange(20)[::-1] / 15}, "the times of its track do not ascend"),
        ({"state": np.zeros((20, 3))}, "its state is state_0, state_1, state_2, unlike the first of the sources,"),
        ({"state": np.zeros((20, 2, 2))}, "its state is float64 [20, 2, 2], no numbers of frames x size"),
        ({"state": np.zeros((20, 2)), "state_names": ["x"]}, "its state_names are 1, its state has 2 numbers a frame"),
        ({"state": np.zeros((20, 2)), "state_rotations": ["7:euler"]}, "its state_rotations '7:euler' is no number"),
        ({"state": np.array([[None, 1]] * 20, object)}, "its tracks cannot be read"),
    ],
)  # fmt: skip
def test_tracks_that_do_not_fit_their_film_have_a_status(arrays, reason, tmp_path):
    """A film of its own is well: with its track mended, the same command takes it without a new scan."""
    folder = tmp_path / "films"
    beside(folder, "0.mp4", 16, **{name: np.zeros((16, 2)) for name in arrays if name in ("state", "action")})
    path = beside(folder, "1.mp4", 20, **arrays)
    index = build_index(folder, tmp_path / "x.parquet", workers=1, progress=False)
    assert index.column("status")[0] == "ok" and index.column("status")[1].startswith(f"track: {reason}")
    assert index.row(1).tracks is None
    np.savez(path.with_suffix(".npz"), **{name: np.ones((20, 2)) for name in arrays if name in ("state", "action")})
    mended = build_index(folder, tmp_path / "x.parquet", workers=1, progress=False)
    assert mended.column("status") == ["ok", "ok"] and mended.tracks.state.mean == pytest.approx((20 / 36,) * 2)


def test_an_index_without_a_film_that_fits_is_not_written(tmp_path):
    beside(tmp_path / "films", "0.mp4", 16, state=np.zeros((15, 2)))
    with pytest.raises(UserError, match=r"no film goes with its track: track: 15 samples of state for 16 frames x1"):
        build_index(tmp_path / "films", tmp_path / "x.parquet", workers=1, progress=False)
    assert not (tmp_path / "x.parquet").exists()


def test_windows_of_a_film_have_their_part_of_its_track(tmp_path, capsys):
    state = np.arange(30.0)[:, None] * [1, 2]
    beside(tmp_path / "films", "0.mp4", 30, state=state, action=np.ones((29, 1)))
    command = [str(tmp_path / "films"), "--out", str(tmp_path / "x.parquet"), "--window-s", "0.8", "--min-s", "0.5"]
    assert index_command.main(command) == 0
    index = ClipIndex.open(tmp_path / "x.parquet")
    assert index.column("num_frames") == ["12", "12", "6"] and index.column("status")[2].startswith("filtered")
    for i in range(2):
        assert np.array_equal(index.row(i).tracks.state, state[12 * i : 12 * (i + 1)].astype(np.float32))
        assert np.isfinite(index.row(i).tracks.action).all()
    assert index.tracks.state.num_frames == 24  # of usable rows alone


def test_copies_and_shards_keep_tracks(tmp_path):
    state = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    beside(tmp_path / "films", "0.mp4", 20, 60, state=state, action=state[:-1], times_s=np.arange(20) / 15)
    index = build_index(tmp_path / "films", tmp_path / "x.parquet", workers=1, progress=False)
    copied = make_copies(index, tmp_path / "copies", workers=1, progress=False)
    packed = make_shards(copied, tmp_path / "shards", progress=False)
    for one in (copied, packed):
        assert one.tracks == index.tracks
        for name in ("state", "action", "times_s"):
            was, now = getattr(index.row(0).tracks, name), getattr(one.row(0).tracks, name)
            assert np.array_equal(was, now, equal_nan=True)
    with pytest.raises(
        UserError, match=r"--fps 5: .*x\.parquet has a state or an action of each frame; leave --fps out"
    ):
        make_copies(index, tmp_path / "slower", CopyOptions(fps=5), workers=1, progress=False)


@pytest.mark.fast
def test_times_of_tracks_are_held_against_those_of_the_film():
    film_s = 3 + np.arange(100) / 30
    shaken = film_s + np.random.default_rng(0).uniform(-1, 1, 100) / 200
    off = np.where(np.arange(100) == 70, 0.02, 0)
    for clock, times_s, kept in (
        ("film", film_s, False),
        ("start", film_s - 3, False),
        ("own", film_s + 1e9, False),
        ("own", shaken, True),
        ("own", film_s * 1.001, True),  # a clock that drifts
        ("own", film_s * 2 + off, True),  # another rate: by the numbers of the frames
    ):
        found = fitted(FileTracks(Tracks(), RowTracks(state=np.zeros((100, 1)), times_s=times_s), clock), film_s)
        assert (found.times_s is not None) == kept
        if kept:
            assert np.array_equal(found.times_s, times_s)
    for clock, times_s in (("film", film_s - 0.02), ("start", film_s + off), ("own", film_s + off)):
        with pytest.raises(DecodeError, match=r"its time of frame \d+ is 0\.0[0-9]+ s from that of the film"):
            fitted(FileTracks(Tracks(), RowTracks(state=np.zeros((100, 1)), times_s=times_s), clock), film_s)


@pytest.mark.fast
def test_rotations_are_named_chosen_and_checked():
    values = np.random.default_rng(0).uniform(-3, 3, (10, 5))
    named = Numbers(values, ("arm_x", "arm_roll", "arm_pitch", "arm_yaw", "grip"), ("m", "deg", "deg", "deg", ""))
    turned = film_tracks(named, None, None, TrackChoice())
    assert turned.tracks.state.rotations == {1: "euler"} and turned.tracks.state.units == ("m", "rad", "rad", "rad", "")
    assert np.allclose(turned.row.state[:, 1:4], np.deg2rad(values[:, 1:4])) and np.allclose(
        turned.row.state[:, 0], values[:, 0]
    )
    assert film_tracks(named, None, None, TrackChoice(rotations={"arm_roll": "plain"})).tracks.state.rotations == {}
    with pytest.raises(DecodeError, match=r"its angles from arm_roll on come to 1[0-9.]+, which are no radians"):
        film_tracks(Numbers(values * 50, named.names, ("",) * 5), None, None, TrackChoice())
    with pytest.raises(DecodeError, match=r"its quaternion arm_x has length [0-9.]+ at frame \d"):
        film_tracks(named, None, None, TrackChoice(rotations={"arm_x": "quaternion", "arm_roll": "plain"}))
    for rotations, message in (
        ({"wrist": "euler"}, "the state has no dimension wrist, it has arm_x"),
        ({"arm_yaw": "euler"}, "rotation arm_roll=euler: takes 3 numbers, not 2"),
        ({"arm_x": "turn"}, "rotation arm_x=turn: give euler, quaternion, rotation6d, plain"),
    ):
        with pytest.raises(UserError, match=message):
            film_tracks(named, None, None, TrackChoice(rotations=rotations))
    one, two = Numbers(values[:, :1]), Numbers(values[:, 1:3], ("a", "b"))
    assert side_by_side("state", {"grip": one, "pose": two}).names == ("grip", "a", "b")
    assert side_by_side("state", {"p": two, "q": two}).names == ("p.a", "p.b", "q.a", "q.b")


def write_droid(folder: Path, num: int = 40) -> np.ndarray:
    """Write an episode as DROID publishes it: films of 60 fps that were taken at 15 Hz; give its poses."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    poses = np.concatenate([rng.normal(size=(num, 3)), rng.uniform(-3, 3, (num, 3)) * [1, 0.5, 1]], 1)
    for camera, serial in enumerate(("111", "222")):
        film(folder / f"recordings/MP4/{serial}.mp4", [picture(7, frame, camera) for frame in range(num)], 60)
    film(folder / "recordings/MP4/111-stereo.mp4", [picture(7, frame, 0) for frame in range(num)], 60)
    with h5py.File(folder / "trajectory.h5", "w") as file:
        file["observation/robot_state/cartesian_position"] = poses
        file["observation/robot_state/gripper_position"] = np.linspace(0, 1, num)
        file["action/cartesian_velocity"] = rng.normal(size=(num, 6))
        file["action/gripper_position"] = np.linspace(0, 1, num)
        for serial in ("111", "222"):
            file[f"observation/timestamp/cameras/{serial}_estimated_capture"] = 1.7e12 + np.arange(num) * 1000 // 15
    about = {"current_task": "put the cup away", "uuid": "LAB+1", "ext1_cam_serial": "111", "wrist_cam_serial": "222"}
    (folder / "metadata_LAB+1.json").write_text(json.dumps(about))
    return poses


def test_an_episode_of_droid_has_its_poses_and_its_true_times(tmp_path):
    poses = write_droid(tmp_path / "lab/success/one")
    index = build_index(tmp_path / "lab", tmp_path / "x.parquet", workers=1, progress=False)
    assert index.column("status") == ["ok", "ok"] and index.column("camera") == ["ext1", "wrist"]
    assert index.column("label") == ["put the cup away"] * 2 and index.column("group") == ["LAB+1"] * 2
    assert index.tracks.state.names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    assert index.tracks.state.rotations == {3: "euler"} and index.tracks.action.size == 7
    for i in range(2):
        assert np.allclose(index.row(i).tracks.state[:, :6], poses, atol=1e-6)
        times_s, end_s = index.row(i).clock()
        assert end_s - times_s[0] == pytest.approx(40 / 15, abs=0.01)


def test_robomimic_becomes_films_with_tracks(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    quaternions = Rotation.random(14, random_state=1).as_quat()
    with h5py.File(tmp_path / "lift.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
        for number in (0, 1, 10, 2):
            demo = file.create_group(f"data/demo_{number}")
            demo["obs/front"] = np.stack([picture(number, frame, 0) for frame in range(14)])
            demo["obs/robot0_eef_pos"], demo["obs/robot0_eef_quat"] = rng.normal(size=(14, 3)), quaternions
            demo["actions"] = rng.normal(size=(14, 7))
        file["mask/train"], file["mask/valid"] = np.array([b"demo_0", b"demo_1"]), np.array([b"demo_2", b"demo_10"])
    with pytest.raises(UserError, match=r"python -m data_prep\.transcode .*lift\.hdf5 --out FOLDER"):
        build_index(tmp_path / "lift.hdf5", tmp_path / "x.parquet", workers=1, progress=False)
    command = [str(tmp_path / "lift.hdf5"), "--out", str(tmp_path / "films"), "--workers", "1"]
    assert transcode.main(command) == 0 and transcode.main(command) == 0  # the second finds all done
    index = ClipIndex.open(tmp_path / "films/index.parquet")
    assert index.column("group") == [f"lift/demo_{number}" for number in (0, 1, 10, 2)]
    assert index.column("split") == ["train", "train", "val", "val"] and index.column("label") == ["lift"] * 4
    assert index.tracks.state.kind[0] == ("x", "y", "z", "qx", "qy", "qz", "qw")
    assert index.tracks.state.rotations == {3: "quaternion"} and index.tracks.action.size == 7
    for i, number in enumerate((0, 1, 10, 2)):
        row = index.row(i)
        assert row.fps == pytest.approx(20) and np.allclose(row.tracks.state[:, 3:], quaternions, atol=1e-6)
        assert numbers(read_frames(row, np.arange(14), None)) == [(number, frame, 0) for frame in range(14)]


def test_hdf5_without_h5py_is_one_line(tmp_path, monkeypatch):
    film(tmp_path / "lab/recordings/MP4/111.mp4", [picture(0, frame, 0) for frame in range(4)])
    (tmp_path / "lab/trajectory.h5").write_bytes(b"")
    (tmp_path / "lift.hdf5").write_bytes(b"")
    monkeypatch.setattr(robot_files, "h5py", None)
    for command, arguments in (
        (index_command.main, ["lab", "--out", "x.parquet"]),
        (transcode.main, ["lift.hdf5", "--out", "films"]),
    ):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=r"h5py, which is not installed; pip install 'video-jepa\[robots\]'"):
            command(arguments)


@pytest.mark.fast
def test_options_that_mean_nothing_are_refused(make_index, tmp_path, monkeypatch):
    folder = make_index([{"label": "a"}] * 2).parent
    monkeypatch.chdir(folder)
    with pytest.raises(
        UserError, match="no film has a state or an action, of which --state, --action, --rotation tell"
    ):
        index_command.main(["clips", "--out", "y.parquet", "--rotation", "roll=euler"])
    with pytest.raises(UserError, match="--rotation roll: write NAME=KIND"):
        index_command.main(["clips", "--out", "y.parquet", "--rotation", "roll"])
    with pytest.raises(UserError, match="of an index they are chosen where it is made"):
        transcode.main(["clips.parquet", "--out", "films", "--state", "x"])
    for layout, file in (("lerobot", "meta/info.json"), ("droid", "trajectory.h5")):
        with pytest.raises(UserError, match=f"layout {layout} found no {file} in it"):
            index_command.main(["clips", "--out", "y.parquet", "--layout", layout])
