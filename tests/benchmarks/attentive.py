"""What the attentive probe reads beside k-NN and linear probes of the mean token, on ten and more sets of features.

python tests/benchmarks/attentive.py [--only NAME ...] [--gestures FOLDER] [--against TREE] [--seed 0]

Prints accuracies on test clips with Wilson's intervals, and the CPU time of the sweep. `--against` names a checkout
whose attentive probe is measured beside, on the same features, in turns within this process: its accuracy, and the
ratio of CPU times. Ends with 1 where an attentive probe lies below the linear one beyond the intervals.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_prep.first_run.digit_world import DigitVideo, DigitWorld, render
from data_prep.scanning.build import build_index
from vjepa import config
from vjepa.data.augment import normalise
from vjepa.data.clip_index import ClipIndex
from vjepa.data.images import handwritten_digits
from vjepa.data.loader import eval_loader
from vjepa.jepa import build
from vjepa.models.encoder import Encoder
from vjepa.probing.metrics import wilson_interval
from vjepa.records import ClipBatch
from vjepa.training.optim import make_optimizer
from vjepa.training.step import TrainingStep

# features [n, K, D] and classes [n] of train, selection and test clips
Parts = list[tuple[Tensor, np.ndarray]]
STEPS = 200  # of the trained encoder


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=list(SETS))
    parser.add_argument("--gestures", type=Path, default=Path("/work/shared/data/gestures"))
    parser.add_argument("--against", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    old = packages(options.against) if options.against else None
    new, below = {name: import_module(name) for name in NAMES}, []
    for name in options.only:
        parts = SETS[name](options)
        if parts is None:
            print(f"{name:34} skipped: no {options.gestures}")
            continue
        mean = [(tokens.float().mean(1, keepdim=True).half(), classes) for tokens, classes in parts]
        found = {mode: measure(new, mode, mean, options.seed) for mode in ("knn", "linear")}
        if old:
            found["before"] = measure(old, "attentive", parts, options.seed)
        found["attentive"] = measure(new, "attentive", parts, options.seed)
        num = [len(classes) for _, classes in parts]
        told = "   ".join(
            f"{mode} {share:.3f} ({low:.2f}-{high:.2f})" for mode, ((share, low, high), _) in found.items()
        )
        cpu_s = found["attentive"][1]
        ratio = f", {cpu_s / found['before'][1]:.2f} of before" if old else ""
        print(f"{name:34} {num} x {tuple(parts[0][0].shape[1:])}   {told}   {cpu_s:.0f} s{ratio}", flush=True)
        if found["attentive"][0][2] < found["linear"][0][1]:
            below.append(name)
    print("below linear beyond its interval:", ", ".join(below) or "none")
    return 1 if below else 0


# ---- probes, of this tree or another

NAMES = ("vjepa.probing.banks", "vjepa.probing.protocol", "vjepa.probing.sweep")


def packages(tree: Path) -> dict[str, Any]:
    """Import the probes of another checkout beside those of this one."""
    mine = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "vjepa"}
    sys.path.insert(0, str(tree))
    found = {name: import_module(name) for name in NAMES}
    sys.path.remove(str(tree))
    for name in [name for name in sys.modules if name.split(".")[0] == "vjepa"]:
        del sys.modules[name]
    sys.modules.update(mine)
    return found


def measure(modules: dict[str, Any], mode: str, parts: Parts, seed: int) -> tuple[tuple[float, float, float], float]:
    """Accuracy on the test clips with its interval, and CPU seconds."""
    banks, protocol, sweep = (modules[name] for name in NAMES)
    train, selection, test = (
        protocol.Examples(banks.Bank(tokens[:, None], np.arange(len(classes)), ()), np.arange(len(classes)), classes)
        for tokens, classes in parts
    )
    started = process_time()
    fitted = protocol.fit_probe(protocol.ProbeMethod(mode, grid=sweep.Grid(seed=seed)), train, selection, [test])
    cpu_s = process_time() - started
    classes = parts[-1][1]
    shares = fitted.answers if hasattr(fitted, "answers") else fitted.probabilities  # of older trees
    right = int((fitted.names[shares[0].argmax(1)] == classes).sum())
    return (right / len(classes), *wilson_interval(right, len(classes))), cpu_s


# ---- encoders


def settings(width: int, patch_px: int, tubelet: int, frames: int) -> config.Config:
    tree = {
        "data": {"train": {"index": "none"}, "num_frames": frames, "crop_px": 64, "global_batch": 32},
        "masks": [{"kind": "tube", "ratio": 0.75}],
        "model": {
            "patch_px": patch_px,
            "tubelet_frames": tubelet,
            "positions": "sincos_uniform",
            "encoder": {"width": width, "depth": 6, "heads": width // 64},
            "predictor": {"width": 96, "depth": 3, "heads": 3},
        },
        "objective": {"loss": "smooth_l1", "vicreg_variance": 1.0, "vicreg_covariance": 0.8, "reversal": 0},
        "optim": {"total_steps": STEPS, "lr": 1e-3, "warmup_steps": 20, "ema_decay": 0.99},
    }
    return config.validate(tree, "benchmark")


@torch.inference_mode()
def read(encoder: Encoder, clips: Tensor) -> Tensor:
    """Read uint8 [n, 3, T, S, S] -> fp16 [n, K, D]."""
    return torch.cat([encoder(normalise(part, torch.float32)).half() for part in clips.split(32)])


def untrained(width: int = 192, patch_px: int = 8, tubelet: int = 4, frames: int = 8) -> Encoder:
    return build(settings(width, patch_px, tubelet, frames)).encoder.eval()


@cache
def trained() -> Encoder:
    """The demo's encoder after a few steps on its train clips."""
    wanted = settings(192, 8, 4, 8)
    model, clips = build(wanted), demo()[0][600:]
    step = TrainingStep(model, make_optimizer(model, wanted.optim), wanted.optim, torch.float32, STEPS)
    for number in range(STEPS):
        some = torch.from_numpy(np.random.default_rng(number).integers(len(clips), size=32))
        step(number, ClipBatch(clips[some], some))
    return model.encoder.eval()


# ---- clips


@cache
def demo() -> tuple[Tensor, dict[str, np.ndarray]]:
    """Moving digits: uint8 [n, 3, 8, 64, 64], the first 600 apart, and their labels."""
    images, digits = handwritten_digits()
    order = np.random.default_rng(0).permutation(len(images))[:1400]
    world = DigitWorld(seed=7)
    videos = [render(world, DigitVideo(number, images[i] / 16, number % 8))[4:12] for number, i in enumerate(order)]
    labels = {"motion": np.arange(len(order)) % 8, "digit": np.array([digits[i] for i in order])}
    return torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3), {
        name: values.astype(str) for name, values in labels.items()
    }


@cache
def game() -> tuple[Tensor, dict[str, np.ndarray]]:
    """A ball of 5 px on a standing background: uint8 [1200, 3, 8, 64, 64], its place and way."""
    rng = np.random.default_rng(0)
    ground = np.kron(rng.random((16, 16, 3)), np.ones((4, 4, 1))) * 0.5 + 0.1
    y, x = np.mgrid[:64, :64]
    films, place, way = np.empty((1200, 8, 64, 64, 3), np.uint8), [], []
    for film in films:
        start, angle = rng.uniform(16, 48, 2), rng.uniform(0, 2 * np.pi)
        for time, frame in enumerate(film):
            at = start + (time - 4) * 2.5 * np.array([np.cos(angle), np.sin(angle)])
            picture = np.where((np.hypot(x - at[0], y - at[1]) < 2.6)[..., None], 1.0, ground)
            frame[:] = 255 * picture
        place.append(int((start[0] - 16) // 6.4))
        way.append(int(angle // (np.pi / 4)))
    labels = {"place": np.array(place).astype(str), "way": np.array(way).astype(str)}
    return torch.from_numpy(films).permute(0, 4, 1, 2, 3).contiguous(), labels


# ---- sets of features


def cut(tokens: Tensor, classes: np.ndarray, *sizes: int) -> Parts:
    """Cut train and selection clips of these numbers, then the test clips, from the end: the first ones are test."""
    train, selection = sizes
    test = len(classes) - train - selection
    places = np.split(np.arange(len(classes)), [test, test + selection])
    return [(tokens[part], classes[part]) for part in (places[2], places[1], places[0])]


def of_demo(label: str, encoder: Callable[[], Encoder], train: int = 800, selection: int = 200) -> Parts:
    clips, labels = demo()
    part = slice(0, 400 + train + selection)
    return cut(read(encoder(), clips[part]), labels[label][part], train, selection)


def of_game(label: str, width: int, train: int) -> Parts:
    clips, labels = game()
    part = slice(0, 600 + train)
    return cut(read(untrained(width, tubelet=2), clips[part]), labels[label][part], train - 200, 200 + 200)


def of_digits() -> Parts:
    images, digits = handwritten_digits()
    pixels = torch.from_numpy(np.kron(np.stack(images), np.ones((8, 8))) / 16 * 255).to(torch.uint8)
    clips = pixels[:, None, None].expand(-1, 3, 1, -1, -1)
    return cut(read(untrained(frames=1, tubelet=1), clips[:1400]), np.array(digits)[:1400].astype(str), 600, 200)


def of_gestures(folder: Path) -> Parts | None:
    if not (folder / "labels.csv").is_file():
        return None
    with tempfile.TemporaryDirectory() as made:
        build_index(folder, Path(made) / "index.parquet", labels=folder / "labels.csv")
        index = ClipIndex.open(Path(made) / "index.parquet")
        data = config.validate(
            {
                **settings(192, 8, 2, 8).model_dump(mode="json"),
                "data": {"train": {"index": "none"}, "num_frames": 8, "crop_px": 64},
            },
            "gestures",
        ).data
        folds, labels, encoder = index.column("fold"), index.column("label"), untrained(tubelet=2)
        parts = []
        for wanted in ("012", "3", "4"):
            rows = np.array([row for row in index.select({}) if str(folds[row]) in wanted])
            batches = [(read(encoder, batch.video), batch.clip_ids) for batch in eval_loader(index, rows, data, 32, 0)]
            ids = torch.cat([ids for _, ids in batches]).tolist()
            parts.append((torch.cat([tokens for tokens, _ in batches]), np.array([labels[i] for i in ids])))
    return parts


def one_token(num_tokens: int, num: int) -> Parts:
    """One token of many, anywhere, tells the class: the mean hardly shows it."""
    rng = np.random.default_rng(0)
    classes, tokens = rng.integers(0, 4, num), rng.normal(size=(num, num_tokens, 64)).astype(np.float32)
    tokens[np.arange(num), rng.integers(0, num_tokens, num)] = 2 * rng.normal(size=(4, 64))[classes]
    return cut(torch.from_numpy(tokens).half(), classes.astype(str), num // 2, num // 4)


def in_the_mean(num: int) -> Parts:
    """All tokens tell a little of the class, so nothing is better than their mean."""
    rng = np.random.default_rng(0)
    classes, tokens = rng.integers(0, 4, num), rng.normal(size=(num, 32, 64)).astype(np.float32)
    tokens += 0.1 * rng.normal(size=(4, 64)).astype(np.float32)[classes][:, None]
    return cut(torch.from_numpy(tokens).half(), classes.astype(str), num // 2, num // 4)


SETS: dict[str, Callable[[argparse.Namespace], Parts | None]] = {
    "demo motion, untrained": lambda options: of_demo("motion", untrained),
    "demo motion, trained": lambda options: of_demo("motion", trained),
    "demo digit, trained": lambda options: of_demo("digit", trained),
    "demo digit, trained, 80 clips": lambda options: of_demo("digit", trained, 80, 40),
    "place of a ball, untrained": lambda options: of_game("place", 192, 600),
    "way of a ball, wide, untrained": lambda options: of_game("way", 384, 400),
    "images of digits, untrained": lambda options: of_digits(),
    "gestures, untrained": lambda options: of_gestures(options.gestures),
    "one token of 64": lambda options: one_token(64, 1600),
    "one token of 1,024": lambda options: one_token(1024, 480),
    "all in the mean": lambda options: in_the_mean(1600),
    "all in the mean, few": lambda options: in_the_mean(240),
}

if __name__ == "__main__":
    sys.exit(main())
