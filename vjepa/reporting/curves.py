"""Curves as SVG: readable without scripts, with their points beside them for whoever has scripts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np

from vjepa.page.document import data, folded, table, text

MOST_POINTS: Final = 1000  # of a series: of more, the least and the largest of each stretch
_WIDTH, _HEIGHT, _BROAD_HEIGHT = 420, 230, 300
_LEFT, _TOP, _MARGIN, _BOTTOM = 58, 10, 10, 26
_ROWS: Final = 12  # of the table behind a chart
_COLOURS, _DASHES = 8, 4
_MOST_DECADES: Final = 30


@dataclass(frozen=True)
class Series:
    """Hold a curve: x ascending, [n]; y [n], NaN where there is no number. half: of the interval of y, where known."""

    name: str
    x: np.ndarray
    y: np.ndarray
    half: np.ndarray | None = None


@dataclass(frozen=True)
class Chart:
    """Hold curves that share their axes. references: a level by its name, such as that of the untrained networks."""

    title: str
    series: tuple[Series, ...]
    along: str = "step"
    references: dict[str, float] = field(default_factory=dict)
    note: str = ""
    is_broad: bool = False
    is_log: bool = False


def draw(chart: Chart) -> str:
    """Draw a chart as a figure; nothing where no curve has a finite point."""
    series = [thin(one) for one in chart.series if np.isfinite(one.y).any()]
    if not series:
        return ""
    box = (_LEFT, _TOP, (2 if chart.is_broad else 1) * _WIDTH - _MARGIN, _height(chart) - _BOTTOM)
    frame = _Frame.of(series, chart, box)
    said = f"{chart.title}: {', '.join(one.name for one in series)} over {chart.along}"
    drawing = [
        f'<svg viewBox="0 0 {box[2] + _MARGIN} {_height(chart)}" role="img" tabindex="0" aria-label="{text(said)}">',
        f"<title>{text(said)}</title><desc>{text('; '.join(_ends(one) for one in series))}</desc>",
        f'<g class="ticks">{"".join(_level(frame, y) for y in frame.levels)}</g>',
        *(_along(frame, x) for x in nice_ticks(*frame.x, 5)),
        *(_reference(frame, y) for y in chart.references.values()),
        *(_band(frame, number, one) for number, one in enumerate(series) if one.half is not None),
        *(_line(frame, number, one) for number, one in enumerate(series)),
        "</svg>",
    ]
    broad = " broad" if chart.is_broad else ""
    return "\n".join(
        [
            f'<figure class="chart{broad}"><figcaption>{text(chart.title)}</figcaption>',
            *drawing,
            _legend(series, chart.references),
            f'<p class="note">{text(chart.note)}</p>' if chart.note else "",
            folded("as a table", _table(chart, series)),
            data("points", _points(frame, chart, series)),
            "</figure>",
        ]
    )


def thin(series: Series, most: int = MOST_POINTS) -> Series:
    """Keep about `most` points of a curve: of each stretch its least, its largest, and what is not finite."""
    num = len(series.x)
    if num <= most:
        return series
    edges = np.linspace(0, num, most // 2 + 1).astype(int)
    kept = {0, num - 1}
    for first, last in pairwise(edges.tolist()):
        part = series.y[first:last]
        finite = np.flatnonzero(np.isfinite(part))
        if len(finite) < len(part):
            kept.add(first + int(np.flatnonzero(~np.isfinite(part))[0]))
        if len(finite):
            kept |= {first + int(finite[part[finite].argmin()]), first + int(finite[part[finite].argmax()])}
    places = np.array(sorted(kept))
    return Series(series.name, series.x[places], series.y[places], None if series.half is None else series.half[places])


def nice_ticks(low: float, high: float, num: int) -> list[float]:
    """Choose about `num` round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / num
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Frame:
    """Hold where numbers lie in a drawing. box: left, top, right, bottom. x, y: the least and the largest that fit."""

    box: tuple[int, int, int, int]
    x: tuple[float, float]
    y: tuple[float, float]
    log_y: tuple[float, float] | None
    is_log: bool

    @classmethod
    def of(cls, series: Sequence[Series], chart: Chart, box: tuple[int, int, int, int]) -> _Frame:
        steps = np.concatenate([one.x for one in series])
        bands = [one.y + side * one.half for one in series if one.half is not None for side in (-1, 1)]
        values = np.concatenate([*(one.y for one in series), *bands, np.array(list(chart.references.values()))])
        values = values[np.isfinite(values)]
        left, right = float(steps.min()), float(steps.max())
        low, high = float(values.min()), float(values.max())
        room = 0.05 * (high - low) or max(abs(high), 1e-9) * 0.1
        positive = values[values > 0]
        log = len(positive) > 0 and low >= 0 and float(positive.max() / positive.min()) > 1.001
        log_y = (float(positive.min()) / 1.1, float(positive.max()) * 1.1) if log else None
        return cls(
            box,
            (left, right if right > left else left + 1),
            (low - room, high + room),
            log_y,
            chart.is_log and log_y is not None,
        )

    @property
    def ticks(self) -> list[float]:
        return nice_ticks(*self.y, 4)

    @property
    def levels(self) -> list[float]:
        """Give the ticks of the axis as it is drawn at first."""
        return (self.log_ticks if self.is_log else None) or self.ticks

    @property
    def log_ticks(self) -> list[float] | None:
        """List the powers of ten that fit; of less than two of them, twice and five times as well."""
        if self.log_y is None:
            return None
        low, high = (math.log10(value) for value in self.log_y)
        if high - low > _MOST_DECADES:
            return None
        times = (1, 2, 5) if high - low < 3 else (1,)
        decades = range(math.floor(low), math.ceil(high) + 1)
        found = [
            k * 10.0**power for power in decades for k in times if self.log_y[0] <= k * 10.0**power <= self.log_y[1]
        ]
        return found or list(self.log_y)

    def right(self, x: float) -> float:
        left, _, right, _ = self.box
        return left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (right - left)

    def down(self, y: float) -> float:
        _, top, _, bottom = self.box
        low, high = self.y
        if self.is_log and self.log_y:
            y, low, high = math.log10(y), math.log10(self.log_y[0]), math.log10(self.log_y[1])
        return bottom - (y - low) / (high - low) * (bottom - top)


def _height(chart: Chart) -> int:
    return _BROAD_HEIGHT if chart.is_broad else _HEIGHT


def _style(number: int) -> str:
    """Tell curves apart by their colour, and by their dashes, for who sees no colours."""
    return f"s{number % _COLOURS} d{number % _DASHES}"


def _line(frame: _Frame, number: int, series: Series) -> str:
    parts, is_drawn, is_dot = [], False, np.isfinite(series.y).sum() == 1
    for x, y in zip(series.x.tolist(), series.y.tolist(), strict=True):
        if math.isfinite(y):
            parts.append(f"{'L' if is_drawn else 'M'}{frame.right(x):.1f} {frame.down(y):.1f}")
        is_drawn = math.isfinite(y)
    shape = "".join(parts) + ("h.1" if is_dot else "")
    dot = ' stroke-linecap="round" style="stroke-width:6"' if is_dot else ""
    return f'<path class="line {_style(number)}" data-series="{number}" style="fill:none" d="{shape}"{dot}/>'


def _band(frame: _Frame, number: int, series: Series) -> str:
    half = np.nan_to_num(series.half if series.half is not None else np.zeros(len(series.y)))
    known = np.isfinite(series.y)
    above = zip(series.x[known], (series.y + half)[known], strict=True)
    below = zip(series.x[known][::-1], (series.y - half)[known][::-1], strict=True)
    corners = " ".join(f"{frame.right(x):.1f},{frame.down(y):.1f}" for x, y in [*above, *below])
    return f'<polygon class="band s{number % _COLOURS}" points="{corners}"/>'


def _level(frame: _Frame, y: float) -> str:
    left, _, right, _ = frame.box
    at = f"{frame.down(y):.1f}"
    line = f'<line class="grid" x1="{left}" x2="{right}" y1="{at}" y2="{at}"/>'
    return f'{line}<text x="{left - 6}" y="{frame.down(y) + 4:.1f}" text-anchor="end">{told(y)}</text>'


def _along(frame: _Frame, x: float) -> str:
    return f'<text x="{frame.right(x):.1f}" y="{frame.box[3] + 17}" text-anchor="middle">{told(x)}</text>'


def _reference(frame: _Frame, y: float) -> str:
    left, _, right, _ = frame.box
    at = f"{frame.down(y):.1f}"
    return f'<line class="reference" data-y="{y!r}" x1="{left}" x2="{right}" y1="{at}" y2="{at}"/>'


def _legend(series: Sequence[Series], references: dict[str, float]) -> str:
    def item(kind: str, name: str) -> str:
        line = f'<line class="{kind}" x1="0" x2="26" y1="4" y2="4"/>'
        return f'<li><svg viewBox="0 0 26 8" aria-hidden="true">{line}</svg>{text(name)}</li>'

    lines = [item(_style(number), one.name) for number, one in enumerate(series)]
    lines += [item("reference", f"{name}: {told(value)}") for name, value in references.items()]
    return f'<ul class="legend">{"".join(lines)}</ul>' if len(lines) > 1 else ""


def _table(chart: Chart, series: Sequence[Series]) -> str:
    """Write some of the points of every curve, evenly, the first and the last among them."""
    return table((chart.along, *(one.name for one in series)), list(_table_rows(series)), range(len(series) + 1))


def _table_rows(series: Sequence[Series]) -> Iterator[list[str]]:
    steps = np.unique(np.concatenate([one.x for one in series]))
    chosen = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _ROWS)).round().astype(int))]
    values = [dict(zip(one.x.tolist(), one.y.tolist(), strict=True)) for one in series]
    for step in chosen.tolist():
        yield [told(step), *(told(found[step]) if step in found else "" for found in values)]


def _ends(series: Series) -> str:
    finite = np.flatnonzero(np.isfinite(series.y))
    first, last = finite[0], finite[-1]
    lost = "" if len(finite) == len(series.y) else f", with {len(series.y) - len(finite)} values that are not finite"
    return (
        f"{series.name} from {told(series.y[first])} at {told(series.x[first])} to {told(series.y[last])} at "
        f"{told(series.x[last])}{lost}"
    )


def _points(frame: _Frame, chart: Chart, series: Sequence[Series]) -> dict[str, Any]:
    """Give what the script needs to show values and to draw on a logarithmic axis."""
    return {
        "along": chart.along,
        "box": frame.box,
        "x": frame.x,
        "y": frame.y,
        "ticks": frame.ticks,
        "logY": frame.log_y,
        "logTicks": frame.log_ticks,
        "isLog": frame.is_log,
        "series": [
            {"name": one.name, "x": [short(x) for x in one.x.tolist()], "y": [short(y) for y in one.y.tolist()]}
            for one in series
        ],
    }


def short(value: float) -> float | int | None:
    """Round to seven figures; None for what is no finite number, which JSON does not have."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.7g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def told(value: float) -> str:
    """Write a number for people."""
    if not math.isfinite(value):
        return "not finite"
    return f"{int(value)}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.4g}"
