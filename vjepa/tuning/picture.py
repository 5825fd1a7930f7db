"""The picture of a search: score against each knob, how much each knob explains, scores while trials ran."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from vjepa.reporting.pictures import new_figure
from vjepa.tuning.results import Result, best_of
from vjepa.tuning.space import Knob

_COLUMNS = 3


def save_picture(path: Path, found: Sequence[Result], knobs: Sequence[Knob]) -> None:
    """Draw the trials that have a score. One panel a knob; then |Spearman's correlation| of each with the score over
    trials that came to their end; then all curves. The best is red, the config as it was a star.
    """
    shown = [one for one in found if one.score is not None]
    rows = -(-(len(knobs) + 2) // _COLUMNS)
    figure = new_figure(4.0 * _COLUMNS, 2.8 * rows)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    best = best_of(found)
    for axes, knob in zip(panels, knobs, strict=False):
        _scatter(axes, shown, knob, best)
    _importance(panels[len(knobs)], shown, knobs)
    _curves(panels[len(knobs) + 1], shown, best)
    for axes in panels[len(knobs) + 2 :]:
        axes.remove()
    figure.suptitle(f"{len(found)} trials, {sum(one.ending == 'complete' for one in found)} came to their end")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _scatter(axes: Any, shown: Sequence[Result], knob: Knob, best: Result | None) -> None:
    for one in shown:
        is_done = one.ending == "complete"
        colour = "tab:red" if one is best else "tab:blue" if is_done else "#bbbbbb"
        size = 120 if one.is_own else 30
        axes.scatter(one.values[knob.name], one.score, s=size, color=colour, marker="*" if one.is_own else "o")
    axes.set(xlabel=knob.name, ylabel="score", xscale="log" if knob.is_log else "linear")
    axes.grid(alpha=0.3)


def _importance(axes: Any, shown: Sequence[Result], knobs: Sequence[Knob]) -> None:
    done = [one for one in shown if one.ending == "complete"]
    shares = [0.0 if len(done) < 3 else _correlation(done, knob) for knob in knobs]
    axes.barh([knob.name for knob in knobs], np.abs(shares), color="tab:blue")
    axes.set(xlabel="|rank correlation with the score|", xlim=(0, 1))


def _correlation(done: Sequence[Result], knob: Knob) -> float:
    values, scores = [one.values[knob.name] for one in done], [one.score for one in done]
    if len(set(values)) < 2 or len(set(scores)) < 2:
        return 0.0
    return float(spearmanr(values, scores).statistic)


def _curves(axes: Any, shown: Sequence[Result], best: Result | None) -> None:
    for one in shown:
        colour, width = ("tab:red", 2.0) if one is best else ("black", 2.0) if one.is_own else ("#999999", 1.0)
        axes.plot(list(one.curve), list(one.curve.values()), color=colour, linewidth=width)
    axes.set(xlabel="step", ylabel="score", title="red: the best; black: the config as it was")
    axes.grid(alpha=0.3)
