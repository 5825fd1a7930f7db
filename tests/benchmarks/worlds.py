"""The default recipe, and V-JEPA 2's, on small worlds: trained beside untrained, by k-NN, linear and attentive probes.

python tests/benchmarks/worlds.py --out FOLDER [--worlds paddles bricks shapes camera demo] [--seeds 0 1 2]
[--precisions bf16 fp32] [--recipes default vjepa2] [--times 1] [--attentive] [--table]

Each run is what `python -m vjepa.train WORLD` does, in FOLDER; a finished one is not begun again, and --table only
prints them. --times: multiples of the steps of the config. A label is better (worse) where the intervals of trained and
untrained do not meet. On a CPU without bf16 units, bf16_in_fp32.py gives their numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch

from vjepa import config
from vjepa.device import bf16_is_fast

PROJECT: Final = Path(__file__).resolve().parents[2]
WORLDS: Final = ("demo", "paddles", "bricks", "shapes", "camera", "digits")
RECIPES: Final[dict[str, list[str]]] = {
    "default": [],
    "vjepa2": [
        "masks=[{kind: multiblock, num_blocks: 8}, {kind: multiblock, num_blocks: 2, spatial_scale: [0.7, 0.7]}]",
        "objective={loss: l1, view_invariance: 0, vicreg_variance: 0, vicreg_covariance: 0, reversal: 0}",
        "optim.lr=5.25e-4",
        "optim.final_lr=5.25e-4",
        "optim.betas=[0.9, 0.999]",
        "optim.ema_decay=0.99925",
        "optim.final_ema_decay=0.99925",
    ],
}


@dataclass(frozen=True)
class Trial:
    """Name one run."""

    world: str
    recipe: str
    times: int
    precision: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.world}-{self.recipe}-x{self.times}-{self.precision}-{self.seed}"

    def run(self, folder: Path, attentive: bool) -> None:
        """Train and measure in `folder`, as far as it is not done."""
        settings = config.load(self.world)
        steps = self.times * (settings.optim.total_steps or 0)
        where = f"runs/{self.name}"
        overrides = [f"optim.total_steps={steps}", f"run.seed={self.seed}", f"run.precision={self.precision}"]
        if not (folder / where / "summary.json").is_file():
            self._call(folder, "vjepa.train", self.world, *overrides, *RECIPES[self.recipe], f"run.dir={where}")
        for label in settings.eval.labels if attentive else ():
            out = Path(where, f"attentive-{label}.json")
            if not (folder / out).is_file():
                words = ["--model_path", where, "--dataset", settings.data.train.index, "--label", label]
                baseline = ["--baselines", "random_init", "--eval_mode", "attentive", "--out", str(out)]
                self._call(folder, "vjepa.probe", *words, *baseline)

    def _call(self, folder: Path, module: str, *words: str) -> None:
        slow = self.precision == "bf16" and not bf16_is_fast(torch.device("cpu"))
        start = [str(Path(__file__).with_name("bf16_in_fp32.py"))] if slow else ["-m"]
        paths = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, *start, module, *words]
        done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: exit {done.returncode}")

    def read(self, folder: Path) -> dict[str, Any] | None:
        """Give the summary of a finished run, with the attentive entries that there are."""
        path = folder / "runs" / self.name
        if not (path / "summary.json").is_file():
            return None
        summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
        for label, probes in summary["probes"].items():
            file = path / f"attentive-{label}.json"
            if file.is_file():
                (probes["attentive"],) = json.loads(file.read_text())
        return summary


def table(folder: Path, trials: Sequence[Trial]) -> Iterator[str]:
    """Yield lines of Markdown: a row for each world, recipe, length, precision and label; means over seeds."""
    probes = ("knn", "linear", "attentive")
    yield "| world | recipe | steps | precision | label | " + " | ".join(probes) + " | verdicts |"
    yield "|---|---|--:|---|---|" + "---|" * (len(probes) + 1)
    groups: dict[tuple[str, str, int, str], list[dict[str, Any]]] = {}
    for trial in trials:
        found = trial.read(folder)
        if found:
            groups.setdefault((trial.world, trial.recipe, trial.times, trial.precision), []).append(found)
    for (world, recipe, times, precision), runs in groups.items():
        verdicts = ", ".join(sorted({run["verdict"]["state"] for run in runs}))
        for label in runs[0]["probes"]:
            cells = [_cell([run["probes"][label].get(probe) for run in runs]) for probe in probes]
            yield f"| {world} | {recipe} | x{times} | {precision} | {label} | " + " | ".join(cells) + f" | {verdicts} |"


def _cell(entries: Sequence[dict[str, Any] | None]) -> str:
    """Say `.81 (.45) +++`: means of trained and untrained, and a sign for each seed: + better, - worse, = neither."""
    known = [entry for entry in entries if entry]
    if not known:
        return ""
    trained = statistics.mean(entry["accuracy"] for entry in known)
    starts = [entry["baselines"]["random_init"]["top1"] for entry in known]
    signs = "".join(
        "+" if entry["low"] > start["high"] else "-" if entry["high"] < start["low"] else "="
        for entry, start in zip(known, starts, strict=True)
    )
    return f"{trained:.3f} ({statistics.mean(start['value'] for start in starts):.3f}) {signs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=WORLDS)
    parser.add_argument("--recipes", nargs="+", default=["default"], choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"], choices=["bf16", "fp32"])
    parser.add_argument("--times", nargs="+", type=int, default=[1])
    parser.add_argument("--attentive", action="store_true", help="attentive probes of each label too")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    choices = product(options.worlds, options.recipes, options.times, options.precisions, options.seeds)
    trials = [Trial(*choice) for choice in choices]
    options.out.mkdir(parents=True, exist_ok=True)
    for trial in () if options.table else trials:
        trial.run(options.out, options.attentive)
    print("\n".join(table(options.out, trials)))


if __name__ == "__main__":
    main()
