"""Choose which curves of a log are drawn, on which axes: of one run each loss apart, of several one axis a measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from vjepa.reporting import record
from vjepa.reporting.curves import Chart, Series, draw
from vjepa.reporting.record import RunRecord

_SCHEDULES: Final = {"lr": "learning rate", "weight_decay": "weight decay", "ema_decay": "EMA decay"}
_SPEED: Final = {"clips_per_s": "clips per second", "loader_wait": "share of the time that clips are waited for"}
_HEALTH: Final = {
    "health/effective_rank": "effective rank of the features of clips",
    "health/spread": "spread of the targets",
    "health/skill": "skill of the predictions: 0 is a constant, 1 is perfect",
    "health/place_skill": "skill beyond knowing the place",
    "health/feature_std": "deviation of the features over clips",
    "health/lidar": "LiDAR",
    "health/held_out_loss": "loss of prediction on held-out clips",
    "health/fixed_loss": "loss of prediction on fixed clips",
    "health/mean_cosine": "mean cosine of the features of two clips",
    "health/position_share": "share of the variance of targets that is between places",
    "health/encoder_distance": "distance of the two encoders",
}
_FACTS: Final = {"step", "source", "num_replaced", *_SCHEDULES, *_SPEED}
_HALVES: Final = "_half"
_MOST_OTHERS: Final = 24


def training(records: Sequence[RunRecord]) -> str:
    """Draw loss and terms, then schedules, gradients and speed."""
    if len(records) == 1:
        (one,) = records
        terms = [name for name in _named(records) if _is_term(name)]
        sources = sorted({int(row.get("source", 0)) for row in one.rows})
        curves = [_series(one, name, name) for name in terms]
        curves += [_series(one, "loss", f"loss of data.mix.{source - 1}", source) for source in sources if source]
        drawn = [draw(Chart("loss and its terms, each before its weight", tuple(curves), is_broad=True))]
    else:
        terms = [name for name in _named(records) if _is_term(name)]
        drawn = [draw(_overlaid(records, name, name, is_broad=name == "loss")) for name in terms]
    others = {name: name for name in _named(records) if name.startswith("gradient/")}
    for name, title in (_SCHEDULES | others | _SPEED).items():
        drawn.append(draw(_overlaid(records, name, title)))
    return _side_by_side(drawn)


def health(records: Sequence[RunRecord]) -> str:
    """Draw what the monitor measured, beside the level of the untrained networks, and the online probe."""
    drawn = [draw(_overlaid(records, name, title, with_untrained=True)) for name, title in _HEALTH.items()]
    probed = [name for name in _named(records) if name == "knn" or name.startswith(("knn/", "selection_"))]
    drawn += [draw(_overlaid(records, name, f"online probe: {name}")) for name in probed]
    return _side_by_side(drawn)


def others(records: Sequence[RunRecord]) -> str:
    """Draw whatever else was logged."""
    known = {*_HEALTH, *_FACTS}
    left = [name for name in _named(records) if name not in known and not _is_term(name)]
    left = [
        name for name in left if not name.startswith(("gradient/", "knn", "selection_")) and not name.endswith(_HALVES)
    ]
    return _side_by_side([draw(_overlaid(records, name, name.removeprefix("health/"))) for name in left[:_MOST_OTHERS]])


def _is_term(name: str) -> bool:
    return "/" not in name and name not in _FACTS and not name.startswith(("knn", "selection_"))


def _named(records: Sequence[RunRecord]) -> list[str]:
    """List what is logged, in the order of the log."""
    return list(dict.fromkeys(name for one in records for row in one.rows for name in row))


def _overlaid(
    records: Sequence[RunRecord], name: str, title: str, *, with_untrained: bool = False, is_broad: bool = False
) -> Chart:
    """Draw one measure of every run on the same axes. Of one run the untrained level stands beside it."""
    words = [title] if len(records) == 1 else record.names(records)
    series = tuple(_series(one, name, word) for one, word in zip(records, words, strict=True))
    references = {}
    if with_untrained and len(records) == 1:
        first = next((row for row in records[0].rows if row["step"] == 0 and name in row), None)
        references = {"untrained": first[name]} if first and np.isfinite(first[name]) else {}
    return Chart(title, series, references=references, is_broad=is_broad)


def _series(one: RunRecord, name: str, word: str, source: int = 0) -> Series:
    """Take one column of the log: that of data.train, or of a source of the mix."""
    rows = [row for row in one.rows if name in row and ("/" in name or int(row.get("source", 0)) == source)]
    half = f"{name}{_HALVES}"
    halves = np.array([row.get(half, np.nan) for row in rows]) if any(half in row for row in rows) else None
    return Series(word, np.array([row["step"] for row in rows], float), np.array([row[name] for row in rows]), halves)


def _side_by_side(drawn: Sequence[str]) -> str:
    inside = "\n".join(one for one in drawn if one)
    return f'<div class="charts">\n{inside}\n</div>' if inside else ""
