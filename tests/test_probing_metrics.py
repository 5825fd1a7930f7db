"""Intervals and collapse measures against known values."""

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
