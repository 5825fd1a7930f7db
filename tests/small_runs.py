"""Small runs for tests: their settings, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from vjepa import config
from vjepa.run_folder import RunFolder


def settings(index: Path, name: str, **tree: dict | list) -> config.Config:
    base = {
        "run": {"dir": str(index.parent / name), "device": "cpu", "precision": "fp32",
        "save_every_steps": 4, "log_every_steps": 1},
        "data": {
            "train": {"index": str(index), "where": {"split": "train"}},
            "num_frames": 4, "clip_fps": 4, "crop_px": 16, "crop_scale": [0.5, 1.0], "global_batch": 4, "workers": 0,
        },
        "model": {"patch_px": 8, "encoder": {"width": 24, "depth": 2, "heads": 2},
        "predictor": {"width": 12, "depth": 1, "heads": 2}},
        "objective": {"vicreg_variance": 0.1, "vicreg_covariance": 0.01},
        "optim": {"total_steps": 6, "warmup_steps": 2, "ema_decay": 0.9, "clip_grad": 1.0},
    }  # fmt: skip
    for section, values in tree.items():
        base[section] = {**base.get(section, {}), **values} if isinstance(values, dict) else values
    return config.validate(base, "test")


def weights(folder: str | None) -> dict[str, dict]:
    latest = RunFolder(Path(folder or "")).require()
    return {path.name: load_file(path) for path in latest.path.glob("*.safetensors")}


def metrics(folder: str | None) -> list[dict]:
    return [json.loads(line) for line in (Path(folder or "") / "metrics.jsonl").read_text().splitlines()]


def losses(folder: str | None) -> list[float]:
    """Of each step that was logged; the row of step 0, of the untrained networks, has none."""
    return [row["loss"] for row in metrics(folder) if "loss" in row]


def same_weights(one: config.Config, other: config.Config) -> bool:
    first, second = weights(one.run.dir), weights(other.run.dir)
    assert first.keys() == second.keys() == {f"{name}.safetensors" for name in (*one.objective.networks, "optimizer")}
    return all(
        (second[file][name] == tensor).all() for file, tensors in first.items() for name, tensor in tensors.items()
    )
