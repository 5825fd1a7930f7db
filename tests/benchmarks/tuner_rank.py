"""How well scores without labels rank short runs of random settings, held against probes that know the labels.

python tests/benchmarks/tuner_rank.py --out FOLDER [--worlds digits paddles ...] [--trials 12] [--steps 100] [--table]

Each trial is a small run (width 96, clips of 64 px made in memory) with settings drawn from the tuner's own search
space around a recipe whose range reaches from collapse to what learns. It is scored on 128 held-out clips by every
entry of SCORES, of which "rank x information" is the tuner's, and by k-NN and linear probes of all labels of its world,
which learn from the clips of train, choose on selection and are measured on val. A finished trial is a line of
FOLDER/tuner_rank.jsonl. The table has Spearman's correlation of each score with the mean accuracy of the probes, over
the trials of a world, and the mean over worlds; beside it, what the trial that the score likes best is worth: its
accuracy, as a share of the way from the median trial to the best one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from data_prep.first_run import digit_world
from data_prep.first_run.worlds.bricks import Bricks
from data_prep.first_run.worlds.camera import Camera
from data_prep.first_run.worlds.paddles import Paddles
from data_prep.first_run.worlds.shapes import Shapes
from vjepa import config
from vjepa.counter_rng import generator
from vjepa.data.augment import normalise
from vjepa.data.images import handwritten_digits
from vjepa.health import measures
from vjepa.jepa import Jepa, build
from vjepa.probing.banks import Bank
from vjepa.probing.protocol import Examples, ProbeMethod, fit_probe
from vjepa.records import ClipBatch
from vjepa.training.monitor import join, measure
from vjepa.training.optim import make_optimizer
from vjepa.training.step import TrainingStep
from vjepa.tuning import space
from vjepa.tuning.score import crop, information

BATCH: Final = 24
HELD_OUT: Final = 128
PARTS: Final = {"train": 640, "selection": 240, "val": 400}
WORLDS: Final = {world.name: world for world in (Paddles, Bricks, Shapes, Camera)}


@dataclass(frozen=True)
class Clips:
    """Labelled clips of a split. videos: uint8 [N, 3, T, S, S]. labels: name -> N values."""

    videos: Tensor
    labels: dict[str, list[str]]


def clips_of(world: str) -> dict[str, Clips]:
    drawn = list(digits() if world == "digits" else arrays(WORLDS[world]()))
    found = {}
    for part in PARTS:
        frames = np.stack([frames for name, frames, _ in drawn if name == part])
        rows = [labels for name, _, labels in drawn if name == part]
        videos = torch.from_numpy(frames.transpose(0, 4, 1, 2, 3).copy())
        found[part] = Clips(videos, {label: [row[label] for row in rows] for label in rows[0]})
    return found


def arrays(world: Any) -> Iterator[tuple[str, np.ndarray, dict[str, str]]]:
    for video in world.videos():
        if video.kind == "clip" and video.place < PARTS[video.split]:
            yield video.split, *world.render(video)


def digits() -> Iterator[tuple[str, np.ndarray, dict[str, str]]]:
    world, (images, names) = digit_world.DigitWorld(), handwritten_digits()
    for number, part in enumerate(part for part, num in PARTS.items() for _ in range(num)):
        video = digit_world.DigitVideo(number, images[number] / 16, number * 5 % 8)
        labels = {"motion": str(video.motion), "digit": str(names[number])}
        yield part, digit_world.render(world, video)[:8], labels


def base(side: int, steps: int, seed: int) -> config.Config:
    tree = {
        "run": {"seed": seed, "precision": "fp32"},
        "data": {"train": "in memory", "num_frames": 8, "crop_px": side, "global_batch": BATCH},
        "masks": [{"kind": "tube", "ratio": 0.85}] * 2,
        "model": {
            "patch_px": side // 8,
            "tubelet_frames": 4,
            "positions": "sincos_uniform",
            "encoder": {"width": 96, "depth": 4, "heads": 3},
            "predictor": {"width": 48, "depth": 2, "heads": 3},
        },
        "objective": {
            "loss": "smooth_l1",
            "view_invariance": 1.0,
            "vicreg_variance": 1.0,
            "vicreg_covariance": 0.8,
            "reversal": 0,
        },
        "optim": {"total_steps": steps, "lr": 1e-3, "warmup_steps": steps // 10, "ema_decay": 0.99,
                  "final_ema_decay": 0.99},
    }  # fmt: skip
    return config.validate(tree, "tuner_rank")


def drawn(settings: config.Config, steps: int, trial: int) -> config.Config:
    """Settings of a trial: uniform in the search space, weights of terms off in every fourth (which may collapse)."""
    rng = np.random.default_rng([7, trial])
    found = {knob.name: knob.at(rng.random()) for knob in space.knobs(settings, steps)}
    if trial % 4 == 3:
        found |= {"objective.vicreg_variance": 1e-3, "objective.vicreg_covariance": 1e-3}
    return space.with_values(settings, found, steps)


@torch.no_grad()
def pooled(method: Jepa, videos: Tensor) -> Tensor:
    """Mean-pooled features [N, D] of the measured encoder."""
    encoder = method.measured_encoder.eval()
    found = torch.cat([encoder(normalise(part, torch.float32)).mean(1) for part in videos.split(64)])
    encoder.train()
    return found


def run(settings: config.Config, clips: dict[str, Clips], steps: int) -> dict[str, Any]:
    """Train one, score it and probe it."""
    method = build(settings)
    step = TrainingStep(method, make_optimizer(method, settings.optim), settings.optim, torch.float32, steps)
    untrained = facts(step, clips["selection"].videos[:HELD_OUT])
    for number in range(steps):
        places = torch.from_numpy(generator(settings.run.seed, "order", number).permutation(PARTS["train"])[:BATCH])
        step(number, ClipBatch(clips["train"].videos[places], places))
    found = facts(step, clips["selection"].videos[:HELD_OUT])
    return {
        "scores": {name: score(found, untrained) for name, score in SCORES.items()},
        "probes": probes({part: pooled(method, one.videos) for part, one in clips.items()}, clips),
    }


def probes(features: dict[str, Tensor], clips: dict[str, Clips]) -> dict[str, float]:
    banks = {part: Bank(one.half()[:, None, None], np.arange(len(one)), ()) for part, one in features.items()}
    found = {}
    for label in clips["train"].labels:
        parts = [
            Examples.of(banks[part], np.arange(len(one.videos)), one.labels[label], part) for part, one in clips.items()
        ]
        for mode in ("knn", "linear"):
            fit = fit_probe(ProbeMethod(mode), parts[0], parts[1], [parts[2]], with_head=False)
            said = np.array(fit.names)[fit.answers[0].argmax(1)]
            found[f"{label} {mode}"] = float(np.mean(said == np.array(parts[2].labels)))
    return found


@dataclass(frozen=True)
class Facts:
    """What a score may look at: views of held-out clips [N, Q, D], without what a mask adds to all of them; features
    of whole clips [N, D], of those reversed in time, of crops [N, Q, D]; what the monitor measures; a coarse film of
    each clip [N, P] and its changes in time [N, P].
    """

    views: Tensor
    whole: Tensor
    backwards: Tensor
    crops: Tensor
    monitor: dict[str, float]
    coarse: Tensor
    changes: Tensor


def facts(step: TrainingStep, videos: Tensor) -> Facts:
    method, observed = step.method, join([step.observe(part) for part in videos.split(32)])
    last = observed.contexts[max(observed.contexts)]
    grey = videos.float().mean(1)
    coarse = torch.nn.functional.adaptive_avg_pool3d(grey[:, None], (4, 6, 6))[:, 0]
    edges = torch.nn.functional.adaptive_avg_pool3d(grey[:, None].diff(dim=2).abs(), (4, 6, 6))[:, 0]
    return Facts(
        last - last.mean(0),
        pooled(method, videos),
        pooled(method, videos.flip(2)),
        pooled(method, crop(videos, 0)).unflatten(0, (len(videos), -1)),
        measure(observed, method.settings.objective, "fixed_loss"),
        coarse.flatten(1),
        torch.cat([coarse.diff(dim=1).flatten(1), edges.flatten(1)], dim=1),
    )


def clean_rank(views: Tensor) -> float:
    """Effective rank of the covariance between clips, from which the noise of views is taken off."""
    views = views.double() - views.double().mean((0, 1))
    num, each, _ = views.shape
    rest = (views - views.mean(1, keepdim=True)).flatten(0, 1)
    means = views.mean(1)
    values = torch.linalg.eigvalsh(means.T @ means / num - rest.T @ rest / (num * (each - 1) * each)).clamp(min=0)
    share = values.sqrt()[values > 1e-12 * values.max()]
    share = share / share.sum()
    return float((-(share * share.log()).sum()).exp()) if len(share) else 0.0


def signal(views: Tensor) -> float:
    """Share of the variance of a view that is of its clip."""
    views = views.double()
    between = views.mean(1).var(0).sum()
    return float(between / (between + (views - views.mean(1, keepdim=True)).square().sum((0, 1, 2)) / len(views)))


def told(features: Tensor, wanted: Tensor, ridge: float = 0.1) -> float:
    """R^2, over folds, of a ridge regression of what no one has labelled on standardised features."""
    x = torch.nn.functional.normalize((features - features.mean(0)).double(), dim=-1) * features.shape[-1] ** 0.5
    y = (wanted - wanted.mean(0)).double()
    places, left = torch.arange(len(x)) % 4, 0.0
    for fold in range(4):
        a, b = x[places != fold], y[places != fold]
        kernel = a @ a.T + ridge * len(a) * torch.eye(len(a), dtype=a.dtype)
        left += float((y[places == fold] - x[places == fold] @ a.T @ torch.linalg.solve(kernel, b)).square().sum())
    return 1 - left / float(y.square().sum())


def motion(one: Facts) -> float:
    """How far a clip is from itself backwards, as a share of how far it is from others."""
    apart = (one.whole - one.backwards).square().sum(1).mean()
    return float(apart / (2 * one.whole.var(0).sum()).clamp(min=1e-12))


SCORES: Final[dict[str, Callable[[Facts, Facts], float]]] = {
    "rank": lambda now, _: measures.effective_rank(now.views.mean(1)),
    "rank, whole clips": lambda now, _: measures.effective_rank(now.whole),
    "LiDAR, masks": lambda now, _: measures.lidar(now.views),
    "LiDAR, crops": lambda now, _: measures.lidar(now.crops),
    "clean rank, masks": lambda now, _: clean_rank(now.views),
    "clean rank, crops": lambda now, _: clean_rank(now.crops),
    "information, masks": lambda now, _: information(now.views),
    "information, crops": lambda now, _: information(now.crops),
    "std": lambda now, _: measures.feature_std(now.whole),
    "-cosine": lambda now, _: -measures.mean_cosine(now.whole),
    "signal, masks": lambda now, _: signal(now.views),
    "rank x signal": lambda now, _: measures.effective_rank(now.whole) * signal(now.views),
    "LiDAR x std": lambda now, _: measures.lidar(now.views) * measures.feature_std(now.whole),
    "rank x std": lambda now, _: measures.effective_rank(now.whole) * measures.feature_std(now.whole),
    "information x std": lambda now, _: information(now.views) * measures.feature_std(now.whole),
    "skill": lambda now, _: now.monitor["skill"],
    "place skill": lambda now, _: now.monitor["place_skill"],
    "rank x skill": lambda now, _: measures.effective_rank(now.whole) * max(now.monitor["skill"], 0),
    "rank x information": lambda now, _: measures.effective_rank(now.whole) * information(now.crops),
    "rank x place skill": lambda now, _: measures.effective_rank(now.whole) * max(now.monitor["place_skill"], 0),
    "target rank": lambda now, _: now.monitor["rank_target"],
    "-position share": lambda now, _: -now.monitor["position_share"],
    "-loss": lambda now, _: -now.monitor["fixed_loss"],
    "told: coarse film": lambda now, _: told(now.whole, now.coarse),
    "told: changes": lambda now, _: told(now.whole, now.changes),
    "motion": lambda now, _: motion(now),
    "rank x motion": lambda now, _: measures.effective_rank(now.whole) * motion(now) ** 0.5,
}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: a score, its correlation on each world, the mean; the worth of its choice."""
    worlds = sorted({row["world"] for row in rows})
    truth = {world: np.array([worth(row) for row in rows if row["world"] == world]) for world in worlds}
    yield "accuracy of the trials, least, median, best: " + "; ".join(
        f"{world} {one.min():.3f} {np.median(one):.3f} {one.max():.3f} ({len(one)})" for world, one in truth.items()
    )
    yield "| score | " + " | ".join(worlds) + " | mean | worth of its choice |\n|---|" + "--:|" * (len(worlds) + 2)
    found = []
    for name in rows[0]["scores"]:
        scores = {world: np.array([row["scores"][name] for row in rows if row["world"] == world]) for world in worlds}
        rhos = [float(np.nan_to_num(spearmanr(scores[world], truth[world]).statistic)) for world in worlds]
        chosen = [share_of_best(truth[world], int(scores[world].argmax())) for world in worlds]
        found.append((float(np.mean(rhos)), name, rhos, float(np.mean(chosen))))
    for mean, name, rhos, chosen_mean in sorted(found, reverse=True):
        yield f"| {name} | " + " | ".join(f"{rho:.2f}" for rho in rhos) + f" | {mean:.2f} | {chosen_mean:.2f} |"


def worth(row: dict[str, Any]) -> float:
    return float(np.mean(list(row["probes"].values())))


def share_of_best(truth: np.ndarray, choice: int) -> float:
    middle, best = float(np.median(truth)), float(truth.max())
    return (float(truth[choice]) - middle) / (best - middle)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--worlds", nargs="+", default=["digits", *WORLDS], choices=["digits", *WORLDS])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="only show the results that are there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "tuner_rank.jsonl"

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    keys = ("world", "trial", "steps", "seed")
    done = {tuple(row[key] for key in keys) for row in read()}
    for world in () if options.table else options.worlds:
        clips = clips_of(world)
        settings = base(clips["train"].videos.shape[-1], options.steps, options.seed)
        for trial in range(options.trials):
            row = dict(zip(keys, (world, trial, options.steps, options.seed), strict=True))
            if tuple(row.values()) not in done:
                row |= run(drawn(settings, options.steps, trial), clips, options.steps)
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print("\n".join(table(read())))


if __name__ == "__main__":
    main()
