"""Judge a run by its log: pure rules over the rows of metrics.jsonl, one verdict, and what to do about it.

A row is what was logged of one step: `step`, `loss` and its terms on log steps, `health/...` where the monitor measured
(the first of them the untrained networks, at step 0), `knn` where the online probe did. Measures are compared with
their own maximum in this run, the untrained networks included, never with a number of features or a rank alone: what is
much for one data set is little for another. Thresholds are those of tests/benchmarks/doctor.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final, NamedTuple

from vjepa.config import HealthState

Row = Mapping[str, float]

FALLEN: Final = {"spread": 0.2, "feature_std": 0.2, "effective_rank": 0.4}  # of their maximum
SINKING: Final = 1 / 3  # of the maximum of any of them: watch; of the rank, where it lasts: a partial collapse
NO_SKILL: Final = 0.05
NO_SKILL_OF_FIXED: Final = 0.01  # of targets that nobody trains, pixels: most of them is what no one can tell
ONLY_POSITIONS: Final = 0.9
ALIKE: Final = 0.02  # deviation of features at which clips are hardly told apart
LASTING: Final = 0.1  # of the run; what is low in warm-up is so for less
OVERFIT: Final = 1.2
_SHARP: Final = 3 * 1.4826  # median absolute deviations: 3 standard deviations of a normal distribution
_RUNNING: Final = {"collapsing": 2, "getting_worse": 3}


@dataclass(frozen=True)
class Verdict:
    """Say how a run does at a step: the rule that fired, with its numbers, and which setting to change which way."""

    state: HealthState
    rule: str
    advice: str
    step: int

    def __str__(self) -> str:
        said = f"step {self.step}: {self.state.replace('_', ' ')}: {self.rule}"
        return f"{said}; {self.advice}" if self.advice else said


def judge(rows: Sequence[Row], total_steps: int) -> Verdict:
    """Judge a run of `total_steps` by its rows so far, in order of steps. The first rule that fires gives the verdict.

    Without any row of the monitor it is healthy, at step 0, for all that is known.
    """
    history = History.of(rows, total_steps)
    if not history.measured:
        return Verdict("healthy", "nothing was measured", "", 0)
    step = int(history.measured[-1]["step"])
    for state, rule, advice in RULES:
        if said := rule(history):
            return Verdict(state, said, advice, step)
    return Verdict("healthy", _as_it_should(history), "", step)


def has_collapsed(features: Mapping[str, float], best: Mapping[str, float]) -> bool:
    """Tell whether two measures of `FALLEN` have fallen below their share of what they are in `best`, or all clips
    have one feature. Measures that either mapping lacks do not count.
    """
    return features["effective_rank"] == 0 or len(fallen(features, best)) >= 2


def fallen(features: Mapping[str, float], best: Mapping[str, float]) -> list[str]:
    """List the measures of `FALLEN` that are below their share of what they are in `best`."""
    return [name for name, share in FALLEN.items() if name in features and features[name] < share * best.get(name, 0)]


def holds_its_best(rows: Sequence[Row], total_steps: int) -> bool:
    """Tell whether LiDAR, measured in the last row, is not below its best so far by more than twice the half-interval
    of that; see `History.scores`.
    """
    scores = History.of(rows, total_steps).scores("lidar")
    if not scores or scores[-1].step != rows[-1]["step"]:
        return False
    return scores[-1].value >= max(scores, key=lambda score: score.value).least


class Score(NamedTuple):
    """Hold a measure of quality at a step, and half of its 95 % interval."""

    step: float
    value: float
    half: float

    @property
    def least(self) -> float:
        """Give what is not told apart from it."""
        return self.value - 2 * self.half


@dataclass(frozen=True)
class History:
    """Hold what the rules look at. measured: rows of the monitor, `health/` left out. losses: step -> training loss,
    of prediction where there is one. probed: rows of the online probe.
    """

    measured: list[dict[str, float]]
    losses: dict[int, float]
    probed: list[Row]
    total_steps: int

    @classmethod
    def of(cls, rows: Sequence[Row], total_steps: int) -> History:
        """Sort the rows of metrics.jsonl by what they tell; losses are those of data.train."""
        own = [row for row in rows if "loss" in row and not row.get("source")]
        return cls(
            [_plain(row) for row in rows if "health/spread" in row],
            {int(row["step"]): row.get("prediction", row["loss"]) for row in own},
            [row for row in rows if "knn_half" in row],
            total_steps,
        )

    @property
    def last(self) -> dict[str, float]:
        return self.measured[-1]

    def best(self, until: int | None = None) -> dict[str, float]:
        """Give the largest value so far of each measure of `FALLEN`, of the first `until` measurements.

        Of targets that nobody trains the spread tells nothing: it is left out.
        """
        seen = self.measured[:until]
        return {name: max(row[name] for row in seen) for name in FALLEN if self.moves or name != "spread"}

    @property
    def moves(self) -> bool:
        """Tell whether targets change, because someone trains what makes them."""
        return len({row["spread"] for row in self.measured}) > 1

    @property
    def least_skill(self) -> float:
        """Give the skill below which there is none."""
        return NO_SKILL if self.moves else NO_SKILL_OF_FIXED

    def lasts(self, name: str) -> list[float]:
        """List a measure over the last tenth of the run, three times at least; nothing where it is not known so long,
        or was not measured.
        """
        since = self.last["step"] - LASTING * self.total_steps
        num = max(3, sum(row["step"] >= since for row in self.measured))
        values = [row[name] for row in self.measured[-num:] if name in row and row["step"] > 0]
        return values if len(values) == num else []

    def scores(self, name: str) -> list[Score]:
        """List `knn` of the online probe, or `lidar`, which counts from a tenth of the run on: untrained features tell
        clips apart by what nobody needs.
        """
        if name == "knn":
            return [Score(row["step"], row["knn"], row["knn_half"]) for row in self.probed]
        rows = [row for row in self.measured if "lidar" in row and row["step"] >= LASTING * self.total_steps]
        return [Score(row["step"], row["lidar"], row["lidar_half"]) for row in rows]

    def loss_before(self, place: int) -> float | None:
        """Give the median of the losses since the measurement before number `place`, up to it."""
        first, last = (self.measured[place + i]["step"] for i in (-1, 0))
        found = [loss for step, loss in self.losses.items() if first < step <= last]
        return median(found) if found else None


def _collapsing(history: History) -> str | None:
    if history.measured[0]["effective_rank"] == history.last["effective_rank"] == 0:
        return "all clips have the same feature, before the first step already: the clips of data.train may be equal"
    num = _RUNNING["collapsing"]
    ends = range(len(history.measured) - num, len(history.measured))
    if ends[0] < 0 or not all(_has_fallen(history, end) for end in ends):
        return None
    best = history.best()
    shares = ", ".join(f"{_NAMES[name]} {history.last[name]:.3g} of {best[name]:.3g}" for name in best)
    return f"{shares} at their best, {num} times running"


def _has_fallen(history: History, place: int) -> bool:
    """Look for two signs: measures that have fallen, and predictions without skill. Where the targets never change the
    deviation is sign enough.
    """
    best, row = history.best(place + 1), history.measured[place]
    signs = fallen(row, best)
    is_alone = "feature_std" in signs and "spread" not in best
    is_blind = bool(signs) and row.get("skill", 1) < history.least_skill
    return row["effective_rank"] == 0 or is_alone or len(signs) + is_blind >= 2


def _partly_collapsed(history: History) -> str | None:
    """Look for a rank that halves within two measurements while the loss drops more than it ever does."""
    losses = [history.loss_before(place) for place in range(1, len(history.measured))]
    known = [loss for loss in losses if loss is not None]
    ranks = [row["effective_rank"] for row in history.measured]
    if len(known) < len(losses) or len(losses) < 7 or ranks[-1] > 0.5 * max(ranks[-4:-1]):
        return None
    changes = [after - before for before, after in pairwise(known)]
    usual = median(changes[:-2])
    scale = median(abs(change - usual) for change in changes[:-2])
    if min(changes[-2:]) >= usual - _SHARP * scale:
        return None
    return f"rank {max(ranks[-4:-1]):.1f} -> {ranks[-1]:.1f} while the loss drops {min(changes[-2:]):+.3g} at once"


def _stays_low(history: History) -> str | None:
    """Look for a rank that fell and stays where it is, whatever the predictions are worth."""
    ranks, best = history.lasts("effective_rank"), history.best()["effective_rank"]
    if not ranks or max(ranks) >= SINKING * best:
        return None
    return f"rank {ranks[-1]:.1f}, {len(ranks)} times running under a third of its maximum, {best:.1f}"


def _only_positions(history: History) -> str | None:
    """Look for targets that vary by place alone, in features that hardly tell clips apart: a background that stands
    still makes the former by itself.
    """
    shares, skills = history.lasts("position_share"), history.lasts("place_skill")
    is_alike = history.last["feature_std"] < max(ALIKE, SINKING * history.best()["feature_std"])
    if not shares or min(shares) <= ONLY_POSITIONS or not skills or _is_skill(skills, NO_SKILL) or not is_alike:
        return None
    return f"{shares[-1]:.0%} of the variance of targets is between places, and predictions tell no more than the place"


def _without_skill(history: History) -> str | None:
    skills = history.lasts("skill")
    if not skills or _is_skill(skills, history.least_skill):
        return None
    return f"skill {skills[-1]:.2f}: predictions are no better than a constant, of loss {history.last['spread']:.3g}"


def _is_skill(skills: Sequence[float], least: float) -> bool:
    """Tell whether there is some, or it is on its way: it rose twice running."""
    return max(skills) >= least or min(after - before for before, after in pairwise(skills[-3:])) > 0.001


def _overfitting(history: History) -> str | None:
    """Look at held-out clips alone, and at the loss as a share of the spread too, with which it may rise."""
    rows = [row for row in history.measured if "held_out_loss" in row and row["step"] > 0]
    if len(rows) < 3:
        return None
    least = min(rows, key=lambda row: row["held_out_loss"])
    now = history.measured.index(rows[-1]), history.measured.index(least)
    before, after = history.loss_before(now[1]), history.loss_before(now[0])
    rises = all(
        row["held_out_loss"] > OVERFIT * least["held_out_loss"] and 1 - row["skill"] > OVERFIT * (1 - least["skill"])
        for row in rows[-2:]
    )
    if not rises or before is None or after is None or after >= before:
        return None
    held, trained = rows[-1]["held_out_loss"], f"{before:.3g} -> {after:.3g}"
    return f"held-out loss {least['held_out_loss']:.3g} at step {least['step']:.0f}, now {held:.3g}; training {trained}"


def _getting_worse(history: History) -> str | None:
    name, num = ("knn" if history.probed else "lidar"), _RUNNING["getting_worse"]
    scores = history.scores(name)
    if len(scores) <= num:
        return None
    best = max(scores, key=lambda score: score.value)
    if any(score.value >= best.least for score in scores[-num:]):
        return None
    said = "the online probe reads" if history.probed else "LiDAR is"
    return (
        f"{said} {scores[-1].value:.3g}, {num} times running under {best.least:.3g}, twice the half-interval below its "
        f"best, {best.value:.3g} at step {best.step:.0f}"
    )


def _sinking(history: History) -> str | None:
    best = history.best()
    low = {name: history.last[name] / top for name, top in best.items() if top > 0}
    name = min(low, key=lambda name: low[name], default=None)
    if name is None or low[name] >= SINKING:
        return None
    return f"{_NAMES[name]} {history.last[name]:.3g} is {low[name]:.0%} of its maximum"


def _as_it_should(history: History) -> str:
    row = history.last
    said = f"rank {row['effective_rank']:.1f}, spread {row['spread']:.3g}"
    if "skill" not in row:
        return said
    said += f", skill {row['skill']:.2f}"
    if len(history.measured) < 4:
        return said
    before, after = history.loss_before(-3), history.loss_before(-1)
    rises = before is not None and after is not None and after > before
    if rises and row["spread"] > history.measured[-3]["spread"]:
        said += "; the loss of prediction rises because the spread of its targets does, which is normal"
    return said


def _plain(row: Row) -> dict[str, float]:
    return {name.removeprefix("health/"): value for name, value in row.items()}


_NAMES: Final = {"spread": "spread", "feature_std": "std", "effective_rank": "rank"}

RULES: Final[tuple[tuple[HealthState, Callable[[History], str | None], str], ...]] = (
    (
        "collapsing",
        _collapsing,
        "start again with optim.lr a third, or optim.ema_decay nearer to 1, or objective.vicreg_variance 1 and "
        "vicreg_covariance .5; it does not come back by itself",
    ),
    (
        "partial_collapse",
        _partly_collapsed,
        "go on from an earlier checkpoint (run.init_from) with optim.lr a third, or raise objective.vicreg_covariance",
    ),
    (
        "partial_collapse",
        _stays_low,
        "start again with optim.lr a third, or raise objective.vicreg_covariance",
    ),
    (
        "positions_only",
        _only_positions,
        "show what differs: smaller data.crop_scale, model.input: changes where the background stands still, or other "
        "clips",
    ),
    (
        "no_skill",
        _without_skill,
        "lower optim.lr, raise optim.ema_decay, or hide less (masks.0.ratio); where targets are noise nothing helps",
    ),
    (
        "overfitting",
        _overfitting,
        "train for fewer steps, on more clips, with smaller data.crop_scale or more model.encoder.drop_path",
    ),
    (
        "getting_worse",
        _getting_worse,
        "take checkpoints/best; next time lower optim.lr or raise objective.vicreg_variance",
    ),
    ("watch", _sinking, "if it goes on, lower optim.lr or raise optim.ema_decay"),
)
