"""What a search found: one line of trials.jsonl for each trial, a table, the config to use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from vjepa import config, files

_SHOWN: Final = 12  # trials in the table


@dataclass(frozen=True)
class Result:
    """Hold what is known of a trial. values: of the knobs. curve: step -> score."""

    number: int
    ending: str
    seconds: float | None
    values: dict[str, float]
    is_own: bool
    verdict: str
    curve: dict[int, float]

    @property
    def score(self) -> float | None:
        """Give the last score."""
        return list(self.curve.values())[-1] if self.curve else None

    @property
    def name(self) -> str:
        return f"{self.number}, the config as it is" if self.is_own else str(self.number)


def rounded(value: float) -> float:
    """Keep three digits."""
    return float(f"{value:.3g}")


def best_of(found: Sequence[Result]) -> Result | None:
    """Find the best of the trials that came to their end; of equal ones the first."""
    return max((one for one in found if one.ending == "complete"), key=lambda one: one.score or 0.0, default=None)


def write_rows(folder: Path, found: Sequence[Result]) -> None:
    """Write trials.jsonl."""
    lines = (json.dumps({**asdict(one), "score": one.score}) for one in found)
    files.write_text(folder / "trials.jsonl", "".join(f"{line}\n" for line in lines))


def line(found: Sequence[Result], number: int) -> str:
    """Say how a trial ended, and which is the best."""
    last, best = next(one for one in found if one.number == number), best_of(found)
    told = f"; best so far {best.score:.4g}, trial {best.number}" if best else ""
    return f"trial {last.name}: {_score(last)} {last.ending}; {_values(last.values)}{told}"


def table(found: Sequence[Result]) -> str:
    """Lay out the best trials, those that came to their end first, and the config as it is."""
    order = sorted(found, key=lambda one: (one.ending != "complete", -(one.score or 0.0)))
    shown = [one for place, one in enumerate(order) if place < _SHOWN or one.is_own]
    names = list(shown[0].values) if shown else []
    rows = [["trial", "score", *(short_name(name) for name in names), "ended"]]
    for one in shown:
        values = (f"{one.values[name]:.3g}" if name in one.values else "" for name in names)
        rows.append([f"{one.number}{' (own)' if one.is_own else ''}", _score(one), *values, one.ending])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write_config(
    path: Path, tuned: config.Config, best: Result, found: Sequence[Result], score: str, command: str
) -> None:
    """Write the complete config that the search would use, for a run of its own beside that of the config it began
    from. Its first lines say where it comes from.
    """
    own = next((one for one in found if one.is_own), None)
    run = tuned.run.model_copy(update={"dir": f"{tuned.run.dir}-tuned"})
    head = [
        f"python -m vjepa.train {path}",
        f"Written by {command}",
        f"Score ({score}): {_score(best)}, trial {best.name}; the config as it was: {_score(own) if own else '-'}. "
        f"{len(found)} trials, {sum(one.ending == 'complete' for one in found)} of which came to their end.",
        _values(best.values),
    ]
    lines = "".join(f"# {line}\n" for line in head)
    files.write_text(path, lines + config.dump(tuned.model_copy(update={"run": run})))


def _score(one: Result) -> str:
    return "-" if one.score is None else f"{one.score:.4g}"


def _values(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def short_name(name: str) -> str:
    """Name a knob in a table or a picture."""
    return name.rpartition(".")[2] if not name.startswith("masks") else "mask ratio"
