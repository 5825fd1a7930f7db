"""Plans are arithmetic: what a batch has is known without a decode, and one reader does what any plan says."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from vjepa import config
from vjepa.config.row_filter import parse_where, quoted
from vjepa.data.augment import Crop, crop_resize
from vjepa.data.clip_index import SCHEMA, ClipIndex, write_index
from vjepa.data.decode import READERS
from vjepa.data.images import ArrayImages, FileImages, ReadImages
from vjepa.data.media import DecodeError
from vjepa.data.plan import Attempt, BatchPlan, Decode, random_crop
from vjepa.data.plan_rows import Passes, RowPlan, Views
from vjepa.data.plan_training import MAX_ATTEMPTS, TrainPlan
from vjepa.data.plan_windows import Cut, CutVideos, WindowPlan
from vjepa.data.reader import Reader
from vjepa.data.sources import open_sources
from vjepa.errors import UserError

pytestmark = pytest.mark.fast
ROWS, WIDTH, HEIGHT = 12, 64, 48


@pytest.fixture
def index(tmp_path):
    """Rows of videos that are not there: nothing can be decoded."""
    facts = {"first_frame": 0, "start_s": 0.0, "end_s": 5.0, "num_frames": 40, "fps": 8.0, "width": WIDTH}
    facts |= {"height": HEIGHT, "rotation": 0, "sample_aspect": 1.0, "decoder": "pyav", "status": "ok"}
    write_index(tmp_path / "x.parquet", [facts | {"uri": f"{i}.mp4"} for i in range(ROWS)])
    return ClipIndex.open(tmp_path / "x.parquet")


def settings(index, **changes):
    given = {"train": str(index.path), "num_frames": 4, "clip_fps": 4.0, "crop_px": 16, "global_batch": 8, "flip": True}
    return config.Data(**given | changes)


def grey(row, frame_ids, size):
    """Frames as grey as their numbers."""
    height, width = size or (row.height, row.width)
    levels = frame_ids.astype(np.uint8)[:, None, None, None]
    return np.broadcast_to(levels, (len(frame_ids), height, width, 3)).copy()


def test_a_place_of_training_is_filled_by_its_row_or_by_the_next_that_can_be_read(index):
    plan = TrainPlan(open_sources(settings(index)), settings(index), seed=3)
    batch = plan.batch(5)
    tried = [list(place) for place in batch.places]
    assert batch.replaces and [len(place) for place in tried] == [MAX_ATTEMPTS] * 8
    for place in tried:
        assert len({attempt.clip_id for attempt in place[1:]}) == MAX_ATTEMPTS - 1
        for decode in place[0].decodes():
            assert decode.clip_ids == (place[0].clip_id,) and decode.name == (0, place[0].clip_id)
            assert decode.frame_ids.tolist() == list(range(decode.frame_ids[0], decode.frame_ids[0] + 8, 2))
            ((top, left, height, width),) = [crop.box for crop in decode.crops]
            assert 0 <= top <= HEIGHT - height and 0 <= left <= WIDTH - width
    again = [[attempt.clip_id for attempt in place] for place in plan.batch(5).places]
    assert again == [[attempt.clip_id for attempt in place] for place in tried]


def test_the_reader_gives_the_frames_of_the_plan_in_the_order_of_the_plan(index):
    data = settings(index)
    plans = [
        TrainPlan(open_sources(data), data, seed=3),
        RowPlan(index, np.arange(5), data, 3, Views(2, 2)),
        RowPlan(index, np.arange(5), data, 3, Passes(3)),
        RowPlan(index, np.arange(5), data, 3, Views(), ahead_s=1.0),
        WindowPlan(CutVideos.of(index, np.arange(3), data, Cut(1, 1.0, 0.5)), [range(7), range(7, 20)]),
    ]
    for plan in plans:
        batch, planned = Reader(plan, grey)[1], plan.batch(1)
        decodes = [decode for place in planned.places for decode in next(iter(place)).decodes()]
        clips = [
            (clip_id, ids)
            for decode in decodes
            for _ in decode.crops
            for clip_id, ids in zip(decode.clip_ids, decode.frame_ids.reshape(-1, 4).tolist(), strict=True)
        ]
        assert batch.clip_ids.tolist() == [clip_id for clip_id, _ in clips] and batch.failures == ()
        assert batch.video[:, 0, :, 8, 8].tolist() == [ids for _, ids in clips]
        assert 0 < batch.video.numel() <= plan.batch_bytes


def test_windows_of_one_video_are_decoded_together_and_apart_where_that_fails(index):
    plan = WindowPlan(CutVideos.of(index, np.arange(2), settings(index), Cut(1, 1.0, 1.0)), [range(10)])
    first, second = ([*place] for place in plan.batch(0).places)
    assert [len(first), len(second)] == [1, 1]  # of 5 windows each
    assert first[0].decodes()[0].clip_ids == (0, 1, 2, 3, 4)
    assert [part.clip_id for part in second[0].parts] == [5, 6, 7, 8, 9]

    def broken_tail(row, frame_ids, size):
        if row.clip_id == 1 and frame_ids.max() > 30:
            return Reader(plan).read(row, frame_ids, size)  # no such file
        return grey(row, frame_ids, size)

    batch = Reader(plan, broken_tail)[0]
    assert batch.clip_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8] and batch.num_replaced == 0
    assert [clip_id for clip_id, _ in batch.failures] == [9]


class FixedPlan:
    """The same batch whatever its number."""

    def __init__(self, batch):
        self.of_all, self.quarantine, self.uri = batch, dict, lambda source, clip_id: f"{clip_id}.mp4"

    def batch(self, number):
        return self.of_all


def gone():
    raise DecodeError("gone")


def test_a_row_that_cannot_be_read_is_left_out_or_replaced_as_the_plan_says(index):
    decode = Decode(
        (0, 1), index.row(1), np.zeros(4, np.int64), (1,), (Crop((0, 0, 16, 16), settings(index).crop_size),)
    )
    broken, whole = Attempt(7, gone), Attempt(1, lambda: [decode])

    def batch_of(place, replaces):
        return Reader(FixedPlan(BatchPlan(settings(index), [place, [whole]], replaces=replaces)), grey)[0]

    for place, left_out, replaces, num_replaced in (
        ([broken], 1, False, 0),
        ([whole], 0, True, 0),
        ([broken, whole], 0, True, 1),
    ):
        batch = batch_of(place, replaces)
        assert batch.clip_ids.tolist() == [1] * (2 - left_out) and batch.num_replaced == num_replaced
        assert batch.failures == ((7, "gone"),) * (broken in place)
    with pytest.raises(UserError, match=r"2 clips in turn cannot be read; .* 7\.mp4: gone; 7\.mp4: gone"):
        batch_of([broken, broken], replaces=True)


def test_pictures_of_any_size_are_read_by_their_squares():
    pixels = np.random.default_rng(0).integers(256, size=(3, 8, 20, 3), dtype=np.uint8)
    images, data = ArrayImages("noise", pixels), config.Data(train="x", num_frames=1, crop_px=8)
    batch = Reader(RowPlan(images, np.array([2, 0]), data, 2, Views(num_crops=3)), ReadImages(images))[0]
    assert batch.clip_ids.tolist() == [2, 2, 2, 0, 0, 0]
    for clip, (picture, left) in zip(batch.video, [(2, 0), (2, 6), (2, 12), (0, 0), (0, 6), (0, 12)], strict=True):
        expected = torch.from_numpy(pixels[picture, :, left : left + 8]).permute(2, 0, 1)
        assert torch.equal(clip[:, 0], expected)


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_the_whole_picture_is_shown_by_training_passes_and_views_alike(fit):
    pixels = np.random.default_rng(0).integers(256, size=(1, 16, 64, 3), dtype=np.uint8)
    given = {"train": "x", "num_frames": 1, "crop_px": (16, 32), "fit": fit, "flip": True}
    images, data = ArrayImages("noise", pixels), config.Data.model_validate(given)
    size = {"squash": (16, 32), "pad": (8, 32)}[fit]
    plain, flipped = (crop_resize(pixels, Crop((0, 0, 16, 64), size, flip), (16, 32)) for flip in (False, True))
    (view,) = Reader(RowPlan(images, np.arange(1), data, 1, Views()), ReadImages(images))[0].video
    assert torch.equal(view, plain)
    seen = Reader(RowPlan(images, np.arange(1), data, 1, Passes(20)), ReadImages(images))[0].video
    assert {torch.equal(clip, plain) for clip in seen} == {True, False}
    assert all(torch.equal(clip, plain) or torch.equal(clip, flipped) for clip in seen)


def test_random_crops_have_the_shape_of_the_clip_on_average():
    row, data = (
        ArrayImages("wide", np.zeros((1, 100, 400, 3), np.uint8)).row(0),
        {"train": "x", "crop_scale": (0.1, 0.2)},
    )
    crops = [
        random_crop(np.random.default_rng(seed), row, config.Data.model_validate({**data, "crop_px": size}))
        for seed in range(300)
        for size in (32, (32, 64))
    ]
    ratios = np.array([math.log(crop.box[3] / crop.box[2]) for crop in crops]).reshape(-1, 2).mean(0)
    assert ratios == pytest.approx([math.log(0.75 * 1.35) / 2, math.log(0.75 * 1.35) / 2 + math.log(2)], abs=0.03)
    assert {crop.size for crop in crops} == {(32, 32), (32, 64)}


def test_pictures_in_files_are_upright_and_in_full_before_they_are_cropped(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(30, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(pixels).save(tmp_path / "0.png", exif=exif)
    images, data = FileImages((str(tmp_path / "0.png"),)), config.Data(train="x", num_frames=1, crop_px=8)
    assert (images.row(0).height, images.row(0).width) == images.read(0).shape[:2] == (64, 30)
    batch = Reader(RowPlan(images, np.arange(1), data, 1, Views(num_crops=2)), ReadImages(images))[0]
    for clip, top in zip(batch.video, (0, 34), strict=True):
        assert torch.equal(clip, crop_resize(images.read(0)[None], Crop((top, 0, 30, 30), (8, 8)), (8, 8)))


def test_rows_are_written_as_columns_with_values():
    assert parse_where(["split=train,val", "scene=desk"], "where") == {"split": ["train", "val"], "scene": ["desk"]}
    assert parse_where(["a=1", "a=2,3"], "where") == {"a": ["1", "2", "3"]}
    assert parse_where([r"label=tench\, Tinca,eel"], "where") == {"label": ["tench, Tinca", "eel"]}
    assert parse_where([], "where") == {} and parse_where(["group="], "where") == {"group": [""]}
    written = """label="a, ""b\\" ",'it''s, c',d"e ,, f"""
    assert parse_where([written], "where") == {"label": ['a, "b" ', "it's, c", 'd"e', "", "f"]}
    for text, said in (
        ('a="b', "does not close"),
        ("a='b'c", "does not close"),
        (r'a="\d"', "backslash is written twice"),
    ):
        with pytest.raises(UserError, match=f"--val {re.escape(text)}: .*{said}"):
            parse_where([text], "val")
    for bad in ("split", "=train"):
        with pytest.raises(UserError, match=f"--val {bad}: rows are written COLUMN=VALUE"):
            parse_where([bad], "val")


SIGNS = [
    *" ,\"'\\[]{}#:-=~&*!|>%@`?.\t\n01e_xnoéß漢𝄞\u0301\u200b",
    "12:30",
    "010",
    "null",
    "1.0",
    "2024-01-01",
    "a, but b",
]


def test_rows_of_random_texts_are_found_from_files_and_command_lines(tmp_path):
    draw = random.Random(0)
    texts = sorted({"".join(draw.choices(SIGNS, k=draw.randrange(1, 5))) for _ in range(260)})[:200]
    labels, path = [draw.choice(texts) for _ in range(1000)], tmp_path / "config.yaml"
    write_index(tmp_path / "x.parquet", [{"uri": "a.mp4", "status": "ok", "label": label} for label in labels])
    index = ClipIndex.open(tmp_path / "x.parquet")
    assert len(texts) == 200
    for text in texts:
        wanted = [row for row, label in enumerate(labels) if label == text]
        rows = {"index": str(index.path), "where": {"label": text}}
        path.write_text(yaml.safe_dump({"data": {"train": rows}, "optim": {"total_steps": 1}}, allow_unicode=True))
        in_quotes = (quoted(text), json.dumps(text), "'" + text.replace("'", "''") + "'")
        wheres = [
            config.load(str(path)).data.train.where,
            *(config.load(str(path), [f"data.train.where.label={one}"]).data.train.where for one in in_quotes),
            *(parse_where([f"label={one}"], "where") for one in in_quotes),
        ]
        for where in wheres:
            found = index.select(where) if len(wanted) else []
            assert list(found) == wanted, (text, where)
            assert where["label"] in (text, [text])


def test_the_reference_page_has_every_column_and_its_examples_run(make_index, monkeypatch):
    monkeypatch.chdir(make_index([{"label": "a"}] * 3, num_frames=12).parent)
    page = (Path(__file__).parents[1] / "vjepa/data/README.md").read_text()
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    assert names["batch"].video.shape == (8, 3, 4, 64, 64) and names["batch"].failures == ()
    assert {*SCHEMA.names, *READERS} <= set(re.findall(r"`(\w+)`", page))
    for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        config.Data.model_validate_json(json.dumps(yaml.safe_load(block)["data"]))
