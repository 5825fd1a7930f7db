"""Augmented passes, and clip indexes as data sets of a probe."""

import numpy as np
import pytest
import torch

from vjepa import config
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.plan_rows import Passes, Views
from vjepa.errors import UserError
from vjepa.probing.datasets import Request, open_dataset

DATA = config.Data(train="x", num_frames=4, crop_px=16, workers=0, clip_fps=8, crop_scale=(0.2, 0.6))


@pytest.fixture
def index(make_index):
    """10 short videos of two labels, in five scenes."""
    rows = [
        {"label": "ab"[i % 2], "group": "", "split": "train" if i < 7 else "val", "scene": f"s{i // 2}"}
        for i in range(10)
    ]
    return str(make_index(rows, num_frames=12, size=(48, 32)))


def read(source, ids, views, batch=4):
    batches = list(source.loader(np.asarray(ids), views, batch))
    return torch.cat([one.video for one in batches]), torch.cat([one.clip_ids for one in batches])


def test_passes_are_random_views_of_every_row_fixed_by_seed(index):
    source = open_dataset([index], DATA, Request()).source
    video, ids = read(source, range(10), Passes(3))
    assert video.shape == (30, 3, 4, 16, 16) and ids.tolist() == [i for i in range(10) for _ in range(3)]
    assert torch.equal(read(source, range(10), Passes(3), batch=7)[0], video)
    assert torch.equal(
        read(source, [4, 2], Passes(2))[0], video[[12, 13, 6, 7]]
    )  # whatever the rows and passes beside it
    assert not torch.equal(read(source, range(10), Passes(3, seed=1))[0], video)
    assert len({one.numpy().tobytes() for one in video}) > 15  # of one grey level each, so some are equal


def test_what_clips_depend_on_is_in_their_facts(index):
    def facts(ids=(0, 1), views=None, **data):
        return repr(
            open_dataset([index], DATA.model_copy(update=data), Request()).source.facts(np.array(ids), views or Views())
        )

    assert facts() == facts() == facts(workers=3, crop_scale=(0.5, 1.0))
    different = [
        facts(),
        facts(ids=(1, 0)),
        facts(views=Views(num_clips=2)),
        facts(num_frames=8),
        facts(crop_px=24),
        facts(clip_fps=4.0),
    ]
    different += [facts(views=Passes(2)), facts(views=Passes(2), crop_scale=(0.5, 1.0)), facts(views=Passes(2, seed=1))]
    assert len(set(different)) == len(different)


def test_another_file_in_the_place_of_a_clip_is_another_clip(index):
    before = open_dataset([index], DATA, Request())
    rows = list(ClipIndex.open(index).records())
    rows[3]["content_hash"] = "0" * 64
    write_index(index, rows)
    after = open_dataset([index], DATA, Request())
    assert before.data_hash("label") != after.data_hash("label")
    assert before.source.facts(np.array([0, 1]), Views()) == after.source.facts(np.array([0, 1]), Views())


def test_folds_take_every_row_once_and_keep_scenes_whole(index):
    dataset = open_dataset([index], DATA, Request(fold="scene"))
    assert [trial.name for trial in dataset.trials] == [f"s{i}" for i in range(5)] and dataset.groups is None
    assert sorted(np.concatenate([trial.test for trial in dataset.trials])) == list(range(10))
    scene = ClipIndex.open(index).column("scene")
    for trial in dataset.trials:
        parts = [{scene[row] for row in part} for part in (trial.train, trial.selection, trial.test)]
        assert sum(map(len, parts)) == 5 and all(parts)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"fold": "label"}, "3 or more values in label"),
        ({"fold": "taste"}, "no column 'taste'"),
        ({"fold": "scene", "where": {"val": "scene=s0"}}, "--val: --fold scene takes all rows"),
        ({"where": {"train": "scene=s9"}}, "matches scene"),
    ],
)
def test_what_cannot_be_is_one_line(index, request_, message):
    with pytest.raises(UserError, match=message) as error:
        open_dataset([index], DATA, Request(**request_))
    assert "\n" not in str(error.value)


@pytest.mark.fast
def test_images_have_no_augmented_passes_and_their_own_splits():
    dataset = open_dataset(["digits"], DATA, Request())
    assert [len(part) for part in (dataset.trials[0].train, dataset.trials[0].selection, dataset.trials[0].test)] == [
        1078,
        360,
        359,
    ]
    video, ids = read(dataset.source, range(3), Views(num_crops=2))
    assert video.shape == (6, 3, 1, 16, 16) and ids.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(UserError, match="--train_passes"):
        dataset.source.loader(np.arange(3), Passes(2), 4)
    with pytest.raises(UserError, match="--label: is for clip indexes"):
        open_dataset(["digits"], DATA, Request(labels=("taste",)))
    assert dataset.source.uri(5) == "digits image 5"
