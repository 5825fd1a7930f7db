"""Cutting into clips: no frame is lost or taken twice, each clip tells of itself alone, filters only write a reason."""

from itertools import pairwise
from types import SimpleNamespace

import av
import numpy as np
import pytest

from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scan import scan
from data_prep.scanning.scenes import Frames, cut
from vjepa.data.media import DecodeError


def frames_of(times_s, end_s=None, keyframes=(0,), **changes):
    times_s = np.asarray(times_s, float)
    n = len(times_s)
    facts = {
        "times_s": times_s,
        "end_s": times_s[-1] + 0.1 if end_s is None else end_s,
        "fps": 10.0,
        "keyframes": np.array(keyframes),
        "levels": np.full(n, 0.5),
        "changes": np.append(np.nan, np.full(n - 1, 0.1)),
        "sizes": [(0, 64, 48)],
        "scene_starts": [],
        "clock_starts": [],
    }
    return Frames(**facts | changes)


def spans(rows):
    return [(row["first_frame"], row["first_frame"] + row["num_frames"]) for row in rows]


@pytest.mark.fast
@pytest.mark.parametrize(
    "options",
    [{}, {"window_s": 0.7}, {"max_s": 1.5}, {"window_s": 1.0, "max_s": 2.5}, {"window_s": 0.001}, {"max_s": 1e9}],
)
@pytest.mark.parametrize("start_s", [0.0, -3.0, 9.87])
def test_clips_tile_the_video(options, start_s):
    rng = np.random.default_rng(0)
    for times in (
        np.arange(57) / 10,
        np.sort(rng.uniform(0, 9, 40)),
        np.array([0.0]),
        np.array([0, 0, 0, 1.0, 1.0, 7.0]),
    ):
        frames = frames_of(start_s + times, scene_starts=[13, 31])
        rows = cut(frames, ScanOptions(**options))
        bounds = spans(rows)
        assert (
            bounds[0][0] == 0
            and bounds[-1][1] == len(times)
            and all(before[1] == after[0] for before, after in pairwise(bounds))
        )
        for row, (first, end) in zip(rows, bounds, strict=True):
            assert row["start_s"] == frames.times_s[first] and row["end_s"] > max(
                row["start_s"], frames.times_s[end - 1]
            )
            read = (
                row["start_s"] + np.arange(end - first) / row["fps"]
                if row["times_s"] is None
                else np.array(row["times_s"])
            )
            assert np.abs(read - frames.times_s[first:end]).max() <= 1e-3


@pytest.mark.fast
def test_windows_have_their_length_and_the_last_is_what_is_left():
    rows = cut(frames_of(5 + np.arange(25) / 10), ScanOptions(window_s=1.0))
    assert spans(rows) == [(0, 10), (10, 20), (20, 25)]
    assert [row["end_s"] for row in rows] == pytest.approx([6.0, 7.0, 7.5])
    rates = [29.97, 23.976, 25, 60]
    for fps in rates:  # timestamps in milliseconds do not shift a frame into the window before
        rows = cut(frames_of(np.round(np.arange(int(fps * 8)) / fps, 3), fps=fps), ScanOptions(window_s=2.0))
        assert [row["num_frames"] for row in rows][:3] == pytest.approx([2 * fps] * 3, abs=1)


@pytest.mark.fast
def test_what_is_too_long_is_cut_in_equal_parts():
    rows = cut(frames_of(np.arange(250) / 10), ScanOptions(max_s=10.0))
    assert len(rows) == 3 and {row["num_frames"] for row in rows} <= {83, 84}
    assert len(cut(frames_of(np.arange(100) / 10), ScanOptions(max_s=10.0))) == 1


@pytest.mark.fast
def test_a_clip_tells_of_itself_alone():
    levels = np.array([0, 0, 0.5, 0.5, 0.5, 0.9])
    changes = np.array([np.nan, 0, 0.5, 0, 0, 0.4])
    times = np.array([0, 1, 2, 3, 4, 9.5])
    rows = cut(frames_of(times, 10.0, keyframes=[0, 1, 4], levels=levels, changes=changes), ScanOptions(window_s=2.0))
    assert spans(rows) == [(0, 2), (2, 4), (4, 5), (5, 6)]
    assert [row["keyframes_s"] for row in rows] == [[0, 1], [], [4], []]
    assert [row["black_ratio"] for row in rows] == [1, 0, 0, 0]
    assert [row["motion_ratio"] for row in rows] == [0, 0, None, None]  # the change at a cut belongs to no clip
    assert [row["frozen_ratio"] for row in rows] == [1, 1, None, None]
    assert [row["end_s"] for row in rows] == [2, 4, 9.5, 10.0] and [row["times_s"] for row in rows] == [None] * 4
    (whole,) = cut(frames_of(times, 10.0), ScanOptions())
    assert whole["times_s"] == times.tolist()


@pytest.mark.fast
def test_a_part_restricts_what_is_cut():
    frames = frames_of(2 + np.arange(40) / 10)
    assert spans(cut(frames, ScanOptions(), start_s=3.0, end_s=4.0)) == [(10, 20)]
    assert spans(cut(frames, ScanOptions(window_s=0.6), start_s=5.0)) == [(30, 36), (36, 40)]
    assert spans(cut(frames, ScanOptions(), end_s=2.05)) == [(0, 1)]
    for part in ({"start_s": 6.0}, {"end_s": 2.0}, {"start_s": 3.0, "end_s": 3.0}):
        with pytest.raises(DecodeError, match=r"no frame from .* it lasts from 2 s to 6 s"):
            cut(frames, ScanOptions(), **part)


@pytest.mark.fast
def test_filters_write_a_reason_and_keep_the_row():
    levels = np.repeat([0.0, 0.5, 0.5, 0.5], 10)
    changes = np.append(np.nan, np.concatenate([np.full(19, 0.1), np.zeros(10), np.full(10, 0.01)]))
    frames = frames_of(np.arange(45) / 10, levels=np.append(levels, [0.5] * 5), changes=np.append(changes, [0.1] * 5))

    def statuses(**options):
        return [row["status"] for row in cut(frames, ScanOptions(window_s=1.0, **options))]

    assert statuses() == ["ok"] * 5
    assert statuses(min_s=1.0) == ["ok"] * 4 + ["filtered: shorter than 1 s"]
    assert statuses(min_motion=0.05) == ["ok", "ok", "filtered: motion below 0.05", "filtered: motion below 0.05", "ok"]
    assert statuses(max_black=0.5) == ["filtered: more than 50% of the frames are black"] + ["ok"] * 4
    assert statuses(max_frozen=0.9) == ["ok", "ok", "filtered: more than 90% of the time is frozen", "ok", "ok"]


def textures(tmp_path, num_frames=30):
    """Three moving patterns, one after the other, in colour."""
    path = tmp_path / "scenes.mp4"
    rng = np.random.default_rng(3)
    patterns = [
        np.kron(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8)) for _ in range(3)
    ]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for pattern in patterns:
            for i in range(num_frames):
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(np.roll(pattern, i // 3, axis=1), format="rgb24"))
                )
        container.mux(stream.encode())
    return SimpleNamespace(uri=str(path), name=path.name, offset=None, length=None, start_s=None, end_s=None)


def test_scenes_are_cut_where_the_texture_changes(tmp_path):
    pytest.importorskip("scenedetect")
    entry = textures(tmp_path)
    assert spans(scan(entry, ScanOptions(scenes=True))) == [(0, 30), (30, 60), (60, 90)]
    assert spans(scan(entry, ScanOptions(scenes=True, max_s=2.0))) == [(i, i + 15) for i in range(0, 90, 15)]
    assert spans(scan(entry, ScanOptions(scenes=True, window_s=2.0))) == [
        (0, 20),
        (20, 30),
        (30, 50),
        (50, 60),
        (60, 80),
        (80, 90),
    ]
    assert spans(scan(entry, ScanOptions(scenes=True, scene_threshold=250.0))) == [(0, 90)]
    entry.start_s, entry.end_s = 2.0, 5.0
    assert spans(scan(entry, ScanOptions(scenes=True))) == [(20, 30), (30, 50)]
