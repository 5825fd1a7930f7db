"""Which row is sample number i."""

import numpy as np
import pytest

from vjepa.data.order import replacement_row, sample_row

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 65, 1000])
def test_every_row_once_per_epoch(n):
    for epoch in range(3):
        assert sorted(sample_row(5, epoch * n + i, n) for i in range(n)) == list(range(n))


def test_order_differs_between_epochs_and_seeds_and_repeats_for_the_same():
    def order(seed, epoch):
        return [sample_row(seed, epoch * 100 + i, 100) for i in range(100)]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16
    assert order(0, 0) != list(range(100))


def test_each_place_sees_each_row_equally_often():
    n, epochs = 5, 2000
    counts = np.zeros((n, n))
    for i in range(n * epochs):
        counts[i % n, sample_row(1, i, n)] += 1
    assert np.abs(counts / epochs - 1 / n).max() < 0.04  # 4 standard deviations


def test_neighbours_are_not_kept_together():
    rows = np.array([sample_row(0, i, 4096) for i in range(4096)])
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.06
    assert (np.abs(np.diff(rows)) == 1).mean() < 0.005


def test_a_large_index_costs_no_more():
    n = 10**12
    rows = {sample_row(0, i, n) for i in range(1000)}
    assert len(rows) == 1000 and min(rows) < 0.02 * n and max(rows) > 0.98 * n


def test_replacements_are_deterministic_distinct_and_cover():
    rows = [replacement_row(3, 17, attempt, 8) for attempt in range(8)]
    assert sorted(rows) == list(range(8))
    assert rows == [replacement_row(3, 17, attempt, 8) for attempt in range(8)]
    assert rows != [replacement_row(3, 18, attempt, 8) for attempt in range(8)]
    assert replacement_row(3, 17, 5, 1) == 0
