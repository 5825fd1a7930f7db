"""Intervals and collapse measures against known values."""

import numpy as np
import pytest

from vjepa.probing import metrics

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Newcombe 1998, table I, and Brown, Cai & DasGupta 2001
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval_has_the_published_values(correct, total, low, high):
    assert metrics.wilson_interval(correct, total) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 32])
def test_effective_rank_of_gaussian_features_is_close_to_their_rank(rank):
    rng = np.random.default_rng(0)
    # orthonormal axes: all r directions are used alike
    axes = np.linalg.qr(rng.normal(size=(48, rank)))[0].T
    features = (rng.normal(size=(2000, rank)) @ axes + 5).astype(np.float32)
    assert metrics.effective_rank(features) == pytest.approx(rank, rel=0.02)


def test_healthy_features_have_a_deviation_of_one_and_are_not_collapsed():
    features = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    assert metrics.feature_std(features) == pytest.approx(1, abs=0.02)
    assert not metrics.is_collapsed(metrics.effective_rank(features), metrics.feature_std(features))


@pytest.mark.parametrize("kind", ["equal", "nearly equal", "one direction", "zero"])
def test_collapsed_features_are_called_collapsed(kind):
    rng = np.random.default_rng(0)
    one = rng.normal(size=64)
    features = {
        "equal": np.tile(one, (200, 1)),
        "nearly equal": one + 0.01 * rng.normal(size=(200, 64)),
        "one direction": rng.normal(size=(200, 1)) * one,
        "zero": np.zeros((200, 64)),
    }[kind].astype(np.float32)
    assert metrics.is_collapsed(metrics.effective_rank(features), metrics.feature_std(features))
