from __future__ import annotations

import numpy as np
import pytest

from vjepa.counter_rng import STREAMS, generator, source_seed

pytestmark = pytest.mark.fast


def test_draws_are_a_function_of_seed_stream_and_counter() -> None:
    draws = {}
    for seed in (0, 1, 2**63):
        for stream in STREAMS:
            for counter in (0, 1, 2**40):
                again = generator(seed, stream, counter).random(4)
                np.testing.assert_array_equal(generator(seed, stream, counter).random(4), again)
                draws[seed, stream, counter] = tuple(again)
    assert len(set(draws.values())) == len(draws)


def test_neighbouring_counters_are_unrelated() -> None:
    table = np.stack([generator(0, "crop", counter).random(64) for counter in range(500)])
    assert abs(table.mean() - 0.5) < 0.01
    neighbours = np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.02


def test_every_source_of_a_mix_has_a_seed_of_its_own() -> None:
    assert source_seed(5, 0) == 5 and source_seed(5, 1) == source_seed(5, 1)
    assert len({source_seed(seed, source) for seed in range(20) for source in range(20)}) == 400
