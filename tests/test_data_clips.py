"""Which clips are in a batch: shares of ranks, mixing within batches, several clips of a video, views of evaluation."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import level, scanned
from pydantic import ValidationError

from vjepa.config import Data
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.decode import read_frames
from vjepa.data.frame_times import frame_ids
from vjepa.data.order import num_steps, source_of_step
from vjepa.data.plan_rows import RowPlan, Views
from vjepa.data.plan_training import TrainPlan
from vjepa.data.reader import Reader
from vjepa.data.sources import open_sources
from vjepa.errors import UserError


@pytest.fixture
def two(make_video, tmp_path):
    """Paths of two indices: 5 videos, and 3 others."""
    paths = []
    for name, count in (("one", 5), ("two", 3)):
        rows = [
            {"uri": f"{name}/{i}.mp4", "label_id": -1} | scanned(make_video(f"{name}/{i}.mp4", 24, mark=True))
            for i in range(count)
        ]
        write_index(tmp_path / f"{name}.parquet", rows)
        paths.append(str(tmp_path / f"{name}.parquet"))
    return paths


def settings(train, **changes):
    return Data(
        **{"train": train, "num_frames": 4, "crop_px": 16, "global_batch": 8, "workers": 0, "clip_fps": 8.0} | changes
    )


def clips_of(data, **ranks):
    return Reader(TrainPlan(open_sources(data), data, 3, **ranks))


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_the_order_of_the_whole_run_is_the_same_for_any_number_of_ranks(two, num_ranks):
    data = settings(two[0], mix=[{"index": two[1], "ratio": 0.3, "per": "clip"}])
    whole, shares = clips_of(data), [clips_of(data, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    for step in range(3):
        batches = [share[step] for share in shares]
        assert torch.equal(torch.cat([batch.video for batch in batches]), whole[step].video)
        assert torch.equal(torch.cat([batch.clip_ids for batch in batches]), whole[step].clip_ids)


@pytest.mark.fast
def test_a_batch_that_ranks_cannot_share_is_refused(two):
    with pytest.raises(UserError, match=r"data\.train: 8 videos in a batch cannot be shared by 3 ranks"):
        clips_of(settings(two[0]), num_ranks=3)


def test_weights_hold_within_one_percent_and_no_source_gives_a_row_twice_in_an_epoch(two):
    shares = [Fraction("0.335"), Fraction("0.1")]
    drawn = [source_of_step(7, i, shares) for i in range(20_000)]
    counts = np.bincount([source for source, _ in drawn])
    assert counts / 20_000 == pytest.approx([0.565, 0.335, 0.1], rel=0.01) and counts.tolist() == num_steps(
        7, 20_000, shares
    )
    for source in range(3):
        assert [n for other, n in drawn if other == source] == list(range(counts[source]))


def test_sources_mixed_by_clip_stand_in_every_batch_and_take_every_row_once_per_epoch(two):
    data = settings(two[0], mix=[{"index": two[1], "ratio": 0.375, "per": "clip"}])
    sources = open_sources(data)
    assert [part.name for part in sources[0].parts] == ["data.train", "data.mix.0"] and sources[0].num_rows == 8
    dataset = clips_of(data)
    ids = torch.cat([dataset[step].clip_ids for step in range(10)])
    assert [(ids < 5).sum(), (ids >= 5).sum()] == [50, 30]
    assert (ids.bincount() == 10).all()
    assert sources[0].uri(6).endswith("two/1.mp4") and sources[0].uri(4).endswith("one/4.mp4")
    assert all(4 <= (dataset[step].clip_ids >= 5).sum() + 2 <= 7 for step in range(10))


@pytest.mark.fast
def test_a_source_mixed_by_clip_is_read_as_the_batches_that_it_stands_in(two):
    with pytest.raises(ValidationError, match="num_frames: clips that share the batches"):
        settings(two[0], mix=[{"index": two[1], "ratio": 0.3, "per": "clip", "num_frames": 1}])
    with pytest.raises(ValidationError, match="no clip in its batches"):
        settings(two[0], mix=[{"index": two[1], "ratio": 0.5, "per": "clip"}] * 2)


@pytest.mark.fast
def test_several_clips_of_a_video_and_several_crops_of_a_decode_lie_side_by_side(two):
    data = settings(two[0], clips_per_video=2, clips_per_decode=2, crop_scale=(0.2, 0.4))
    dataset, decoded = clips_of(data), []
    dataset.read = lambda row, ids, size: (
        decoded.append((row.clip_id, *ids)),
        read_frames(row, ids, size),
    )[1]
    batches = [dataset[step] for step in range(5)]
    ids = torch.cat([batch.clip_ids for batch in batches]).view(-1, 4)
    assert (ids == ids[:, :1]).all() and (ids[:5, 0].sort().values == torch.arange(5)).all()
    assert len(decoded) == 20  # for 40 clips
    for first, second, third, _ in torch.cat([batch.video for batch in batches]).view(10, 4, 3, 4, 16, 16):
        assert not torch.equal(first, second) and not torch.equal(first, third)
        darkest = [clip[0].flatten(1).min(1).values.int() for clip in (first, second)]
        assert (
            (darkest[0] - darkest[1]).abs().max() <= 3 or (first == 255).all() or (second == 255).all()
        )  # the same frames, other places
    with pytest.raises(ValidationError, match="8 clips are no multiple of clips_per_video"):
        settings(two[0], clips_per_video=3)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "rate"), [({"clip_fps": 4.0}, 4), ({"frame_step": 2}, 4), ({"duration_s": 1.0}, 4), ({}, 4 / 3)]
)
def test_frames_by_rate_step_duration_or_the_whole_video(two, changes, rate):
    row = ClipIndex.open(two[0]).row(0)  # 24 frames at 8 fps
    data = settings(two[0], **{"clip_fps": None} | changes)
    ids = frame_ids(row, data, 0.5)
    assert 3 / np.ptp(row.times()[ids]) == pytest.approx(rate, rel=0.01)
    with pytest.raises(ValidationError, match="set one of them to null"):
        settings(two[0], clip_fps=4.0, frame_step=2)


@pytest.mark.fast
def test_keyframe_starts_are_keyframes(make_video, tmp_path):
    write_index(tmp_path / "x.parquet", [{"uri": "a.mp4", "label_id": -1} | scanned(make_video("a.mp4", 40, gop=10))])
    index = ClipIndex.open(tmp_path / "x.parquet")
    assert index.keyframes(0).tolist() == [0.0, 1.25, 2.5, 3.75]
    dataset = clips_of(settings(str(index.path), start="keyframe"))
    seen = torch.cat([dataset[step].video for step in range(8)])[:, 0, 0, 8, 8].int()
    assert set(seen.tolist()) <= {
        value + off for value in (level(0), level(10), level(20), level(30)) for off in range(-3, 4)
    }
    assert len(torch.unique(seen // 8)) >= 3


@pytest.mark.fast
@pytest.mark.parametrize(("start", "decoder"), [("uniform", "decord"), ("keyframe", "pyav_seek")])
def test_clips_from_keyframes_have_a_decoder_of_their_own(make_video, tmp_path, start, decoder):
    write_index(tmp_path / "x.parquet", [{"uri": "a.mp4", "label_id": -1} | scanned(make_video("a.mp4", 40, gop=10))])
    dataset, read = clips_of(settings(str(tmp_path / "x.parquet"), start=start)), []
    dataset.read = lambda row, ids, size: read.append((row.decoder, int(ids[0]))) or read_frames(row, ids, size)
    dataset[0]
    assert {name for name, first in read if start == "keyframe" or first % 10} == {decoder}


@pytest.mark.fast
def test_a_clip_that_starts_elsewhere_is_read_by_the_decoder_that_is_exact_anywhere(make_video, tmp_path):
    row = scanned(make_video("a.mp4", 40, gop=10)) | {
        "keyframes_s": [4.5]
    }  # too late for a clip, which starts with the video
    write_index(tmp_path / "x.parquet", [{"uri": "a.mp4", "label_id": -1} | row])
    dataset, read = clips_of(settings(str(tmp_path / "x.parquet"), start="keyframe", num_frames=8)), []
    dataset.read = lambda row, ids, size: read.append((row.decoder, int(ids[0]))) or read_frames(row, ids, size)
    dataset[0]
    assert set(read) == {("decord", 0)}


@pytest.mark.fast
def test_views_of_evaluation_lie_evenly_in_time_and_space(two):
    index = ClipIndex.open(two[0])
    batch = Reader(RowPlan(index, np.array([1, 4]), settings(two[0]), 2, Views(num_clips=3, num_crops=2)))[0]
    assert batch.clip_ids.tolist() == [1] * 6 + [4] * 6 and batch.video.shape == (12, 3, 4, 16, 16)
    first = [int(batch.video[view, 0, 0, 12, 12]) for view in (0, 2, 4)]
    starts = [round((k + 0.5) / 3 * (24 - 3)) for k in range(3)]
    assert all(
        abs(value - min((level(i) for i in (start - 1, start, start + 1)), key=lambda x: abs(x - value))) <= 3
        for value, start in zip(first, starts, strict=True)
    )
