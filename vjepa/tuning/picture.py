"""The picture of a search: score against each knob, how much each knob explains, scores while trials ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.ticker import NullFormatter

from vjepa.reporting.pictures import new_figure
from vjepa.tuning.results import Result, best_of, short_name
from vjepa.tuning.space import Knob

_COLUMNS: Final = 3


def save_picture(path: Path, found: Sequence[Result], knobs: Sequence[Knob], importance: Mapping[str, float]) -> None:
    """Draw the trials that have a score: one panel a knob, then the share of the differences in score that each
    explains (`importance`), then all curves. The best is red, the config as it was a star.
    """
    shown = [one for one in found if one.score is not None]
    rows = -(-(len(knobs) + 2) // _COLUMNS)
    figure = new_figure(4.2 * _COLUMNS, 3.0 * rows)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    best = best_of(found)
    for axes, knob in zip(panels, knobs, strict=False):
        _scatter(axes, shown, knob, best)
    _bars(panels[len(knobs)], importance)
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
        marker, size = ("*", 120) if one.is_own else ("o", 30)
        axes.scatter(knob.clamp(one.values[knob.name]), one.score, s=size, color=colour, marker=marker)
    axes.set(xlabel=short_name(knob.name), ylabel="score", xscale="log" if knob.is_log else "linear")
    axes.set_xlim(*_margin(knob))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _margin(knob: Knob) -> tuple[float, float]:
    """Give the range of a knob, and a little more on both sides."""
    if not knob.is_log:
        return knob.low - 0.02, knob.high + 0.02
    return knob.low / 1.3, knob.high * 1.3


def _bars(axes: Any, importance: Mapping[str, float]) -> None:
    if not importance:
        axes.text(0.5, 0.5, "too few trials", ha="center", va="center", transform=axes.transAxes)
    names = list(importance)[::-1]
    axes.barh([short_name(name) for name in names], [importance[name] for name in names], color="tab:blue")
    axes.set(xlabel="share of the score's variance (fANOVA)", xlim=(0, 1))


def _curves(axes: Any, shown: Sequence[Result], best: Result | None) -> None:
    for one in shown:
        colour, width = ("tab:red", 2.0) if one is best else ("black", 2.0) if one.is_own else ("#999999", 1.0)
        axes.plot(list(one.curve), list(one.curve.values()), color=colour, linewidth=width)
    axes.set(xlabel="step", ylabel="score", title="red: the best; black: the config as it was")
    axes.grid(alpha=0.3)
