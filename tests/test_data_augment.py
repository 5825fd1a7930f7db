"""Crop, resize, flip and normalisation."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from vjepa.config import IMAGENET_MEAN, IMAGENET_STD
from vjepa.data.augment import (
    Crop,
    crop_resize,
    inscribed,
    normalise,
    random_crop_box,
    scaled_box,
    size_needed,
    view_boxes,
)

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(("height", "width"), [(64, 64), (240, 320), (1, 1), (5, 500)])
def test_boxes_lie_in_the_frame(height, width):
    for seed in range(200):
        top, left, h, w = random_crop_box(np.random.default_rng(seed), height, width, (0.3, 1.0), (0.75, 1.35))
        assert h >= 1 and w >= 1 and top >= 0 and left >= 0 and top + h <= height and left + w <= width


def test_boxes_have_the_wanted_areas_and_shapes_and_reach_every_edge():
    boxes = np.array(
        [random_crop_box(np.random.default_rng(seed), 240, 320, (0.3, 0.6), (0.75, 1.35)) for seed in range(2000)]
    )
    top, left, h, w = boxes.T
    area, aspect = h * w / (240 * 320), w / h
    assert 0.29 < area.min() < 0.31 and 0.59 < area.max() < 0.61 and area.mean() == pytest.approx(0.45, abs=0.01)
    assert (
        0.74 < aspect.min() < 0.77
        and 1.3 < aspect.max() < 1.37
        and np.log(aspect).mean() == pytest.approx(np.log(0.75 * 1.35) / 2, abs=0.02)
    )
    assert top.min() == 0 and left.min() == 0 and (top + h).max() == 240 and (left + w).max() == 320


def test_centre_box_is_the_largest_square_in_the_middle():
    square = (32, 32)
    assert view_boxes(100, 60, 1, square) == [(20, 0, 60, 60)]
    assert view_boxes(60, 101, 1, square) == [(0, 20, 60, 60)]
    assert view_boxes(60, 100, 3, square) == [(0, 0, 60, 60), (0, 20, 60, 60), (0, 40, 60, 60)]
    assert view_boxes(100, 60, 2, square) == [(0, 0, 60, 60), (40, 0, 60, 60)]
    assert view_boxes(100, 60, 3, (16, 32)) == [(0, 0, 30, 60), (35, 0, 30, 60), (70, 0, 30, 60)]
    assert view_boxes(50, 100, 1, (16, 32)) == [(0, 0, 50, 100)]


def test_what_is_inscribed_touches_two_sides_with_its_own_proportions():
    rng = np.random.default_rng(0)
    for shape, frame in rng.integers(8, 2000, (500, 2, 2)).tolist():
        h, w = inscribed(tuple(shape), tuple(frame))
        if frame[0] * shape[1] <= frame[1] * shape[0]:
            assert h == frame[0] and abs(w - frame[0] * shape[1] / shape[0]) <= max(0.5, 1 - w) + 1e-9
        else:
            assert w == frame[1] and abs(h - frame[1] * shape[0] / shape[1]) <= max(0.5, 1 - h) + 1e-9
        assert inscribed((224, 224), tuple(frame)) == (min(frame), min(frame))
    assert inscribed((1, 2000), (64, 64)) == (1, 64)


@pytest.mark.parametrize("box", [(3, 5, 40, 50), (0, 0, 64, 64), (10, 10, 7, 9), (1, 2, 32, 32)])
def test_resize_equals_antialiased_float_within_a_level(box):
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    top, left, h, w = box
    clip = crop_resize(frames, Crop(box, (32, 32)), (32, 32))
    crop = torch.from_numpy(frames[:, top : top + h, left : left + w]).permute(0, 3, 1, 2).float()
    twin = functional.interpolate(crop, size=(32, 32), mode="bilinear", antialias=True).permute(1, 0, 2, 3)
    assert clip.dtype == torch.uint8 and clip.shape == (3, 4, 32, 32)
    assert (clip.float() - twin).abs().max() <= 1.0


def test_box_of_the_right_size_is_copied_unchanged():
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    clip = crop_resize(frames, Crop((4, 8, 32, 32), (32, 32)), (32, 32))
    assert (clip.permute(1, 2, 3, 0).numpy() == frames[:, 4:36, 8:40]).all()


@pytest.mark.parametrize(("size", "inner"), [((32, 32), (16, 32)), ((64, 16), (8, 16)), ((9, 40), (9, 18))])
def test_what_lies_around_a_whole_frame_is_the_mean_colour_which_is_0_when_normalised(size, inner):
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 48, 3), dtype=np.uint8)
    crop = Crop((0, 0, 24, 48), inscribed((24, 48), size))
    assert crop.size == inner
    clip, whole = crop_resize(frames, crop, size), crop_resize(frames, crop, inner)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    assert clip.shape == (3, 3, *size) and torch.equal(clip[:, :, top : top + inner[0], left : left + inner[1]], whole)
    border = torch.ones(size, dtype=torch.bool)
    border[top : top + inner[0], left : left + inner[1]] = False
    outside = normalise(clip[None], torch.float32)[0][..., border]
    assert outside.numel() and outside.abs().max() <= 0.5 / 255 / min(IMAGENET_STD)
    assert (outside == outside[:, :1, :1]).all()


def test_all_frames_share_the_crop_and_the_flip():
    frames = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8), 5, axis=0)
    plain, flipped = (crop_resize(frames, Crop((3, 4, 41, 37), (32, 32), flip), (32, 32)) for flip in (False, True))
    assert (plain == plain[:, :1]).all()
    assert (flipped == plain.flip(-1)).all() and not (flipped == plain).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise_has_the_statistics_of_imagenet(dtype):
    video = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    out = normalise(video, dtype)
    assert out.dtype == dtype and video.dtype == torch.uint8
    torch.testing.assert_close(
        out, ((video / 255 - mean) / std).to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
    )


@pytest.mark.parametrize("wanted", [(112, 112), (112, 224), (160, 96)])
@pytest.mark.parametrize(("height", "width"), [(720, 1280), (721, 1283), (1080, 608)])
def test_the_size_needed_is_a_whole_fraction_in_which_every_box_keeps_its_pixels(height, width, wanted):
    rng = np.random.default_rng(0)
    for _ in range(100):
        boxes = [random_crop_box(rng, height, width, (0.3, 1.0), (0.75, 1.35)) for _ in range(2)]
        size = size_needed([Crop(box, wanted) for box in boxes], height, width)
        frames = np.empty((1, *(size or (height, width)), 3), np.uint8)
        for box in boxes:
            top, left, h, w = scaled_box(box, height, width, frames)
            enough = h >= min(wanted[0], box[2]) and w >= min(wanted[1], box[3])
            assert enough and 0 <= top <= frames.shape[1] - h and 0 <= left <= frames.shape[2] - w
            assert (
                abs(h / frames.shape[1] - box[2] / height) < 0.01
                and abs(left / frames.shape[2] - box[1] / width) < 0.01
            )
    assert size_needed([Crop((0, 0, 2 * wanted[0] - 1, 3 * wanted[1]), wanted)], height, width) is None
