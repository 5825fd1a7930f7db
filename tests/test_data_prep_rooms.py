"""Two rooms: the dot goes where actions lead it, never through the wall, and films carry what was done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.first_run.video_set import prepare
from data_prep.first_run.worlds.rooms import Rooms
from vjepa.data.clip_index import ClipIndex

ROOMS = Rooms()


def free_places(num: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [ROOMS.place(rng) for _ in range(num)]


def covered(frame: np.ndarray) -> np.ndarray:
    """Find the centre of the dot, x and y, by its colour."""
    red = np.clip(frame[..., 0].astype(float) - frame[..., 2], 0, None)
    x, y = red.sum(0) @ np.arange(red.shape[1]), red.sum(1) @ np.arange(red.shape[0])
    return np.array([x, y]) / red.sum()


@pytest.mark.fast
def test_a_dot_is_drawn_where_it_is() -> None:
    places = np.stack(free_places(20))
    for frame, place in zip(ROOMS.draw(places), places, strict=True):
        np.testing.assert_allclose(covered(frame), place, atol=0.3)


@pytest.mark.fast
def test_an_action_is_a_displacement_and_walls_stop_it() -> None:
    """Against a loop in steps of a hundredth, in which a dot stays out of the wall and its borders, axis by axis."""
    rng = np.random.default_rng(1)
    places, actions = np.stack(free_places(400)), rng.uniform(-2.4, 2.4, (400, 2))
    moved = ROOMS.move(places, actions)
    free = ((places + actions > 5) & (places + actions < 58)).all(1) & (abs(places[:, 0] + actions[:, 0] - 31.5) > 5)
    np.testing.assert_allclose(moved[free], (places + actions)[free])
    assert free.sum() > 200
    assert (moved >= 5).all() and (moved <= 58).all()
    in_wall = (abs(moved[:, 0] - 31.5) < 5 - 1e-9) & (abs(moved[:, 1] - 20) > 6 + 1e-9)
    assert not in_wall.any()


@pytest.mark.fast
def test_no_walk_goes_through_the_wall() -> None:
    rng = np.random.default_rng(2)
    place = np.repeat(np.array([[20.0, 45.0]]), 500, axis=0)
    for _ in range(200):
        before, place = place, ROOMS.move(place, rng.uniform(-2.4, 2.4, place.shape))
        crossing = (before[:, 0] - 31.5) * (place[:, 0] - 31.5) < 0
        assert (abs(place[crossing, 1] - 20) <= 6 + 1e-9).all()
    assert 0.01 < (place[:, 0] > 31.5).mean() < 0.6


@pytest.mark.fast
def test_the_way_leads_to_the_goal_and_is_as_long_as_it_says() -> None:
    places = free_places(120)
    for start, goal in zip(places[:60], places[60:], strict=True):
        place, gone = start, 0.0
        for _ in range(80):
            before, place = place, ROOMS.move(place, ROOMS.way(place, goal))
            gone += float(np.linalg.norm(place - before))
        assert np.linalg.norm(place - goal) < 1
        assert np.linalg.norm(goal - start) <= ROOMS.path_length(start, goal) + 1e-9 <= gone + 2
        assert ROOMS.path_length(start, goal) == pytest.approx(ROOMS.path_length(goal, start), abs=0.5)


def test_the_index_holds_actions_and_places_of_each_frame(tmp_path: Path) -> None:
    world = replace(Rooms(), num_films=2, film_frames=30, train_clips=2, selection_clips=2, val_clips=2)
    prepare(tmp_path / "rooms" / "index.parquet", world, progress=False)
    index = ClipIndex.open(tmp_path / "rooms" / "index.parquet")
    assert index.tracks.action is not None and index.tracks.action.names == ("right", "down")
    for row, video in zip(range(len(index)), world.videos(), strict=True):
        tracks = index.row(row).tracks
        assert tracks is not None and tracks.action is not None and tracks.state is not None
        actions, places = world.tracks(video)
        np.testing.assert_array_equal(tracks.action, actions)
        np.testing.assert_array_equal(tracks.state, places)
        np.testing.assert_allclose(world.move(places[:-1], actions[:-1]), places[1:], atol=1e-4)
        frames, _ = world.render(video)
        np.testing.assert_allclose(covered(frames[7]), places[7], atol=0.3)
        with av.open(index.uri(row)) as film:
            stored = np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
        np.testing.assert_allclose(stored.astype(int), frames, atol=3)  # a plan sees what is drawn: nothing is blurred
