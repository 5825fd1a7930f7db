"""Draw what a classifier answers: frames of each clip beside bars of its most probable classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vjepa.reporting.pictures import new_figure

_FRAMES: Final = 4
_CHARS: Final = 22


@dataclass(frozen=True)
class Strip:
    """Hold the frames of a clip, uint8 [T, S, S, 3], where it is, and its answers, each with class and probability."""

    frames: np.ndarray
    name: str
    answers: Sequence[Mapping[str, Any]]


def draw_answers(path: Path, strips: Sequence[Strip]) -> None:
    """Draw a row for each clip: at most 4 of its frames, evenly in time, then a bar for each answer."""
    columns = max(min(_FRAMES, len(strip.frames)) for strip in strips)
    figure = new_figure(1.5 * columns + 4.0, 1.7 * len(strips) + 0.3)
    grid = figure.subplots(len(strips), columns + 1, squeeze=False, width_ratios=[*[1.0] * columns, 1.6])
    for strip, line in zip(strips, grid, strict=True):
        shown = np.linspace(0, len(strip.frames) - 1, columns).round().astype(int)
        for axes, number in zip(line, shown, strict=False):
            axes.imshow(strip.frames[number], interpolation="nearest")
            axes.set_axis_off()
        line[0].set_title(_cut(strip.name, 60), fontsize=7, loc="left")
        bars, shares = line[-1], [float(one["probability"]) for one in strip.answers]
        bars.barh(range(len(shares)), shares, color="#4878a8")
        bars.set(xlim=(0, 1), xticks=[], ylim=(len(shares) - 0.4, -0.6))
        names = [
            f"{_cut(str(one['class']), _CHARS)} {share:.2f}" for one, share in zip(strip.answers, shares, strict=True)
        ]
        bars.set_yticks(range(len(shares)), names, fontsize=7)
        bars.spines[["top", "right", "bottom"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


def _cut(text: str, num_chars: int) -> str:
    """Keep the end of a long path, which tells files apart."""
    return text if len(text) <= num_chars else f"…{text[1 - num_chars :]}"
