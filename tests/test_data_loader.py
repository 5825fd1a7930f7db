"""Batches: a function of (seed, step) alone; bad files replaced or left out, by name."""

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import level, scanned
from hang import Timed
from PIL import Image

from vjepa import config
from vjepa.config import Data
from vjepa.counter_rng import generator
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.decode import read_frames
from vjepa.data.loader import ClipLoader, eval_loader, plan_loader, train_loader
from vjepa.data.plan_rows import RowPlan, Views
from vjepa.data.plan_training import TrainPlan
from vjepa.data.reader import Reader
from vjepa.data.sources import Part, TrainSource, open_sources
from vjepa.data.time_order import in_time
from vjepa.errors import UserError


@pytest.fixture
def index(make_video, tmp_path):
    paths = [make_video(f"clips/{i}.mp4", 16, size=(48, 40), mark=i % 2 == 1) for i in range(5)]
    return indexed(tmp_path, paths)


def indexed(tmp_path, paths):
    write_index(tmp_path / "x.parquet", [{"uri": str(path), "label_id": -1} | scanned(path) for path in paths])
    return ClipIndex.open(tmp_path / "x.parquet")


def data(**changes):
    return Data(
        **{
            "train": {"index": "x.parquet"},
            "num_frames": 8,
            "crop_px": 16,
            "global_batch": 4,
            "workers": 0,
            "flip": True,
        }
        | changes
    )


def sources(index, rows=None, **changes):
    """One source, data.train, with all or some rows of the index."""
    return [
        TrainSource(
            "data.train", data(**changes), (Part("data.train", index, index.select({}) if rows is None else rows),)
        )
    ]


def train_clips(index, rows=None, seed=0, **changes):
    return Reader(TrainPlan(sources(index, rows, **changes), data(**changes), seed))


def same(one, other):
    return (
        one.source == other.source
        and torch.equal(one.video, other.video)
        and torch.equal(one.clip_ids, other.clip_ids)
        and one.failures == other.failures
    )


def break_files(index, *numbers):
    for i in numbers:
        Path(index.row(i).uri).write_bytes(b"broken")


def test_batches_do_not_depend_on_workers_or_on_where_a_run_starts(index):
    settings = [data(workers=workers, prefetch=prefetch) for workers, prefetch in ((0, 3), (1, 3), (2, 3), (2, 0))]
    runs = [list(train_loader(sources(index), given, 7, range(6), pin_memory=False)) for given in settings]
    for run in runs:
        assert len(run) == 6 and all(same(*pair) for pair in zip(runs[0], run, strict=True))
    resumed = list(train_loader(sources(index), data(), 7, range(4, 6), pin_memory=False))
    assert all(same(*pair) for pair in zip(runs[0][4:], resumed, strict=True))
    other = next(iter(train_loader(sources(index), data(), 8, range(1), pin_memory=False)))
    assert not same(runs[0][0], other)


@pytest.mark.parametrize("prefetch", [0, 1])
def test_without_prefetch_processes_rest_while_the_caller_has_a_batch(index, tmp_path, prefetch):
    log = tmp_path / "log"
    reader = Reader(TrainPlan(sources(index), data(), 0), Timed(log))
    busy = []
    for _ in ClipLoader(reader, range(5), data(workers=2, prefetch=prefetch)):
        begin = time.monotonic()
        time.sleep(0.1)
        busy.append((begin, time.monotonic()))
    made = [tuple(map(float, line.split())) for line in log.read_text().splitlines()]
    together = [max(begin, start) < min(end, stop) for begin, end in made for start, stop in busy]
    assert len(made) == 20 and any(together) == bool(prefetch)


@pytest.mark.fast
def test_a_batch_is_uint8_and_every_row_comes_once_per_epoch(index):
    batches = list(train_loader(sources(index), data(), 0, range(10), pin_memory=False))
    assert all(
        batch.video.dtype == torch.uint8 and batch.video.shape == (4, 3, 8, 16, 16) and batch.video.is_contiguous()
        for batch in batches
    )
    ids = torch.cat([batch.clip_ids for batch in batches])
    assert ids.dtype == torch.int64 and (ids.bincount() == 8).all()
    assert all((ids[k : k + 5].sort().values == torch.arange(5)).all() for k in range(0, 40, 5))


@pytest.mark.fast
def test_training_draws_other_frames_crops_and_flips_each_time(index):
    dataset = train_clips(index, np.array([1]), global_batch=16, num_frames=2, clip_fps=8.0)
    assert len(torch.unique(dataset[0].video.flatten(1), dim=0)) == 16
    left, right = dataset[0].video[..., :8].float().mean(), dataset[0].video[..., 8:].float().mean()
    assert abs(left - right) < 30  # the white quarter is left in half of the clips


@pytest.mark.fast
def test_a_bad_row_is_replaced_deterministically_and_named(index):
    break_files(index, 2)
    dataset = train_clips(index, global_batch=10)
    batch = dataset[3]
    assert same(batch, dataset[3]) and 2 not in batch.clip_ids and batch.video.shape[0] == 10
    assert {clip_id for clip_id, _ in batch.failures} == {2} and len(batch.failures) >= 2
    assert all(reason for _, reason in batch.failures)


@pytest.mark.fast
def test_the_search_for_a_replacement_is_bounded_and_names_the_files(index):
    break_files(index, *range(5))
    with pytest.raises(UserError, match=r"8 clips in turn .*clips/\d\.mp4"):
        train_clips(index)[0]


def test_the_error_of_a_worker_is_the_one_line(index):
    break_files(index, *range(5))
    message = ""
    try:
        list(train_loader(sources(index), data(workers=1), 0, range(2), pin_memory=False))
    except UserError as error:
        message = str(error)
    assert message.startswith("8 clips in turn") and "\n" not in message


@pytest.mark.fast
def test_evaluation_takes_every_row_once_in_order_from_the_middle(index):
    rows = np.array([4, 0, 2])
    batches = list(eval_loader(index, rows, data(clip_fps=8.0), batch=2, workers=0))
    assert [batch.clip_ids.tolist() for batch in batches] == [[4, 0], [2]]
    assert all(
        same(*pair)
        for pair in zip(batches, eval_loader(index, rows, data(clip_fps=8.0), batch=2, workers=0), strict=True)
    )
    seen = batches[0].video[0].float().mean((0, 2, 3))
    assert (seen - torch.tensor([level(i) for i in range(4, 12)])).abs().max() < 3


def decode_shuffled(row, ids, size):
    return read_frames(row, generator(0, "shuffled_frames", row.clip_id).permutation(ids), size)


@pytest.mark.fast
def test_another_order_of_decoded_frames_is_what_decoding_in_that_order_gives(index):
    plan = RowPlan(index, index.select({}), data(), 8, Views())
    (plain,), (decoded,) = plan_loader(plan, plan.data), plan_loader(plan, plan.data, decode_shuffled)
    assert torch.equal(in_time(plain.video, plain.clip_ids, "shuffled"), decoded.video)
    assert torch.equal(in_time(plain.video[2:4], plain.clip_ids[2:4], "shuffled"), decoded.video[2:4])
    assert not any(torch.equal(*pair) for pair in zip(plain.video, decoded.video, strict=True))
    assert torch.equal(in_time(plain.video, plain.clip_ids, "reversed"), plain.video.flip(2))
    assert torch.equal(in_time(plain.video, plain.clip_ids, "forward"), plain.video)


@pytest.mark.fast
def test_evaluation_leaves_bad_rows_out_and_names_them(index):
    break_files(index, 0, 1, 3)
    first, second, third = eval_loader(index, np.arange(5), data(), batch=2, workers=0)
    assert (
        first.video.shape == (0, 3, 8, 16, 16)
        and first.clip_ids.shape == (0,)
        and [i for i, _ in first.failures] == [0, 1]
    )
    assert second.clip_ids.tolist() == [2] and [i for i, _ in second.failures] == [3]
    assert third.clip_ids.tolist() == [4] and third.failures == ()


@pytest.mark.fast
@pytest.mark.parametrize(("num_frames", "clip_fps"), [(1, None), (1, 4.0), (8, None), (8, 4.0)])
def test_images_and_videos_mix_at_any_number_of_frames(make_video, tmp_path, num_frames, clip_fps):
    path = make_video("a.mp4", 16)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    index = indexed(tmp_path, [path, tmp_path / "b.png"])
    (batch,) = eval_loader(index, np.arange(2), data(num_frames=num_frames, clip_fps=clip_fps), 2, 0)
    assert batch.video.shape == (2, 3, num_frames, 16, 16)
    still = batch.video[1]
    assert (still == still[:, :1]).all() and still.float().std() > 1


@pytest.mark.fast
def test_a_dataset_is_cheap_to_send_to_a_worker(index):
    assert len(pickle.dumps(train_clips(index))) < 4000


@pytest.fixture
def mixed(index, tmp_path):
    """Settings of a mix of clips with stills of the same videos and images of their own index."""
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(
            tmp_path / f"{i}.png"
        )
    write_index(
        tmp_path / "images.parquet",
        [{"uri": f"{i}.png", "label_id": -1} | scanned(tmp_path / f"{i}.png") for i in range(3)],
    )
    stills = {"index": str(index.path), "ratio": 0.25, "num_frames": 1}
    images = {"index": str(tmp_path / "images.parquet"), "ratio": 0.5, "num_frames": 1, "global_batch": 6}
    return data(train={"index": str(index.path)}, mix=[stills, images])


def test_every_batch_of_a_mix_is_of_one_source_whatever_the_workers(mixed):
    runs = [
        list(
            train_loader(
                open_sources(mixed), mixed.model_copy(update={"workers": workers}), 1, range(12), pin_memory=False
            )
        )
        for workers in (0, 2)
    ]
    assert len(runs[0]) == 12 and all(same(*pair) for pair in zip(*runs, strict=True))
    shapes = [(4, 3, 8, 16, 16), (4, 3, 1, 16, 16), (6, 3, 1, 16, 16)]
    assert all(batch.video.shape == shapes[batch.source] for batch in runs[0])
    assert [sum(batch.source == source for batch in runs[0]) for source in range(3)] == [3, 3, 6]


@pytest.mark.fast
def test_each_source_of_a_mix_takes_every_row_once_per_epoch_of_its_own(mixed):
    dataset = Reader(TrainPlan(open_sources(mixed), mixed, 1))
    batches = [dataset[step] for step in range(40)]
    for source, num_rows in enumerate([5, 5, 3]):
        ids = torch.cat([batch.clip_ids for batch in batches if batch.source == source])
        assert len(ids) >= 4 * num_rows
        for epoch in ids[: len(ids) // num_rows * num_rows].view(-1, num_rows):
            assert sorted(epoch.tolist()) == list(range(num_rows))


@pytest.mark.fast
def test_a_mix_leaves_the_samples_of_train_alone_and_shares_no_randomness(mixed):
    plain = mixed.model_copy(update={"mix": []})
    twin = plain.model_copy(update={"mix": [config.MixedSource(index=plain.train.index, ratio=0.5)]})
    alone, dataset = (Reader(TrainPlan(open_sources(one), one, 1)) for one in (plain, twin))
    batches = [dataset[step] for step in range(8)]
    train, further = ([batch for batch in batches if batch.source == source] for source in (0, 1))
    assert len(train) == len(further) == 4
    assert all(same(batch, alone[number]) for number, batch in enumerate(train))
    assert not any(torch.equal(one.video, other.video) for one, other in zip(train, further, strict=True))


@pytest.mark.fast
def test_sources_with_one_index_open_it_once_and_a_missing_one_is_named(mixed, tmp_path):
    train, stills, images = open_sources(mixed)
    assert train.parts[0].index is stills.parts[0].index is not images.parts[0].index
    assert [source.name for source in (train, stills, images)] == ["data.train", "data.mix.0", "data.mix.1"]
    missing = config.MixedSource(index=str(tmp_path / "missing.parquet"), ratio=0.5)
    with pytest.raises(UserError, match=r"missing\.parquet: no such clip index"):
        open_sources(mixed.model_copy(update={"mix": [missing]}))
