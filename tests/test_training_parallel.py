"""The same run on any number of ranks: what 2 and 4 processes learn together, beside what one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import losses, settings, weights
from team import on_ranks

from vjepa import config
from vjepa.training.pretraining import train

# Widths are such that a half of every weight is whole vectors of the CPU: its fused AdamW rounds what is left over
# otherwise (seen on halves of 25 numbers, PyTorch 2.14).
NETWORKS = {
    "patch_px": 8,
    "encoder": {"width": 32, "depth": 2, "heads": 2, "drop_path": 0.3},
    "predictor": {"width": 32, "depth": 2, "heads": 2, "drop_path": 0.2},
}


def run_of(clips: Path, name: str, kind: str, accumulate: int = 1, clip: float | None = None) -> config.Config:
    return settings(
        clips,
        name,
        run={"save_every_steps": 10},
        model=NETWORKS,
        optim={"total_steps": 20, "clip_grad": clip},
        parallel={"kind": kind, "accumulate": accumulate},
    )


def train_all(runs: list[config.Config]) -> list[dict[str, Any] | None]:
    return [train(run, progress=False) for run in runs]


def far(one: config.Config, other: config.Config) -> float:
    """The largest difference of a weight, a moment or an average of two runs, or of a loss that they logged."""
    first, second = weights(one.run.dir), weights(other.run.dir)
    assert {file: tensors.keys() for file, tensors in first.items()} == {
        file: tensors.keys() for file, tensors in second.items()
    }
    apart = [
        float((first[file][name] - tensor).abs().max())
        for file, kept in second.items()
        for name, tensor in kept.items()
    ]
    rows = [losses(run.run.dir) for run in (one, other)]
    assert len(rows[0]) == len(rows[1]) == 20
    return max(apart + [abs(a - b) for a, b in zip(*rows, strict=True)])


def test_twenty_steps_are_the_same_of_two_micro_batches_and_of_two_ranks(clips) -> None:
    """By DDP, and by shards of FSDP2: equal bits; with clipping the norm is summed in another order. drop_path, and
    terms that compare all clips, are in it.
    """
    alone = {clip: run_of(clips, f"alone_{clip}", "auto", 2, clip) for clip in (None, 0.1)}
    shared = {
        (kind, clip): run_of(clips, f"{kind}_{clip}", kind, 1, clip) for kind in ("ddp", "fsdp2") for clip in alone
    }
    train_all(list(alone.values()))
    found = on_ranks(2, train_all, list(shared.values()))
    assert found[0] == found[1] and all(summary["steps"] == 20 for summary in found[0])
    for (kind, clip), run in shared.items():
        assert far(run, alone[clip]) <= (0 if clip is None else 1e-6), kind
        assert (Path(run.run.dir or "") / "metrics.jsonl").read_text().count("\n") == len(losses(run.run.dir)) + 1


@pytest.mark.fast
def test_clips_masks_and_what_is_skipped_do_not_depend_on_the_number_of_parts() -> None:
    """Of 1, 2 and 4 parts of a step, however they are dealt to ranks and micro-batches."""
