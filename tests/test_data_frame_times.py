"""Seconds to frame ids: what is on screen, at which rate, and never outside of the video."""

import numpy as np
import pytest

from vjepa.data.frame_times import clip_by_fps, clip_by_step, clip_whole, frame_ids_at

pytestmark = pytest.mark.fast


def test_the_frame_on_screen_is_the_last_one_that_came_before():
    times = np.array([0.0, 0.1, 0.5, 0.6])
    assert frame_ids_at(times, np.array([-1.0, 0.0, 0.09, 0.1, 0.49, 0.5, 0.55, 9.0])).tolist() == [
        0,
        0,
        0,
        1,
        1,
        2,
        2,
        3,
    ]


@pytest.mark.parametrize("fps", [8, 23.976, 25, 29.97, 59.94])
@pytest.mark.parametrize("clip_fps", [4, 5, 8])
def test_delivered_rate_is_the_wanted_rate_within_one_percent(fps, clip_fps):
    times = 7.3 + np.arange(600) / fps
    positions = np.linspace(0, 1, 50, endpoint=False)
    spans = [np.ptp(times[clip_by_fps(times, times[-1] + 1 / fps, 16, clip_fps, position)]) for position in positions]
    assert 15 / np.mean(spans) == pytest.approx(clip_fps, rel=0.01)
    assert max(abs(span - 15 / clip_fps) for span in spans) <= 1 / fps + 1e-6  # no clip is off by more than a frame


def test_rate_is_kept_where_the_rate_of_the_source_varies():
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.07, 500))
    seen = times[clip_by_fps(times, times[-1] + 0.04, 32, 5, 0.5)]
    assert np.abs(np.diff(seen) - 0.2).max() <= 0.07


def test_starts_cover_every_place_at_which_the_clip_fits():
    times = np.arange(100) / 10
    ids = np.array([clip_by_fps(times, 10.0, 4, 2, position) for position in np.linspace(0, 1, 1000, endpoint=False)])
    assert set(ids[:, 0]) == set(range(85)) and set(ids[:, -1]) == set(range(15, 100))
    assert np.bincount(ids[:, 0]) / 1000 == pytest.approx(1 / 85, rel=0.2)


def test_source_at_the_wanted_rate_gives_every_frame_once():
    times = 0.33 + np.arange(16) / 8
    assert clip_by_fps(times, times[-1] + 1 / 8, 16, 8, 0.5).tolist() == list(range(16))
    assert clip_whole(times, times[-1] + 1 / 8, 16, 0.5).tolist() == list(range(16))


def test_short_video_holds_its_last_frame():
    times = np.arange(4) / 8
    for position in (0.0, 0.5, 0.99):
        assert clip_by_fps(times, 0.5, 8, 8, position).tolist() == [0, 1, 2, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("position", [0.0, 0.5, 0.999])
def test_one_frame_is_enough(position):
    times = np.array([3.2])
    assert clip_by_fps(times, 3.24, 16, 4, position).tolist() == [0] * 16
    assert clip_whole(times, 3.24, 16, position).tolist() == [0] * 16


@pytest.mark.parametrize("phase", [0.0, 0.5, 0.999])
def test_whole_clip_takes_one_frame_of_each_segment(phase):
    times = np.arange(160) / 30
    ids = clip_whole(times, 160 / 30, 16, phase)
    assert (ids // 10).tolist() == list(range(16))


def test_a_clip_by_step_takes_every_nth_frame_from_every_start_that_fits():
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.07, 20))  # whatever the rate
    ids = np.array([clip_by_step(times, 4, 5, position) for position in np.linspace(0, 1, 500, endpoint=False)])
    assert (np.diff(ids) == 5).all() and set(ids[:, 0]) == set(range(5)) and ids.max() == 19
    assert np.bincount(ids[:, 0]) / 500 == pytest.approx(0.2, rel=0.05)


def test_keyframes_are_the_only_starts_and_each_that_fits_is_one():
    times = np.arange(100) / 10
    keyframes = np.array([0.0, 2.5, 5.0, 7.5, 9.5])
    positions = np.linspace(0, 1, 300, endpoint=False)
    by_time = [clip_by_fps(times, 10.0, 4, 2, position, keyframes_s=keyframes) for position in positions]
    by_step = [clip_by_step(times, 4, 5, position, keyframes_s=keyframes) for position in positions]
    assert {int(ids[0]) for ids in by_time} == {int(ids[0]) for ids in by_step} == {0, 25, 50, 75}
    assert all((np.diff(ids) == 5).all() for ids in by_time + by_step)
    assert clip_by_fps(times, 10.0, 64, 2, 0.9, keyframes_s=keyframes)[0] == 0  # fits nowhere: from the beginning
    assert clip_by_fps(times, 10.0, 4, 2, 0.9, keyframes_s=np.empty(0))[0] == 0


def test_a_short_video_starts_again_where_it_should_loop():
    times = 3.0 + np.arange(4) / 8
    assert clip_by_fps(times, 3.5, 10, 8, 0.7, "loop").tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert clip_by_step(times, 6, 2, 0.7, "loop").tolist() == [0, 2, 0, 2, 0, 2]
    assert clip_by_step(times, 6, 2, 0.7, "hold_last").tolist() == [0, 2, 3, 3, 3, 3]
    long = np.arange(100) / 8
    assert clip_by_fps(long, 12.5, 10, 8, 0.7, "loop").tolist() == clip_by_fps(long, 12.5, 10, 8, 0.7).tolist()
