"""What the tuner searches: knobs around a config, and what their values make of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from small_runs import settings

from vjepa import config
from vjepa.tuning.space import HALF_LIFE, LR, MASK_RATIO, knobs, with_values
from vjepa.tuning.trial import shortened

pytestmark = pytest.mark.fast
VIEWS = {
    "masks": [{"kind": "tube", "ratio": 0.9}] * 4,
    "objective": {"view_invariance": 1.0, "vicreg_variance": 1.0, "vicreg_covariance": 0.8},
}


def run(**tree: dict | list) -> config.Config:
    return settings(Path("none.parquet"), "run", **tree)


def test_the_values_of_the_config_are_in_the_middle_of_their_ranges() -> None:
    """Of learning rate and weights, by their logarithm; the ranges of EMA and mask ratio hold them."""
    found = {knob.name: knob for knob in knobs(run(**VIEWS), 600)}
    weights = [f"objective.{name}" for name in ("view_invariance", "vicreg_variance", "vicreg_covariance")]
    assert list(found) == [LR, HALF_LIFE, *weights, MASK_RATIO]
    for name in (LR, *weights):
        assert found[name].at(0.5) == pytest.approx(found[name].own) and found[name].is_log
    assert found[LR].high / found[LR].low == pytest.approx(1000)
    assert all(knob.low <= knob.own <= knob.high for knob in found.values())
    assert found[HALF_LIFE].own == pytest.approx(math.log(0.5) / math.log(0.9) / 600)
    assert (found[MASK_RATIO].low, found[MASK_RATIO].high, found[MASK_RATIO].own) == (0.5, 0.95, 0.9)
    assert [round(found[MASK_RATIO].at(share), 4) for share in (0, 0.5, 1)] == [0.5, 0.725, 0.95]


def test_a_knob_that_a_config_has_not_is_not_searched() -> None:
    names = {knob.name for knob in knobs(run(objective={"targets": "pixels", "loss": "mse"}), 600)}
    assert HALF_LIFE not in names
    assert HALF_LIFE not in {knob.name for knob in knobs(run(optim={"ema_decay": 1.0}), 600)}
    apart = [{"kind": "tube", "ratio": 0.5}, {"kind": "random", "ratio": 0.75}]
    for masks in (apart, [{"kind": "tube", "final_ratio": 0.9}], [{"kind": "multiblock"}]):
        assert MASK_RATIO not in {knob.name for knob in knobs(run(masks=masks), 600)}


def test_a_config_without_regularisers_is_tried_with_them() -> None:
    plain = run(objective={"vicreg_variance": 0, "vicreg_covariance": 0})
    added = [knob for knob in knobs(plain, 600) if knob.name.startswith("objective.")]
    assert [knob.name for knob in added] == ["objective.vicreg_variance", "objective.vicreg_covariance"]
    assert all(knob.own == 0 < knob.low for knob in added)
    single = run(objective={"vicreg_variance": 0, "vicreg_covariance": 0}, data={"global_batch": 1})
    assert not [knob for knob in knobs(single, 600) if knob.name.startswith("objective.")]


def test_values_become_settings() -> None:
    before = run(**VIEWS, optim={"ema_decay": 0.99, "final_ema_decay": 0.99})
    values = {LR: 3e-4, HALF_LIFE: 0.1, MASK_RATIO: 0.6, "objective.view_invariance": 0.3}
    after = with_values(before, values, total_steps=600)
    assert after.optim.lr == 3e-4 and after.objective.view_invariance == 0.3
    assert after.optim.ema_decay**60 == pytest.approx(0.5) and after.optim.final_ema_decay == after.optim.ema_decay
    assert {mask.ratio for mask in after.masks if isinstance(mask, config.TubeMask)} == {0.6} and len(after.masks) == 4
    assert after.objective.vicreg_covariance == 0.8 and after.model == before.model
    to_one = with_values(run(optim={"ema_decay": 0.99, "final_ema_decay": 1.0}), {HALF_LIFE: 0.1}, 600)
    assert to_one.optim.final_ema_decay == 1.0  # an EMA that freezes goes on to do so


def test_own_values_change_nothing_but_by_rounding() -> None:
    before = run(**VIEWS)
    after = with_values(before, {knob.name: knob.own for knob in knobs(before, 600)}, 600)
    assert after.optim.ema_decay == pytest.approx(before.optim.ema_decay)
    same = {"ema_decay": before.optim.ema_decay, "final_ema_decay": before.optim.final_ema_decay}
    assert after.model_copy(update={"optim": after.optim.model_copy(update=same)}) == before


def test_a_short_run_has_all_that_counts_steps_shrunk_alike() -> None:
    optim = {"total_steps": 600, "warmup_steps": 60, "ema_decay": 0.99, "final_ema_decay": 1.0}
    whole = run(**VIEWS, optim=optim, data={"val": "val.parquet"}, eval={"every_steps": 50})
    short = shortened(whole, 600, 120, with_labels=False)
    assert (short.optim.total_steps, short.optim.warmup_steps, short.monitor.every_steps) == (120, 12, 15)
    assert short.optim.ema_decay == pytest.approx(0.99**5) and short.optim.final_ema_decay == 1.0
    own, scaled = ({knob.name: knob.own for knob in knobs(one, n)} for one, n in ((whole, 600), (short, 120)))
    assert scaled == pytest.approx(own)  # the same place in the search space
    assert short.data.val is None and short.eval.every_steps is None and short.monitor.stop_on == ["collapsing"]
    probed = shortened(whole, 600, 120, with_labels=True)
    assert probed.data.val is not None and probed.eval.every_steps == 15
    epochs = run(optim={"total_steps": None, "epochs": 3})
    assert shortened(epochs, 600, 120, with_labels=False).optim.epochs is None
