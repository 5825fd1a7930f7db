"""How well the verdict tells runs that go wrong from runs that learn: misses, false alarms, and how soon it comes.

python tests/benchmarks/doctor.py --out FOLDER [--seeds 1 2] [--only NAME ...] [--every 25] [--table]

Each run is a small one (width 64, clips of 32 px made in memory, 300 steps, under 20 s on one core) of a world and a
recipe: SICK ones are made to go wrong, SOUND ones are meant to learn. Whether they did is measured apart from the
monitor, on 512 further clips: how well a ridge regression reads a thumbnail of the clip off the pooled features. One
that ends with less than LOST of what the best run on its world and seed ever reads is sick if it was made so, from the
step on where it stays below that, at the earliest from the end of warm-up; one that is meant to learn and ends above,
and not below its untrained self, counts as sound. Runs of equal clips and of places alone are sick from the first step
on. All others are neither: they are shown, and not counted.

A finished run is a line of FOLDER/doctor.jsonl with all that the monitor logged, so that --table judges it anew by the
rules as they are now. Thresholds were chosen on seed 0 of every world: only other seeds judge them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vjepa import config
from vjepa.data.augment import normalise
from vjepa.data.images import handwritten_digits
from vjepa.health.verdict import judge
from vjepa.jepa import build
from vjepa.models.encoder import Encoder
from vjepa.records import ClipBatch
from vjepa.training.monitor import HealthMonitor
from vjepa.training.optim import make_optimizer
from vjepa.training.step import TrainingStep

STEPS: Final = 300
FINEST: Final = 25  # steps between two measurements in the file
SIDE: Final = 32
FRAMES: Final = 8
WARMUP: Final = 20
LOST: Final = 0.6
FINE: Final = {"healthy", "watch"}

Draw = Callable[[np.random.Generator, int], np.ndarray]  # generator, number of the clip -> uint8 or float [T, S, S]


def smooth(rng: np.random.Generator, cells: int, side: int = SIDE) -> np.ndarray:
    """Random brightness of cells x cells, enlarged bilinearly: [side, side] in 0..1."""
    grid = torch.from_numpy(rng.random((1, 1, cells, cells)))
    return torch.nn.functional.interpolate(grid, size=(side, side), mode="bilinear").numpy()[0, 0]


BACKGROUND: Final = 160 * smooth(np.random.default_rng(99), 5)
DIGITS: Final = handwritten_digits()[0] / 16


def game(rng: np.random.Generator, _: int) -> np.ndarray:
    """A ball and two paddles on a background that is the same in every clip."""
    frames = np.repeat(BACKGROUND[None], FRAMES, axis=0)
    place, speed, paddles = rng.uniform(4, 24, 2), rng.uniform(-2, 2, 2), rng.integers(0, 24, 2)
    for frame in frames:
        place = np.where((place + speed < 0) | (place + speed > 27), place - speed, place + speed)
        speed = np.where((place < 2) | (place > 25), -speed, speed)
        y, x = place.astype(int)
        frame[y : y + 5, x : x + 5] = 255
        for column, top in zip((0, 29), paddles, strict=True):
            frame[top : top + 8, column : column + 3] = 230
    return frames


def digits(rng: np.random.Generator, number: int) -> np.ndarray:
    """A handwritten digit that moves over a texture of its own."""
    frames = np.repeat(100 * smooth(rng, 3)[None], FRAMES, axis=0)
    (y, x), (dy, dx) = rng.integers(0, SIDE, 2), rng.integers(-2, 3, 2)
    ink = np.zeros((SIDE, SIDE))
    ink[:16, :16] = 150 * np.kron(DIGITS[number % len(DIGITS)], np.ones((2, 2)))
    return np.stack([frame + np.roll(ink, (y + dy * t, x + dx * t), (0, 1)) for t, frame in enumerate(frames)])


def camera(rng: np.random.Generator, _: int) -> np.ndarray:
    """A camera that moves over a texture."""
    field, (dy, dx) = 255 * smooth(rng, 12, 2 * SIDE), rng.integers(-2, 3, 2)
    return np.stack([np.roll(field, (dy * t, dx * t), (0, 1))[:SIDE, :SIDE] for t in range(FRAMES)])


def images(rng: np.random.Generator, number: int) -> np.ndarray:
    """Single handwritten digits at random places of a random grey."""
    frame = np.full((1, SIDE, SIDE), rng.uniform(0, 120))
    y, x = rng.integers(0, SIDE - 16, 2)
    frame[0, y : y + 16, x : x + 16] += 130 * np.kron(DIGITS[number % len(DIGITS)], np.ones((2, 2)))
    return frame


def shapes(rng: np.random.Generator, _: int) -> np.ndarray:
    """Discs that grow or shrink over a background of their own."""
    ground, (y, x), (radius, growth) = 120 * smooth(rng, 3), rng.uniform(8, 24, 2), rng.uniform((4, -0.5), (9, 0.7))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    far, light = np.hypot(rows - y, columns - x), rng.uniform(150, 255)
    return np.stack([np.where(far < radius + growth * t, light, ground) for t in range(FRAMES)])


def equal(rng: np.random.Generator, _: int) -> np.ndarray:
    return np.repeat(BACKGROUND[None], FRAMES, axis=0)


def places(rng: np.random.Generator, _: int) -> np.ndarray:
    """The same background in every clip, nothing moves; clips differ by grain alone."""
    return np.repeat(BACKGROUND[None] + 40, FRAMES, axis=0) + rng.normal(0, 2, (FRAMES, SIDE, SIDE))


WORLDS: Final[dict[str, Draw]] = {draw.__name__: draw for draw in (game, digits, camera, images, shapes, equal, places)}
HOPELESS: Final = ("equal", "places")  # worlds with nothing to learn

NOTHING: Final = {"view_invariance": 0.0, "vicreg_variance": 0.0, "vicreg_covariance": 0.0, "reversal": 0.0}
VICREG: Final = {"vicreg_variance": 1.0, "vicreg_covariance": 0.8}
SLOW: Final = {"lr": 5e-4, "ema_decay": 0.99, "final_ema_decay": 1.0}
Recipe = Mapping[str, Mapping[str, Any]]
# recipes that are made to go wrong, and those that are meant to learn; terms that they do not name have no weight
SICK: Final[dict[str, Recipe]] = {
    "no EMA": {"objective": {"loss": "l1"}, "optim": {"lr": 1e-3, "ema_decay": 0.0, "final_ema_decay": 0.0}},
    "quick EMA": {"objective": {"loss": "smooth_l1"}, "optim": {"lr": 2e-3, "ema_decay": 0.9, "final_ema_decay": 0.9}},
    "lr x 30": {"objective": {"loss": "smooth_l1", **VICREG}, "optim": {"lr": 3e-2, "ema_decay": 0.99}},
    "lr x 30, l1": {"objective": {"loss": "l1"}, "optim": {"lr": 3e-2, "ema_decay": 0.99}},
    "pixels, lr x 30": {"objective": {"targets": "pixels", "loss": "mse"}, "optim": {"lr": 3e-2}},
}
SOUND: Final[dict[str, Recipe]] = {
    "VICReg": {"objective": {"loss": "smooth_l1", **VICREG}, "optim": {"lr": 1e-3, "ema_decay": 0.99}},
    "VICReg .5, slow": {"objective": {"loss": "l1", "vicreg_variance": 1.0, "vicreg_covariance": 0.5}, "optim": SLOW},
    "pixels": {"objective": {"targets": "pixels", "loss": "mse"}, "optim": {"lr": 1e-3}},
    "SIGReg, views": {
        "objective": {"targets": "none", "prediction": 0, "view_invariance": 1.0, "sigreg": 0.05},
        "masks": [{"kind": "random", "ratio": 0.75}] * 2,
        "optim": {"lr": 1e-3},
    },
    "SIGReg": {"objective": {"targets": "ema", "loss": "l1", "sigreg": 0.05}, "optim": SLOW},
    "default": {},
}
CASES: Final = (
    *((world, recipe) for world in ("game", "digits", "camera", "images", "shapes") for recipe in SICK),
    *((world, recipe) for world in HOPELESS for recipe in ("VICReg", "quick EMA")),
    *((world, recipe) for world in ("game", "digits", "camera", "images", "shapes") for recipe in SOUND),
)


@dataclass(frozen=True)
class Pool:
    """Clips of a world, uint8 [B, 3, T, S, S]: to learn from, to be monitored on, and to find out the truth on."""

    train: Tensor
    fixed: Tensor
    truth: Tensor

    @classmethod
    def of(cls, world: str, seed: int) -> Pool:
        rng = np.random.default_rng([seed, *world.encode()])
        clips = np.stack([np.clip(WORLDS[world](rng, number), 0, 255).astype(np.uint8) for number in range(1296)])
        videos = torch.from_numpy(clips).unsqueeze(1).expand(-1, 3, -1, -1, -1).contiguous()
        return cls(videos[:768], videos[768:784], videos[784:])


def settings_of(world: str, recipe: str, seed: int, every: int) -> config.Config:
    change = {**SICK, **SOUND}[recipe]
    is_image = world == "images"
    schedule = {"warmup_steps": WARMUP, "final_lr": 1e-5, "final_ema_decay": 0.99, "betas": [0.9, 0.999]}
    tree: dict[str, Any] = {
        "run": {"seed": seed},
        "data": {
            "train": "in memory",
            "selection": "in memory",
            "num_frames": 1 if is_image else FRAMES,
            "crop_px": SIDE,
        },
        "model": {
            "patch_px": 4 if is_image else 8,
            "tubelet_frames": 1 if is_image else 2,
            "positions": "sincos_uniform",
            "encoder": {"width": 64, "depth": 3, "heads": 4},
            "predictor": {"width": 32, "depth": 2, "heads": 4},
        },
        "optim": {"total_steps": STEPS, **(schedule | change["optim"] if change else {})},
        "monitor": {"every_steps": every},
    }
    if change:
        tree["masks"] = change.get("masks", [{"kind": "tube", "ratio": 0.75}])
        tree["objective"] = NOTHING | change["objective"]
    return config.validate(tree, f"{world}, {recipe}")


def run(world: str, recipe: str, seed: int, every: int) -> dict[str, Any]:
    """Train one; what the monitor logged, and at each of its steps how much of the thumbnail is there."""
    settings, pool, started = settings_of(world, recipe, seed, every), Pool.of(world, seed), process_time()
    method = build(settings)
    step = TrainingStep(method, make_optimizer(method, settings.optim), settings.optim, torch.float32, STEPS)
    monitor = HealthMonitor(settings, pool.fixed, step, [], STEPS)
    rows: list[dict[str, float]] = [{"step": 0, **monitor.measure_at(0)}]
    told, wanted = [], thumbnails(pool.truth)
    told.append(share_told(method.encoder, pool.truth, wanted))
    rng = np.random.default_rng(seed)
    for number in range(STEPS):
        batch = pool.train[torch.from_numpy(rng.choice(len(pool.train), 32, replace=False))]
        terms = step(number, ClipBatch(batch, torch.arange(32)))
        if (number + 1) % every == 0 or (number + 1) % 10 == 0:
            values = {name: float(term.detach()) for name, term in terms.items()}
            if not all(map(math.isfinite, values.values())):
                break  # training refuses it by itself
            rows.append({"step": number + 1, **values, **monitor.measure_at(number + 1)})
            if (number + 1) % every == 0:
                told.append(share_told(method.encoder, pool.truth, wanted))
    return {"rows": rows, "told": told, "seconds": process_time() - started}


def thumbnails(videos: Tensor) -> Tensor:
    """The first and last frame at 4 x 4 pixels: [B, 32]."""
    frames = videos[:, 0, [0, -1]].double()
    return torch.nn.functional.adaptive_avg_pool2d(frames, 4).flatten(1)


@torch.no_grad()
def share_told(encoder: Encoder, videos: Tensor, wanted: Tensor) -> float:
    """R^2 on one half of the clips of a ridge regression of the thumbnail on the features, learned on the other."""
    encoder.eval()
    features = torch.cat([encoder(normalise(part, torch.float32)).mean(1) for part in videos.split(64)]).double()
    encoder.train()
    half = len(features) // 2
    centre, goal = features[:half].mean(0), wanted[:half].mean(0)
    scale = features[:half].std(0).mean().clamp(min=1e-6)
    a, b = (features[:half] - centre) / scale, wanted[:half] - goal
    weights = torch.linalg.solve(a.T @ a + 10 * torch.eye(a.shape[1]), a.T @ b)
    left = wanted[half:] - goal - (features[half:] - centre) / scale @ weights
    return float(1 - left.square().sum() / (wanted[half:] - goal).square().sum().clamp(min=1e-9))


def judged(result: Mapping[str, Any], told_at_best: float, every: int) -> dict[str, Any]:
    """What is true of a run, and what the rules say of it: when they first said so, and at the end.

    told_at_best: by any run on its world. every: steps between two measurements that the rules get to see.
    """
    told, apart, sick = result["told"], result["every"], result["recipe"] in SICK
    rows = [seen(row) if row["step"] % every else row for row in result["rows"]]
    lost = [value < LOST * told_at_best for value in told]
    began = max(WARMUP, apart * (1 + max((i for i in range(len(lost)) if not lost[i]), default=-1)))
    truth = ("sick" if lost[-1] else "neither") if sick else ("neither" if lost[-1] or told[-1] < told[0] else "sound")
    if result["world"] in HOPELESS:
        truth, began = "sick", 0
    verdicts = [judge(rows[: i + 1], STEPS) for i in range(len(rows)) if "health/spread" in rows[i]]
    alarms = [verdict for verdict in verdicts if verdict.state not in FINE]
    return {
        "truth": truth,
        "told": told[-1],
        "onset": began if truth == "sick" else None,
        "flagged": alarms[0].step if alarms else None,
        "first": alarms[0].state if alarms else "",
        "last": verdicts[-1].state,
    }


def seen(row: Mapping[str, float]) -> dict[str, float]:
    """A row without what the monitor measured."""
    return {name: value for name, value in row.items() if not name.startswith("health/")}


def table(results: list[dict[str, Any]], every: int) -> Iterator[str]:
    """Lines of Markdown: each run, then misses, false alarms and delays."""
    best: dict[tuple[str, int], float] = {}
    for result in results:
        where = (result["world"], result["seed"])
        best[where] = max(best.get(where, 0.0), *result["told"])
    found = [(result, judged(result, best[result["world"], result["seed"]], every)) for result in results]
    yield "| world | recipe | seed | truth | told (best) | onset | flagged | first alarm | at the end |"
    yield "|---|---|--:|---|--:|--:|--:|---|---|"
    for result, one in found:
        told = f"{one['told']:.2f} ({best[result['world'], result['seed']]:.2f})"
        what = (result["world"], result["recipe"], result["seed"], one["truth"], told)
        yield "| " + " | ".join("" if cell is None else str(cell) for cell in (*what, *list(one.values())[2:])) + " |"
    sick = [one for _, one in found if one["truth"] == "sick"]
    sound = [one for _, one in found if one["truth"] == "sound"]
    missed = [one for one in sick if one["flagged"] is None]
    fine = [one for one in sick if one["last"] in FINE]
    delays = sorted((one["flagged"] - one["onset"]) / STEPS for one in sick if one["flagged"] is not None)
    false = [one for one in sound if one["flagged"] is not None]
    yield (
        f"\n{len(sick)} sick: {len(missed)} missed, {len(fine)} fine at the end; {len(sound)} sound: "
        f"{len(false)} false alarms; {len(found)} runs, of which {len(found) - len(sick) - len(sound)} are neither"
    )
    if delays:
        yield (
            f"flagged after onset, share of the run: median {delays[len(delays) // 2]:.2f}, worst {delays[-1]:.2f}, "
            f"{sum(delay <= 0.3 for delay in delays)} of {len(sick)} within .30"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="worlds or recipes")
    parser.add_argument("--every", type=int, default=25, help="steps between two measurements that the rules see")
    parser.add_argument("--table", action="store_true", help="only judge the results that are there")
    options = parser.parse_args()
    if options.every % FINEST:
        parser.error(f"--every: runs are measured every {FINEST} steps; give a multiple of that")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "doctor.jsonl"

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    done = {(one["world"], one["recipe"], one["seed"]) for one in read()}
    for seed, (world, recipe) in product(() if options.table else options.seeds, CASES):
        if (world, recipe, seed) not in done and all(name in (world, recipe) for name in options.only):
            result = {
                "world": world,
                "recipe": recipe,
                "seed": seed,
                "every": FINEST,
                **run(world, recipe, seed, FINEST),
            }
            with path.open("a") as file:
                file.write(json.dumps(result) + "\n")
    print("\n".join(table(read(), options.every)))


if __name__ == "__main__":
    main()
