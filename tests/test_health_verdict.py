"""Each rule of the verdict on a log made by hand: what fires it, and what must not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from vjepa.health.verdict import Verdict, has_collapsed, holds_its_best, judge

pytestmark = pytest.mark.fast

Row = dict[str, float]
HEALTHY: Row = {
    "spread": 0.4, "feature_std": 0.3, "effective_rank": 12.0, "skill": 0.3, "place_skill": 0.2,
    "position_share": 0.5, "held_out_loss": 0.28, "lidar": 8.0, "lidar_half": 0.5,
}  # fmt: skip


def log(num: int, change: Callable[[int], Row], losses: Callable[[int], float] = lambda step: 1 - step / 1e4) -> list:
    """Measured every 50 steps from 0 on, logged every 10; `change` says what differs from HEALTHY at a step."""
    rows: list[Row] = [{"step": 0, **{f"health/{name}": value for name, value in (HEALTHY | change(0)).items()}}]
    for step in range(10, 50 * num, 10):
        row: Row = {"step": step, "loss": losses(step)}
        if step % 50 == 0:
            row |= {f"health/{name}": value for name, value in (HEALTHY | change(step)).items()}
        rows.append(row)
    return rows


def states(rows: Sequence[Row], total_steps: int = 500) -> list[str]:
    """The verdict after each measurement."""
    places = [i for i, row in enumerate(rows) if "health/spread" in row]
    return [judge(rows[: i + 1], total_steps).state for i in places]


def falls(step: int, first: int, **values: float) -> Row:
    return values if step >= first else {}


def test_a_run_that_learns_is_healthy_from_the_first_measurement_on() -> None:
    assert set(states(log(10, lambda step: {}))) == {"healthy"}
    assert judge([], 500) == Verdict("healthy", "nothing was measured", "", 0)


def test_a_game_that_is_learned_is_no_collapse() -> None:
    """Rank 26 and a deviation of .04, under the .05 of old; a rank of 3 where the untrained one is 4."""
    game = {"feature_std": 0.04, "effective_rank": 26.0}
    untrained = {"feature_std": 0.08, "effective_rank": 30.0}
    assert set(states(log(8, lambda step: game if step else untrained))) == {"healthy"}
    assert set(states(log(8, lambda step: {"effective_rank": 3.0 if step else 4.0}))) == {"healthy"}
    assert not has_collapsed(game, untrained)


def test_a_collapse_needs_two_signs_twice_running() -> None:
    spread = states(log(8, lambda step: falls(step, 150, spread=0.04, effective_rank=2.0)))
    assert spread == ["healthy"] * 3 + ["watch"] + ["collapsing"] * 4
    once = states(log(8, lambda step: {"spread": 0.04, "effective_rank": 2.0} if step == 150 else {}))
    assert "collapsing" not in once
    alone = states(log(8, lambda step: falls(step, 150, effective_rank=2.0)))
    assert set(alone) == {"healthy", "watch", "partial_collapse"}  # never a rank alone


def test_a_run_that_never_was_better_than_untrained_collapses_by_that() -> None:
    assert states(log(4, lambda step: falls(step, 50, spread=0.03, feature_std=0.02)))[2:] == ["collapsing"] * 2


def test_of_fixed_targets_the_deviation_is_sign_enough() -> None:
    rows = log(6, lambda step: falls(step, 100, feature_std=0.05))
    assert states(rows)[3:] == ["collapsing"] * 3
    moving = log(6, lambda step: {"spread": 0.4 + step / 1e5, **falls(step, 100, feature_std=0.05)})
    assert "collapsing" not in states(moving)


def test_equal_clips_are_named_before_the_first_step() -> None:
    found = judge(log(1, lambda step: {"effective_rank": 0.0, "feature_std": 0.0}), 500)
    assert found.state == "collapsing" and "clips of data.train may be equal" in found.rule


def test_a_rank_that_halves_while_the_loss_drops_is_a_partial_collapse() -> None:
    def losses(step: int) -> float:
        return 1 - step / 1e4 + (step // 50 % 2) / 1e3 - (0.3 if step > 450 else 0)

    halves = log(11, lambda step: falls(step, 500, effective_rank=5.5), losses)
    assert states(halves, 5000)[-1] == "partial_collapse"
    steady = log(11, lambda step: falls(step, 500, effective_rank=5.5))
    assert states(steady, 5000)[-1] == "healthy"  # the rank alone
    assert states(log(11, lambda step: {}, losses), 5000)[-1] == "healthy"  # the loss alone


def test_a_rank_that_stays_under_a_third_is_a_partial_collapse() -> None:
    fallen = states(log(8, lambda step: falls(step, 150, effective_rank=3.9)))
    assert fallen == ["healthy"] * 3 + ["watch"] * 2 + ["partial_collapse"] * 3
    assert "partial_collapse" not in states(log(8, lambda step: falls(step, 150, effective_rank=4.1)))
    comes_back = log(8, lambda step: {"effective_rank": 3.9 if step in (150, 200) else 12.0})
    assert "partial_collapse" not in states(comes_back)


def test_of_fixed_targets_little_skill_is_some() -> None:
    def rows(skill: float, moved: float) -> list[Row]:
        return log(8, lambda step: {"skill": skill if step else -0.5, "spread": 0.4 + moved * step})

    assert states(rows(0.02, moved=0))[-1] == "healthy"
    assert states(rows(0.02, moved=1e-5))[-1] == "no_skill"
    assert states(rows(0.005, moved=0))[-1] == "no_skill"


def test_no_skill_has_to_last_and_not_to_rise() -> None:
    flat = states(log(8, lambda step: {"skill": -0.5 if step == 0 else 0.0}))
    assert flat[:3] == ["healthy"] * 3 and set(flat[3:]) == {"no_skill"}
    assert "no_skill" not in states(log(8, lambda step: {"skill": -0.2 + step / 1000}))
    assert "no_skill" not in states(log(8, lambda step: {"skill": -0.2 if step < 150 else 0.3}))
    long = states(log(8, lambda step: {"skill": 0.0}), total_steps=5000)  # a tenth is 500 steps
    assert "no_skill" not in long[:3]


def test_targets_that_tell_places_alone_are_named_where_clips_are_alike() -> None:
    places = {"position_share": 0.97, "place_skill": -0.5, "feature_std": 0.01}
    assert states(log(6, lambda step: places))[-1] == "positions_only"
    for still in ({"place_skill": 0.2}, {"feature_std": 0.3}, {"position_share": 0.8}):
        assert set(states(log(6, lambda step, still=still: places | still))) == {"healthy"}  # type: ignore[misc]


def test_overfitting_is_seen_on_held_out_clips_alone() -> None:
    rising = log(10, lambda step: {"held_out_loss": 0.2 + step / 2000, "skill": 0.5 - step / 1000})
    assert states(rising)[-1] == "overfitting"
    fixed = [{name.replace("held_out", "fixed"): value for name, value in row.items()} for row in rising]
    assert states(fixed)[-1] == "healthy"
    assert states(log(10, lambda step: {"held_out_loss": 0.2 + step / 2000}))[-1] == "healthy"  # as much as the spread
    both = log(10, lambda step: {"held_out_loss": 0.2 + step / 2000, "skill": 0.5 - step / 1000}, lambda step: 1 + step)
    assert states(both)[-1] == "healthy"  # the training loss rises too


def probed(values: Sequence[float], half: float = 0.03) -> list[Row]:
    rows = log(len(values), lambda step: {})
    return [
        row | ({"knn": values[int(row["step"]) // 50], "knn_half": half} if row["step"] % 50 == 0 else {})
        for row in rows
    ]


def test_getting_worse_is_three_times_under_the_best_and_names_its_step() -> None:
    assert states(probed([0.2, 0.5, 0.7, 0.69, 0.5, 0.5]))[-1] == "healthy"
    found = judge(probed([0.2, 0.5, 0.7, 0.69, 0.5, 0.5, 0.5]), 500)
    assert found.state == "getting_worse" and "0.7 at step 100" in found.rule and "checkpoints/best" in found.advice
    assert states(probed([0.2, 0.5, 0.7, 0.69, 0.65, 0.65, 0.65]))[-1] == "healthy"


def test_without_a_probe_lidar_tells_after_a_tenth_of_the_run() -> None:
    falling = log(8, lambda step: {"lidar": 20.0 if step < 50 else 8.0 if step < 200 else 5.0})
    assert states(falling)[-1] == "getting_worse"
    early = log(8, lambda step: {"lidar": 20.0 if step < 50 else 8.0})
    assert states(early)[-1] == "healthy"  # untrained features tell clips apart too


def test_the_best_checkpoint_is_the_newest_that_is_not_told_worse() -> None:
    lidar = {0: 20.0, 50: 8.0, 100: 7.5, 150: 6.9, 200: 7.1}
    rows = log(5, lambda step: {"lidar": lidar[step]})
    places = [i for i, row in enumerate(rows) if "health/lidar" in row]
    assert [holds_its_best(rows[: i + 1], 500) for i in places] == [False, True, True, False, True]
    assert not holds_its_best(rows[: places[-1]], 500)  # a row that was not measured


def test_a_loss_that_rises_with_the_spread_is_normal_and_the_line_says_so() -> None:
    rows = log(6, lambda step: {"spread": 0.4 + step / 1000}, lambda step: 0.3 + step / 1000)
    found = judge(rows, 500)
    assert found.state == "healthy" and "the loss of prediction rises because the spread" in found.rule


def test_a_verdict_says_what_to_change_and_which_way() -> None:
    rows = log(8, lambda step: falls(step, 150, spread=0.04, effective_rank=2.0))
    line = str(judge(rows, 500))
    assert line.startswith("step 350: collapsing: spread 0.04 of 0.4") and "optim.lr a third" in line


def test_rows_of_other_sources_are_no_losses_of_data_train() -> None:
    rows = log(6, lambda step: {"spread": 0.4 + step / 1000}, lambda step: 0.3 + step / 1000)
    mixed = [row | ({"source": 1} if step % 2 else {}) for step, row in enumerate(rows)]
    assert judge(mixed, 500).state == "healthy"
