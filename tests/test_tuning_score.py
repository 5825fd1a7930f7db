"""The score without labels: what it counts, held against plain formulas."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_runs import settings
from torch import Tensor

from vjepa.jepa import build
from vjepa.tuning.score import SCORES, crop, information, label_free, pooled

pytestmark = pytest.mark.fast


def views(signal: Tensor, noise: float, clips: int = 4000, each: int = 4) -> Tensor:
    """Gaussian views whose clips have standard deviations `signal` [D], and views around them `noise`."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(clips, 1, len(signal), generator=draw) * signal
    return means + noise * torch.randn(clips, each, len(signal), generator=draw)


def test_information_is_that_of_a_gaussian_channel() -> None:
    signal = torch.tensor([2.0, 1.0, 0.5, 0.0])
    wanted = sum(math.log(1 + float(s) ** 2) / 2 for s in signal)
    assert information(views(signal, 1.0)) == pytest.approx(wanted, rel=0.05)


def test_information_knows_no_scale_no_rotation_and_no_shift() -> None:
    seen = views(torch.tensor([2.0, 1.0, 0.5]), 0.5, clips=50)
    turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))
    assert information(100 * seen @ turned + 7) == pytest.approx(information(seen), rel=1e-4)


def test_information_grows_with_directions_and_falls_with_noise() -> None:
    two, four = torch.ones(2), torch.ones(4)
    assert information(views(four, 0.5)) > information(views(two, 0.5)) > information(views(two, 1.0))
    assert information(torch.zeros(8, 3, 4)) == 0
    assert information(views(torch.zeros(6), 1.0)) < 0.2  # noise alone tells nothing of clips
    wide = views(torch.zeros(300), 1.0, clips=16, each=3)  # more directions than can be known
    assert math.isfinite(information(wide))


def test_crops_are_functions_of_seed_and_clip_and_of_the_size_of_the_clip() -> None:
    clips = torch.randint(256, (3, 3, 2, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = crop(clips, seed=0)
    assert found.shape == (9, 3, 2, 16, 16) and found.dtype == torch.uint8
    assert torch.equal(crop(clips[:2], seed=0), found[:6]) and not torch.equal(crop(clips, seed=1), found)
    flat = torch.full_like(clips, 77)
    assert torch.equal(crop(flat, seed=0), flat.repeat_interleave(3, dim=0))


def test_measuring_draws_nothing_and_leaves_the_encoder_as_it_was() -> None:
    run = settings(
        Path("none.parquet"), "run", model={"encoder": {"width": 24, "depth": 2, "heads": 2, "drop_path": 0.3}}
    )
    encoder = build(run).encoder.train()
    clips = torch.randint(256, (6, 3, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    found = label_free(encoder, clips, crop(clips, 0), 4, torch.float32)
    assert encoder.training and torch.equal(torch.get_rng_state(), before)
    assert SCORES["without labels"](found) == found["tuner/rank"] * found["tuner/information"] > 0
    torch.testing.assert_close(pooled(encoder, clips, 2, torch.float32), pooled(encoder, clips, 6, torch.float32))
