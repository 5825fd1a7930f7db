"""What a run has written so far, read from its files alone, whatever state they are in: finished, crashed, running."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from vjepa import config
from vjepa.config import ConfigError
from vjepa.errors import UserError
from vjepa.health.verdict import Verdict, judge
from vjepa.reporting import shown, tables
from vjepa.reporting.shown import Shown
from vjepa.run_folder import RunFolder

Row = dict[str, float]
State = Literal["finished", "running", "unfinished"]
_SLOW_LOADER: Final = 0.3  # share of the time that is waited for clips, at which more workers are advised
_BESIDE: Final = ("random_init", "pixels", "motion_energy")


@dataclass
class RowReader:
    """Read metrics.jsonl as it grows. offset: bytes that are read. damaged: lines that are none of a log."""

    run: RunFolder
    rows: list[Row]
    offset: int = 0
    damaged: int = 0

    @classmethod
    def of(cls, run: RunFolder) -> RowReader:
        return cls(run, [])

    def read_on(self) -> bool:
        """Read the whole lines that are new; from the start where a resumed run wrote the file anew. Tell whether
        there was something.
        """
        try:
            size = self.run.metrics.stat().st_size
        except OSError:
            return False
        if size < self.offset:
            self.rows, self.offset, self.damaged = [], 0, 0
        with self.run.metrics.open("rb") as file:
            file.seek(self.offset)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        for line in new.splitlines():
            row = _row(line)
            if row is None:
                self.damaged += bool(line.strip())
            else:
                self.rows.append(row)
        self.offset += len(new)
        return bool(new)


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
        step = row.pop("step")
        return {"step": int(step), **{name: float(value) for name, value in row.items() if value is not None}}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class RunRecord:
    """Hold what there is. tree: the config as it was written; settings: the same, where this version can read it.

    summary: empty before the end. problems: files that cannot be read, one line each.
    """

    folder: RunFolder
    log: RowReader
    tree: dict[str, Any]
    settings: config.Config | config.FinetuneConfig | config.WorldConfig | None
    summary: dict[str, Any]
    environment: dict[str, Any]
    shown: Shown | None
    is_running: bool
    problems: tuple[str, ...]

    @classmethod
    def read(cls, run: RunFolder, log: RowReader | None = None) -> RunRecord:
        """Read the folder of a run. Raises UserError for one that is none."""
        if not run.config.is_file():
            raise UserError(f"{run.path}: not a run folder, it has no config.yaml; name one that vjepa.train made")
        problems: list[str] = []
        tree, settings = _config(run, problems)
        summary, environment = (_json(path, problems) for path in (run.summary, run.environment))
        kept = shown.read(run.shown)
        if kept is None and run.shown.is_file():
            problems.append(f"{run.shown.name}: damaged, or of another version; the same command makes it anew")
        log = log or RowReader.of(run)
        log.read_on()
        if log.damaged:
            problems.append(f"{run.metrics.name}: {log.damaged} of its lines cannot be read")
        return cls(run, log, tree, settings, summary, environment, kept, run.is_in_use, tuple(problems))

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name

    @property
    def rows(self) -> list[Row]:
        return self.log.rows

    @property
    def step(self) -> int:
        """Give the last step that was logged."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def total_steps(self) -> int | None:
        """Give the steps of the whole run; None where they are counted in epochs and it has not ended."""
        steps = self.tree.get("optim", {}).get("total_steps") or self.summary.get("steps")
        return int(steps) if steps else None

    @property
    def state(self) -> State:
        if self.is_running:
            return "running"
        return "finished" if "steps" in self.summary else "unfinished"

    @property
    def is_finetuning(self) -> bool:
        return "finetune" in self.tree

    @property
    def command(self) -> str:
        return "vjepa.finetune" if self.is_finetuning else "vjepa.train"

    @property
    def verdict(self) -> Verdict | None:
        """Judge by the log; None for fine-tuning, which is judged by its probe, and before the first measurement."""
        if "verdict" in self.summary and not self.is_running:
            return Verdict(**self.summary["verdict"])
        if self.is_finetuning or not any("health/spread" in row for row in self.rows):
            return None
        return judge(self.rows, self.total_steps or self.step)

    @property
    def not_finite(self) -> dict[str, int]:
        """Name what was logged as NaN or infinite, with the first step at which it was."""
        found: dict[str, int] = {}
        for row in self.rows:
            for name, value in row.items():
                if not math.isfinite(value):
                    found.setdefault(name, int(row["step"]))
        return found

    def headline(self) -> str:
        """Say in one line how the run does."""
        total = f" of {self.total_steps}" if self.total_steps else ""
        if lost := self.not_finite:
            name, step = next(iter(lost.items()))
            return f"{name} is not finite from step {step} on"
        verdict = self.verdict
        told = verdict.state.replace("_", " ") if verdict else "no verdict: nothing was measured yet"
        if self.is_finetuning:
            told = "fine-tuning"
        where = {"finished": f"finished, {self.step} steps", "running": f"running, step {self.step}{total}"}
        return f"{told}; {where.get(self.state, f'ended at step {self.step}{total}, before its end')}"

    def first(self) -> list[str]:
        """List what to do, the most urgent first; nothing where all is well."""
        told = [f"{name} is not finite from step {step} on: lower optim.lr or set optim.clip_grad; the checkpoints "
                "before it are untouched" for name, step in list(self.not_finite.items())[:1]]  # fmt: skip
        verdict = self.verdict
        if verdict and verdict.advice:
            told.append(f"{verdict.rule}: {verdict.advice}")
        if self.state == "unfinished":
            told.append(f"go on from the last checkpoint: python -m {self.command} --config {self.folder.config}")
        told += list(self.problems)
        told += _no_better(self.summary.get("probes", {}))
        if num := self.summary.get("num_replaced") or (self.rows[-1].get("num_replaced") if self.rows else 0):
            told.append(f"{num:g} training clips could not be read and were replaced; index their files again")
        if self.summary.get("num_unreadable"):
            told.append(f"{self.summary['num_unreadable']} clips to measure on could not be read and were left out")
        waits = sorted(row["loader_wait"] for row in self.rows if "loader_wait" in row)
        if waits and (share := waits[len(waits) // 2]) > _SLOW_LOADER:
            told.append(f"clips are waited for {share:.0%} of the time: raise data.workers, or transcode the videos")
        return told


def _no_better(probes: Mapping[str, Any]) -> list[str]:
    """Name the labels whose linear probe is not told apart from a baseline: intervals that overlap."""
    told = []
    for label, entries in probes.items():
        shares = tables.first_measures(entries["linear"])
        trained = shares["trained"]
        better = [
            name for name in _BESIDE if trained and (other := shares.get(name)) and other["high"] >= trained["low"]
        ]
        if better:
            names = " and ".join(tables.KINDS[name] for name in better)
            told.append(f"{label}: a linear probe reads no more from the trained encoder than from {names}")
    return told


def _config(
    run: RunFolder, problems: list[str]
) -> tuple[dict[str, Any], config.Config | config.FinetuneConfig | config.WorldConfig | None]:
    """Read the config: as it stands, and as settings; what is wrong with it joins `problems`."""
    try:
        tree = config.read_tree(run.config)
    except (UserError, OSError) as error:
        problems.append(f"config: {error}")
        return {}, None
    try:
        return tree, config.load_run(run.config)
    except ConfigError as error:
        problems.append(f"config: {error}")
        return tree, None


def _json(path: Any, problems: list[str]) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: cannot be read ({error})")
        return {}
    return found if isinstance(found, dict) else {}


def names(records: Sequence[RunRecord]) -> list[str]:
    """Tell runs apart: by their folder names, or where two have one name by their paths."""
    short = [record.name for record in records]
    return short if len(set(short)) == len(short) else [str(record.folder.path) for record in records]
