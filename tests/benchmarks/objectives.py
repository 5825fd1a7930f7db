"""Every objective, target and backbone at one budget, on the demo clips and on images of digits: the tables of
configs/RESULTS.md.

python tests/benchmarks/objectives.py --out FOLDER [--data clips digits] [--seeds 0 1 2] [--steps 200] [--only NAME ...]
[--table]

Each finished run is a line of FOLDER/results-200.jsonl, and the same command goes on behind the last one; --table only
prints them. BASE and DATA are the settings of all variants; VARIANTS says where one differs. Rows of frozen targets
spend half of their steps on the teacher, an encoder that predicts pixels (SALT).
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from data_prep.first_run import demo
from data_prep.scanning.build import build_index
from vjepa import config
from vjepa.data.loader import eval_loader, train_loader
from vjepa.data.plan_rows import Views
from vjepa.data.sources import open_sources
from vjepa.jepa import Jepa, build
from vjepa.models.encoder import Encoder
from vjepa.probing.banks import InMemory, SampleViews
from vjepa.probing.closing import METHODS, collapse, probe_labels
from vjepa.probing.comparison import TRAINED
from vjepa.probing.datasets_images import open_images
from vjepa.probing.extractors import Readout, encoder_extractor
from vjepa.probing.splits import Split, read_splits
from vjepa.records import ClipBatch
from vjepa.training.optim import make_optimizer
from vjepa.training.step import TrainingStep

Tree = Mapping[str, Mapping[str, Any]]

BASE: Final[Tree] = {
    "data": {"crop_scale": [1.0, 1.0], "crop_aspect": [1.0, 1.0], "global_batch": 32, "workers": 0},
    "model": {"patch_px": 16, "positions": "sincos_uniform"},
    "encoder": {"width": 96, "depth": 4, "heads": 3},
    "predictor": {"width": 48, "depth": 2, "heads": 3},
    "objective": {},
    "optim": {
        "lr": 2e-3,
        "final_lr": 1e-5,
        "warmup_steps": 30,
        "betas": [0.9, 0.95],
        "ema_decay": 0.99,
        "final_ema_decay": 0.99,
    },
    "eval": {},
}
DATA: Final[dict[str, Tree]] = {
    "clips": {
        "data": {"num_frames": 8, "clip_fps": 8, "crop_px": 64},
        "model": {"tubelet_frames": 4},
        "eval": {"labels": ["motion", "digit"]},
    },
    "digits": {"data": {"num_frames": 1, "crop_px": 64}, "model": {"tubelet_frames": 1}},
}
TUBE: Final = {"kind": "tube", "ratio": 0.75}
LOSSES: Final[dict[str, dict[str, Any]]] = {
    "mse": {"loss": "mse"},
    "l1": {"loss": "l1"},
    "huber": {"loss": "huber"},
    "vicreg": {
        "prediction": 0,
        "vicreg_invariance": 1.0,
        "vicreg_variance": 1.0,
        "vicreg_covariance": 0.04,
    },  # 25 : 25 : 1, as published
    "l1 + vicreg": {"loss": "l1", "vicreg_variance": 1.0, "vicreg_covariance": 0.8},  # as configs/demo.yaml
    "l1 + cycle": {"loss": "l1", "cycle": 1.0},
    "l1 + sigreg": {"loss": "l1", "sigreg": 0.05},
}
BACKBONES: Final[dict[str, dict[str, Any]]] = {
    "energy transformer": {"model": {"backbone": "energy"}},
    "timm test_vit": {"model": {"backbone": "test_vit"}},
    "timm test_resnet": {
        "model": {"backbone": "test_resnet"},
        "eval": {"encoder": "target_encoder"},
    },  # BatchNorm has seen whole frames there
    "timm test_convnext": {"model": {"backbone": "test_convnext"}},
}
TEACHER: Final = {"loss": "mse", "targets": "pixels"}
VARIANTS: Final[dict[str, Tree]] = {
    **{
        f"{name}, {targets['targets']}": {"objective": {**loss, **targets}}
        for targets in ({"targets": "ema"}, {"targets": "frozen", "teacher": "in memory"})
        for name, loss in LOSSES.items()
    },
    # alone, a distance to one's own features would be least where all are the same; the config refuses it
    "vicreg, none": {"objective": {**LOSSES["vicreg"], "targets": "none"}},
    "l1 + vicreg, none": {"objective": {**LOSSES["l1 + vicreg"], "targets": "none"}},
    "l1 + sigreg, none": {"objective": {**LOSSES["l1 + sigreg"], "targets": "none"}},
    "l1 + cycle + sigreg, none": {"objective": {**LOSSES["l1 + cycle"], "sigreg": 0.05, "targets": "none"}},
    "views + sigreg, none": {
        "objective": {"prediction": 0, "view_invariance": 1.0, "sigreg": 0.05, "targets": "none"},
        "masks": [TUBE, TUBE],
    },
    "mse, pixels": {"objective": TEACHER},
    "l1 + context, ema": {"objective": {"loss": "l1", "context_weight": 0.5}},
    "l1, ema, MLP predictor": {"objective": {"loss": "l1"}, "predictor": {"kind": "mlp"}},
    **{f"l1, ema, {name}": {"objective": {"loss": "l1"}, **changes} for name, changes in BACKBONES.items()},
    "l1, ema, ratio .5 to .9": {"objective": {"loss": "l1"}, "masks": [{**TUBE, "ratio": 0.5, "final_ratio": 0.9}]},
}


@dataclass(frozen=True)
class Clips:
    """Decoded once for all variants of a seed, as vjepa.train reads them.

    batches: uint8 [B, 3, T, S, S] of each step. splits: train, selection and val; evaluated: the batches of each.
    untrained: settings of an encoder -> what it shows before the first step.
    """

    batches: list[Tensor]
    evaluated: dict[str, list[ClipBatch]]
    splits: dict[str, Split]
    untrained: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: config.Config) -> Clips:
        steps = range(settings.optim.total_steps or 0)
        batches = [
            batch.video for batch in train_loader(open_sources(settings.data), settings.data, settings.run.seed, steps)
        ]
        splits = vars(read_splits(settings.data, settings.eval.labels))
        evaluated = {
            name: list(eval_loader(split.index, split.rows, settings.data, 64, workers=0))
            for name, split in splits.items()
        }
        return cls(batches, evaluated, splits)


@dataclass(frozen=True)
class Kept:
    """A source of clips that are decoded already."""

    batches: list[ClipBatch]

    def loader(self, clip_ids: Any, views: Any, batch: int) -> list[ClipBatch]:
        return self.batches

    def facts(self, clip_ids: Any, views: Any) -> dict[str, Any]:
        return {}


def run(settings: config.Config, clips: Clips) -> dict[str, Any]:
    """Train and measure one variant: what `vjepa.train` would find, and clips/s of the step alone."""
    batches, teacher = clips.batches, None
    if settings.objective.targets == "frozen":
        half = len(batches) // 2
        first, batches = batches[:half], batches[half:]
        of_teacher = config.validate({**settings.model_dump(mode="json"), "objective": TEACHER}, "teacher")
        teacher = learn(of_teacher, first)[0].encoder.requires_grad_(False)
    model, clips_per_s = learn(settings, batches, teacher)
    untrained = settings.model.model_copy(update={"predictor": config.PredictorSettings()}).model_dump_json()
    if untrained not in clips.untrained:
        clips.untrained[untrained] = measure(build(settings).encoder.eval(), clips)
    return {
        "steps": len(batches),
        "clips_per_s": clips_per_s,
        "trained": measure(getattr(model, settings.eval.encoder), clips),
        "random_init": clips.untrained[untrained],
    }


def measure(encoder: Encoder, clips: Clips) -> dict[str, Any]:
    """Label -> probe -> accuracy on val; effective rank and deviation of features."""
    readout = Readout((encoder.depth - 1,), ("pooled",), torch.device("cpu"), torch.float32)
    extractors = {TRAINED: encoder_extractor(encoder.eval(), "", readout)}
    banks = {}
    for name, batches in clips.evaluated.items():
        made = InMemory().banks(SampleViews(Kept(batches), clips.splits[name].rows, Views()), extractors, 64)
        banks[name] = {TRAINED: made[TRAINED]["pooled"]}
    entries = probe_labels(clips.splits, banks, config.Eval(labels=list(clips.splits["val"].labels)))
    accuracies = {label: {probe: one[probe]["accuracy"] for probe in METHODS} for label, one in entries.items()}
    return {**accuracies, **collapse(banks["val"][TRAINED], clips.splits["val"].rows)}


def learn(settings: config.Config, batches: Sequence[Tensor], teacher: Encoder | None = None) -> tuple[Jepa, float]:
    """The networks after a step on each batch, and clips per second of the process having the core: others on the
    machine do not count.
    """
    model = build(settings, teacher)
    optimizer = make_optimizer(model, settings.optim)
    step = TrainingStep(model, optimizer, settings.optim, torch.float32, len(batches))
    started = process_time()
    for number, batch in enumerate(batches):
        step(number, ClipBatch(batch, torch.arange(len(batch))))
    return model, sum(map(len, batches)) / (process_time() - started)


def settings_of(folder: Path, data: str, change: Tree, seed: int, steps: int) -> config.Config:
    """BASE, then DATA, then what a variant changes, the later ones winning setting by setting."""
    parts = (BASE, DATA[data], change)
    tree: dict[str, Any] = {
        name: {key: value for part in parts for key, value in part.get(name, {}).items()} for name in BASE
    }
    encoder, tree["model"]["predictor"] = tree.pop("encoder"), tree.pop("predictor")
    if tree["model"].get("backbone") in (None, "energy"):  # a network of timm has a shape of its own
        tree["model"]["encoder"] = encoder
    sources = {
        name: {"index": str(folder / data / "index.parquet"), "where": {"split": name}}
        for name in ("train", "selection", "val")
    }
    tree |= {"run": {"seed": seed}, "data": tree["data"] | sources, "optim": tree["optim"] | {"total_steps": steps}}
    return config.validate({**tree, "masks": change.get("masks", [TUBE])}, "sweep")


def prepare(folder: Path, data: str) -> None:
    """FOLDER/clips: the demo data set; FOLDER/digits: the images of scikit-learn as files, in the splits that probes
    use; each with its index.
    """
    if data == "clips":
        demo.prepare(folder / "index.parquet")
    elif not (folder / "index.parquet").is_file():
        digits = open_images("digits")
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with (folder / "labels.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("file", "label", "split"))
            for split, rows in digits.splits.items():
                for row in rows.tolist():
                    Image.fromarray(digits.images.read(row)).save(folder / "images" / f"{row:04}.png")
                    table.writerow((f"{row:04}.png", digits.labels[row], split))
        build_index(folder / "images", folder / "index.parquet", labels=folder / "labels.csv")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(rows: list[dict[str, Any]], data: str) -> Iterator[str]:
    """Lines of Markdown: mean and standard deviation over seeds, and in brackets the mean of the same encoders
    untrained.
    """
    labels = DATA[data].get("eval", config.Eval().model_dump())["labels"]
    columns = [(label, probe) for label in labels for probe in METHODS]
    yield (
        "| objective, targets | "
        + " | ".join(f"{label}, {'k-NN' if probe == 'knn' else probe}" for label, probe in columns)
        + " | rank | clips/s |"
    )
    yield "|---|" + "--:|" * (len(columns) + 2)
    for variant in VARIANTS:
        runs = [row for row in rows if (row["data"], row["variant"]) == (data, variant)]
        if runs:
            cells = [
                accuracies(*([row[kind][label][probe] for row in runs] for kind in ("trained", "random_init")))
                for label, probe in columns
            ]
            cells.append(f"{statistics.mean(row['trained']['effective_rank'] for row in runs):.1f}")
            cells.append(f"{statistics.mean(row['clips_per_s'] for row in runs):.0f}")
            yield f"| {variant} | " + " | ".join(cells) + " |"


def accuracies(trained: Sequence[float], untrained: Sequence[float]) -> str:
    """`.81 ± .02 (.45)`, in bold where the trained encoder of every seed is better than the same one untrained."""
    spread = f" ± {statistics.stdev(trained):.3f}" if len(trained) > 1 else ""
    mark = "**" if all(one > other for one, other in zip(trained, untrained, strict=True)) else ""
    return f"{mark}{statistics.mean(trained):.3f}{spread}{mark} ({statistics.mean(untrained):.3f})".replace("0.", ".")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="data, and a file of results for each number of steps"
    )
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--table", action="store_true", help="only print the results that are there")
    options = parser.parse_args()
    results = options.out / f"results-{options.steps}.jsonl"
    for data in () if options.table else options.data:
        prepare(options.out / data, data)
    for seed, data in () if options.table else product(options.seeds, options.data):
        done = {row["variant"] for row in read(results) if (row["seed"], row["data"]) == (seed, data)}
        missing = [variant for variant in options.only if variant not in done]
        if missing:
            clips = Clips.of(settings_of(options.out, data, VARIANTS[missing[0]], seed, options.steps))
        for variant in missing:
            row = {
                "seed": seed,
                "data": data,
                "variant": variant,
                **run(settings_of(options.out, data, VARIANTS[variant], seed, options.steps), clips),
            }
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    for data in options.data:
        print(f"\n{data}\n" + "\n".join(table(read(results), data)))


if __name__ == "__main__":
    main()
