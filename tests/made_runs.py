"""Run folders as a run leaves them, made of nothing but files: what pages are tested on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from small_runs import settings

from vjepa import config
from vjepa.page.player import strip
from vjepa.reporting import shown
from vjepa.reporting.shown import Shown, pack, picture
from vjepa.run_folder import RunFolder

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&\"'"
GRID, CLIPS, FRAMES = (2, 4, 4), 2, 4


def rows(num: int) -> list[dict[str, float]]:
    """Log `num` steps, every 25th measured, after that of the untrained networks."""

    def health(step: int) -> dict[str, float]:
        values = {"effective_rank": 10 + step / num, "feature_std": 0.2, "spread": 0.5 + step / num / 10}
        values |= {"skill": 0.3 * step / num, "lidar": 12.0, "lidar_half": 0.5, "held_out_loss": 0.5}
        return {f"health/{name}": value for name, value in values.items()}

    found: list[dict[str, float]] = [{"step": 0, **health(0)}]
    for step in range(1, num + 1):
        row = {"step": step, "loss": 2 + 1 / step, "prediction": 1 + 1 / step, "variance": 0.5 + (step % 7) / 70}
        row |= {"gradient/encoder": 0.2, "lr": 1e-3 / step, "ema_decay": 0.99, "clips_per_s": 20.0, "loader_wait": 0.1}
        found.append(row | (health(step) if step % 25 == 0 or step == num else {}))
    return found


def entry(accuracy: float, names: list[str], uri: str) -> dict:
    share = {"value": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05}
    worst = [
        {"clip_id": 0, "truth": names[0], "predicted": names[1], "probability": 0.1, "confidence": 0.8, "uri": uri}
    ]
    return {
        "task": "classify",
        "measure": "accuracy",
        "accuracy": accuracy,
        "low": accuracy - 0.05,
        "high": accuracy + 0.05,
        "chance": {"accuracy": 0.5, "low": 0.4, "high": 0.6},
        "chosen": {"k": 5},
        "baselines": {"random_init": {"top1": {name: value / 2 for name, value in share.items()}}},
        "scores": {"names": names, "confusion": [[9, 1], [2, 8]], "worst": worst},
        "num_clips": {"train": 40, "selection": 10, "val": 20},
    }


def masks(seed: int = 0) -> dict[str, np.ndarray]:
    """Draw the masks of two sets on each clip: name -> bool [t, h, w]."""
    rng = np.random.default_rng(seed)
    names = [
        f"{name}/{number}/{place}" for name in ("context", "target") for number in (0, 1) for place in range(CLIPS)
    ]
    return {name: rng.random(GRID) < 0.4 for name in names}


def looked_at(words: str) -> Shown:
    rng = np.random.default_rng(1)
    arrays = {f"clip/{i}": picture(strip(rng.integers(256, size=(FRAMES, 32, 32, 3), dtype=np.uint8))) for i in (0, 1)}
    arrays |= {name: pack(mask) for name, mask in masks().items()}
    for kind in ("trained", "untrained"):
        for name in ("parts", "clips"):
            for place in range(CLIPS):
                arrays[f"{name}/{kind}/{place}"] = rng.integers(256, size=(2, 8, 8, 3), dtype=np.uint8)
        arrays[f"spectrum/{kind}"] = np.exp(-np.arange(12, dtype=np.float32))
    arrays |= {f"small/{i}": picture(strip(rng.integers(256, size=(1, 20, 20, 3), dtype=np.uint8))) for i in range(3)}
    near = {"queries": [0], "trained": [[1, 2]], "untrained": [[2, 1]]}
    near |= {"agree/trained": {"kind": 0.9}, "agree/untrained": {"kind": 0.4}}
    facts = {
        "neighbours": near, "num_compared": 3, "grid": list(GRID), "fine": 2, "frames": [0, 1, 2, 3],
        "slots": [0, 0, 1, 1], "masks": ["random, ratio 0.75", "tube"], "words": {str(i): words for i in range(3)},
        "labels": ["kind"], "clips": [{"clip_id": i, "size": [32, 32]} for i in range(CLIPS)],
        "quarantine": {words: "hung"},
    }  # fmt: skip
    return Shown(facts, arrays)


def made_run(folder: Path, num: int = 100, words: str = "a.mp4: kind b", *, is_over: bool = True) -> RunFolder:
    """Write a run of `num` steps; `words` stand wherever a word of the user's may."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    of_run = settings(folder.parent / "x.parquet", folder.name, optim={"total_steps": num})
    tree = config.dump(of_run).replace(str(folder.parent / "x.parquet"), json.dumps(words))
    run.config.write_text(tree, encoding="utf-8")
    run.environment.write_text(json.dumps({"vjepa": "0.1.0", "commit": words, "cores": 2}), encoding="utf-8")
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows(num)), encoding="utf-8")
    if is_over:
        verdict = {"state": "healthy", "rule": words, "advice": "", "step": num}
        features = {"effective_rank": 20.0, "feature_std": 0.3, "num_features": 24}
        summary = {
            "steps": num, "final_loss": 2.0, "clips_per_s": 20.0, "num_replaced": 1, "replaced": {words: "hung"},
            "measured": {"encoder": "encoder", "step": num}, "verdict": verdict, "ended_early": False,
            "probes": {words: {probe: entry(0.9, [words, "b"], words) for probe in ("knn", "linear")}},
            "collapse": features, "untrained": features, "num_unreadable": 1, "unreadable": [f"{words}: gone"],
        }  # fmt: skip
        run.summary.write_text(json.dumps(summary), encoding="utf-8")
        shown.write(run.shown, looked_at(words))
    return run
