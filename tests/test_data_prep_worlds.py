"""The small worlds: what a clip is labelled with is what its pixels show."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data_prep.first_run.video_set import prepare
from data_prep.first_run.worlds.ball_game import WAYS
from data_prep.first_run.worlds.bricks import Bricks
from data_prep.first_run.worlds.camera import PANS, Camera
from data_prep.first_run.worlds.paddles import Paddles
from data_prep.first_run.worlds.rooms import Rooms
from data_prep.first_run.worlds.shapes import Shapes
from data_prep.first_run.worlds.world import World
from vjepa import config
from vjepa.data.clip_index import ClipIndex
from vjepa.errors import UserError
from vjepa.probing.splits import read_splits

WORLDS: list[World] = [Paddles(), Bricks(), Shapes(), Camera(), Rooms()]
NAMES = [world.name for world in WORLDS]
each_world = pytest.mark.parametrize("world", WORLDS, ids=NAMES)


@cache
def clips(name: str, num: int) -> list[tuple[np.ndarray, dict[str, str]]]:
    """Draw clips of `val`, far apart, so that they hold every value of every label."""
    world = WORLDS[NAMES.index(name)]
    found = [video for video in world.videos() if video.split == "val"]
    return [world.render(found[i]) for i in np.linspace(0, len(found) - 1, num).astype(int)]


def first_shape(cover: np.ndarray) -> np.ndarray:
    """Keep of what is covered the shape that starts highest."""
    parts = ndimage.label(cover)[0]
    sizes = np.bincount(parts.ravel())
    return parts == next(part for part in parts.ravel() if part and sizes[part] > 20)


def best_turn(before: np.ndarray, after: np.ndarray) -> str:
    """Tell how far a picture of one shape has to be turned around its middle to cover the next: try each degree."""
    rows, columns = np.mgrid[: len(before), : len(before)]
    y, x = rows - (rows * after).sum() / after.sum(), columns - (columns * after).sum() / after.sum()
    size = np.sqrt(before.sum() / after.sum())
    scores = {}
    for degrees in range(-14, 15):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        # a counter-clockwise turn, with y downwards
        sources = [
            np.rint((rows * before).sum() / before.sum() + size * (sin * x + cos * y)),
            np.rint((columns * before).sum() / before.sum() + size * (cos * x - sin * y)),
        ]
        row, column = (np.clip(source, 0, len(before) - 1).astype(int) for source in sources)
        scores[degrees] = (before[row, column] == after).mean()
    best = max(scores, key=lambda degrees: scores[degrees])
    return "none" if abs(best) < 4 else "counter-clockwise" if best > 0 else "clockwise"


def turned(angle: float, other: float) -> float:
    """Measure between two directions, in degrees."""
    return float(abs((angle - other + 180) % 360 - 180))


@pytest.mark.fast
@each_world
def test_a_video_is_a_function_of_its_number(world: World) -> None:
    film, again, other = (world.film(number, 9) for number in (3, 3, 4))
    np.testing.assert_array_equal(film, again)
    assert film.shape == (9, world.side_px, world.side_px, 3) and film.dtype == np.uint8 and (film != other).any()
    clip = next(video for video in world.videos() if video.kind == "clip")
    (frames, labels), (frames_again, labels_again) = world.render(clip), world.render(clip)
    np.testing.assert_array_equal(frames, frames_again)
    assert labels == labels_again and len(frames) == world.clip_frames


@pytest.mark.fast
@each_world
def test_splits_share_no_random_numbers(world: World) -> None:
    """Every video has a number of its own, which is the counter of its stream."""
    videos = world.videos()
    assert [video.number for video in videos] == list(range(len(videos)))
    assert {(video.kind, video.split) for video in videos} == {
        ("film", "train"),
        ("clip", "train"),
        ("clip", "selection"),
        ("clip", "val"),
    }
    assert len({world.rng(number).integers(1 << 62) for number in (*range(200), 1 << 32)}) == 201
    assert len({world.rng(1).integers(1 << 62) for world in WORLDS}) == len(WORLDS)


@pytest.mark.fast
@each_world
def test_what_happens_is_balanced_and_tells_of_nothing_else(world: World) -> None:
    """In a split, every combination of the labels of what happens is as frequent as any other."""
    size = np.prod([len(values) for values in world.wanted.values()])
    for split in ("train", "selection", "val"):
        found = [video for video in world.videos() if (video.kind, video.split) == ("clip", split)]
        counts = Counter(tuple(world.wanted_of(video).items()) for video in found)
        assert len(counts) == size and len(set(counts.values())) == 1, split


@pytest.mark.parametrize("name", ["paddles", "bricks"])
def test_the_ball_flies_and_is_where_the_labels_say(name: str) -> None:
    """The centroid of the white pixels moves in the labelled direction, at the labelled speed."""
    world = WORLDS[NAMES.index(name)]
    assert isinstance(world, Paddles | Bricks)
    events = Counter()
    for frames, labels in clips(name, 48):
        cover = np.maximum(frames.min(axis=-1) / 255 - 0.5, 0)  # neither paddles, bricks nor background
        places = np.stack(
            [[(c.sum(0) @ np.arange(c.shape[1])), c.sum(1) @ np.arange(c.shape[0])] / c.sum() for c in cover]
        )
        right, down = places[4] - places[3]
        assert turned(np.degrees(np.arctan2(-down, right)), 45 * WAYS.index(labels["way"]) + 22.5) < 22.5 + 14
        assert labels["speed"] == (
            "fast" if np.hypot(right, down) > (1.6 * world.slow_px + world.fast_px) / 2 else "slow"
        )
        for place, label in zip(places[4], (labels["ball_x"], labels["ball_y"]), strict=True):
            assert abs(place * 5 / world.side_px - (int(label) + 0.5)) < 0.5 + 0.5 * 5 / world.side_px
        steps = np.diff(places, axis=0)
        bent = any(
            turned(*np.degrees(np.arctan2(step[:, 1], step[:, 0]))) > 15
            for step in np.stack([steps[:-1], steps[1:]], 1)
        )
        assert bent == (labels["event"] != "none"), labels
        events[labels["event"]] += 1
    assert len(events) == 3 and min(events.values()) >= 8


@pytest.mark.parametrize(
    ("name", "label", "colour", "part", "axis"),
    [
        ("paddles", "left", (0.95, 0.35, 0.25), np.s_[:, 12:15], 0),
        ("paddles", "right", (0.3, 0.9, 0.4), np.s_[:, 65:68], 0),
        ("bricks", "player", (0.4, 0.8, 1.0), np.s_[58:61], 1),
    ],
)
def test_a_bar_is_where_its_label_says(name: str, label: str, colour: tuple, part: tuple, axis: int) -> None:
    """The centroid of its colour on its rail, in the middle frame, is in the labelled cell."""
    seen = set()
    for frames, labels in clips(name, 24):
        near = np.abs(frames[len(frames) // 2] / 255 - colour).max(axis=-1)[part] < 0.1
        length = frames.shape[1]
        place = near.sum(axis=1 - axis) @ np.arange(length) / near.sum()
        assert abs(place * 5 / length - (int(labels[label]) + 0.5)) < 0.5 + 1.5 * 5 / length, labels
        seen.add(labels[label])
    assert len(seen) >= 3


def test_a_brick_vanishes_where_one_was_hit() -> None:
    """What is coloured at first is dark in the end, in clips with that event alone; the ball would leave it bright."""
    for frames, labels in clips("bricks", 48):
        first, last = frames[0, 8:24].astype(int), frames[-1, 8:24].astype(int)
        gone = (first.max(-1) - first.min(-1) > 100) & (last.max(-1) < 90)
        assert (gone.sum() > 4) == (labels["event"] == "brick"), labels


@pytest.mark.parametrize("turn", ["clockwise", "counter-clockwise", "none"])
def test_shapes_turn_and_grow_as_labelled(turn: str) -> None:
    """The area of the shapes follows `growth`, and turned by `turn` a shape covers itself in the next frame."""
    world, num_turned = Shapes(), Counter[bool]()
    videos = [v for v in world.videos() if v.split == "val" and world.wanted_of(v)["turn"] == turn][:30]
    for video in videos:
        frames, labels = world.render(video)
        grey = frames.astype(float).mean(-1)
        cover = abs(grey - np.median(grey[:, :2], axis=(1, 2))[:, None, None]) > 55
        growth = np.log(cover[-1].sum() / cover[0].sum()) / 2 / 7
        wanted = {"grows": 1, "shrinks": -1, "stays": 0}[labels["growth"]]
        assert np.sign(growth) * (abs(growth) > 0.015) == wanted, (labels, growth)
        num_turned[best_turn(first_shape(cover[3]), first_shape(cover[4])) == labels["turn"]] += 1
    assert num_turned[True] >= 0.8 * num_turned.total()


def test_the_camera_moves_as_labelled() -> None:
    """The shift of the middle of the picture that explains the next frames best is against `pan`."""
    right = total = 0
    for frames, labels in clips("camera", 60):
        if labels["zoom"] != "none" or labels["texture"] == "stripes":  # along stripes little tells of a pan
            continue
        grey = frames.astype(float).mean(-1)
        before, after = grey[3], grey[5]
        shifts = [(dy, dx) for dy in range(-8, 9) for dx in range(-8, 9)]
        errors = [
            ((np.roll(after, (dy, dx), (0, 1)) - before)[8:-8, 8:-8] ** 2).mean() for dy, dx in shifts
        ]  # the camera went to (dx, dy)
        dy, dx = shifts[int(np.argmin(errors))]
        still = np.hypot(dx, dy) < 1.5
        near = turned(np.degrees(np.arctan2(-dy, dx)), 45 * PANS.index(labels["pan"])) < 30
        right += still if labels["pan"] == "still" else near and not still
        total += 1
    assert total >= 10 and right == total


@each_world
def test_no_brightness_tells_what_happens(world: World) -> None:
    """The mean picture of the middle frame is about the same for every value of a label of what happens."""
    found = clips(world.name, 120)
    middle = np.stack([frames[4].mean() for frames, _ in found])
    for label in world.wanted:
        if label in ("meets", "shape", "texture", "near"):
            continue
        groups = [
            [m for m, (_, labels) in zip(middle, found, strict=True) if labels[label] == v] for v in world.wanted[label]
        ]
        spread = max(np.mean(group) for group in groups) - min(np.mean(group) for group in groups)
        assert spread < 4 * middle.std() / np.sqrt(min(map(len, groups))), label


@pytest.mark.parametrize("kind", [Paddles, Camera])
def test_the_index_holds_films_and_clips(tmp_path, kind) -> None:
    """Films are without a label, probes learn from the labelled clips alone, and the files are verified afterwards."""
    world = replace(kind(), num_films=2, film_frames=40, train_clips=20, selection_clips=4, val_clips=6)
    path = tmp_path / "world" / "index.parquet"
    prepare(path, world, progress=False)
    index = ClipIndex.open(path)
    films = index.select({"kind": "film"})
    assert len(index) == 32 and len(films) == 2 and {index.column("split")[row] for row in films} == {"train"}
    labels = list(world.render(world.videos()[-1])[1])
    for label in labels:
        values = index.column(label)
        assert all((values[row] is None) == (row in films) for row in range(len(index))), label
    assert [int(index.column("num_frames")[row]) for row in (films[0], index.select({"kind": "clip"})[0])] == [40, 8]
    sources = {
        "train": config.Source(index=str(path), where={"kind": "film"}),
        "labelled": config.Source(index=str(path), where={"kind": "clip", "split": "train"}),
        "selection": config.Source(index=str(path), where={"split": "selection"}),
        "val": config.Source(index=str(path), where={"split": "val"}),
    }
    splits = read_splits(config.Data(**sources), labels)
    assert [len(part.rows) for part in (splits.train, splits.selection, splits.val)] == [20, 4, 6]
    prepare(path, world, progress=False)
    (tmp_path / "world" / "videos" / "00003.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"00003.mp4: is not the file that was written"):
        prepare(path, world, progress=False)
    with pytest.raises(UserError, match="holds other data than"):
        prepare(path, replace(world, seed=2), progress=False)


@pytest.mark.parametrize("world", [Paddles(), Bricks(), Shapes()], ids=lambda world: world.name)
def test_marks_lie_where_things_are_drawn(world: World) -> None:
    """Without its marked pixels a clip is the ground, which stands still; each kind of thing is marked somewhere."""
    found = [video for video in world.videos() if video.kind == "clip"][:: len(world.videos()) // 12]
    kinds = set()
    for video in found:
        (frames, _), marks = world.render(video), world.draw_marks(video)
        assert marks is not None and marks.dtype == np.uint8 and marks.shape == frames.shape[:3]
        kinds |= {*np.unique(marks).tolist()}
        near = np.stack([ndimage.binary_dilation(frame > 0, np.ones((5, 5))) for frame in marks])  # corners fade out
        ground = np.ma.array(frames, mask=np.repeat(near[..., None], 3, axis=-1))
        assert float(ground.std(axis=0).max()) < 2, world.name
        inside = abs(frames.astype(int) - np.median(frames[marks == 0], axis=0)).max(-1)
        assert (inside[marks > 0] > 20).mean() > 0.9
    assert kinds >= {0, 1} and kinds <= set(range(1 + len(world.things)))
    assert world.draw_marks(world.videos()[0]) is None  # a film


def test_marks_are_files_that_the_index_names(tmp_path) -> None:
    world = replace(Bricks(), num_films=1, film_frames=24, train_clips=2, selection_clips=1, val_clips=1)
    path = tmp_path / "world" / "index.parquet"
    prepare(path, world, progress=False)
    index = ClipIndex.open(path)
    named = index.column("things")
    assert [name is None for name in named] == [True, False, False, False, False]
    for row, video in enumerate(world.videos()):
        if named[row] is not None:
            with Image.open(path.parent / named[row]) as picture:
                assert picture.text["things"] == "brick|bar|ball"
                assert (np.asarray(picture).reshape(8, 64, 64) == world.draw_marks(video)).all()
    (path.parent / named[1]).write_bytes(b"x")
    with pytest.raises(UserError, match=r"things/00001.png: is not the file that was written"):
        prepare(path, world, progress=False)
