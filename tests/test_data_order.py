"""Which source has step n, and which row is sample number i."""

from fractions import Fraction

import numpy as np
import pytest

from vjepa.data.order import num_steps, replacement_row, sample_row, source_of_step, total_steps

pytestmark = pytest.mark.fast
MIXES = [
    (),
    ("0.5",),
    ("0.25",),
    ("0.9",),
    ("0.001",),
    ("0.3", "0.3"),
    ("0.1", "0.6", "0.05"),
    ("0.2", "0.2", "0.2", "0.2"),
]


def shares(mix):
    return tuple(Fraction(share) for share in mix)


@pytest.mark.parametrize("mix", MIXES)
def test_ratios_hold_at_every_moment_and_each_source_counts_its_own_steps(mix):
    wanted = np.array([1 - sum(shares(mix)), *shares(mix)], dtype=float)
    counts = np.zeros(len(mix) + 1, dtype=int)
    for step in range(1000):
        source, number = source_of_step(3, step, shares(mix))
        assert number == counts[source]
        counts[source] += 1
        assert np.abs(counts - wanted * (step + 1)).max() <= len(mix)
    assert num_steps(3, 1000, shares(mix)) == counts.tolist()
    long = np.array(num_steps(3, 20_000, shares(mix)))
    assert long.sum() == 20_000 and (np.abs(long / 20_000 - wanted) <= 0.01 * wanted)[wanted >= 0.05].all()


def test_the_order_of_sources_has_no_period_and_is_a_function_of_the_seed():
    def turns(seed):
        return np.array([source_of_step(seed, step, shares(["0.5"]))[0] for step in range(800)])

    order = turns(0)
    assert (order == turns(0)).all() and (order != turns(1)).any()
    for workers in (2, 3, 4):  # PyTorch hands steps to workers in turn: each has to get its part of both sources
        assert all(0.4 < order[worker::workers].mean() < 0.6 for worker in range(workers))


def test_any_step_costs_the_same():
    far, mix = 10**15, shares(["0.3", "0.01"])
    source, number = source_of_step(0, far, mix)
    assert number == num_steps(0, far, mix)[source] and abs(num_steps(0, far, mix)[1] - 3 * 10**14) <= 2


@pytest.mark.parametrize("mix", MIXES)
def test_a_run_is_as_long_as_its_train_steps_take(mix):
    for wanted in (1, 2, 7, 100):
        total = total_steps(5, wanted, shares(mix))
        assert num_steps(5, total, shares(mix))[0] == wanted
        assert num_steps(5, total - 1, shares(mix))[0] == wanted - 1


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
