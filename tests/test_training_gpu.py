"""What only a GPU can show of the training step."""

from __future__ import annotations

import pytest
import torch
from steps import OBJECTIVES, batch_of, built, step_of

from vjepa import config
from vjepa.training.step import TrainingStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CLIPS = torch.randint(256, (4, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def step_on(device: str, dtype: torch.dtype, compiled: bool = False, objective: str = "ema") -> TrainingStep:
    settings = config.validate(
        {
            "run": {"compile": compiled},
            "data": {"train": "x.parquet", "num_frames": 4, "crop_px": 32},
            "masks": [
                {"kind": "multiblock", "num_blocks": 2},
                {"kind": "multiblock", "num_blocks": 1, "spatial_scale": [0.7, 0.7]},
            ],
            "model": {
                "patch_px": 4,
                "encoder": {"width": 128, "depth": 2, "heads": 2},
                "predictor": {"width": 64, "depth": 2, "heads": 2},
            },
            "objective": OBJECTIVES[objective],
            "optim": {"total_steps": 8, "clip_grad": 1.0},
        },
        "test",
    )
    return step_of(settings, built(settings).to(device), dtype)


def losses(step: TrainingStep) -> list[float]:
    return [step(number, batch_of(CLIPS))["loss"].item() for number in range(6)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_gives_the_losses_of_the_cpu(objective: str) -> None:
    exact = losses(step_on("cpu", torch.float32, objective=objective))
    assert losses(step_on("cuda", torch.float32, objective=objective)) == pytest.approx(exact, rel=1e-4)
    for compiled in (False, True) if objective == "ema" else (False,):
        assert losses(step_on("cuda", torch.bfloat16, compiled, objective)) == pytest.approx(exact, rel=3e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_host_never_waits_for_the_gpu(objective: str) -> None:
    step, clips = step_on("cuda", torch.bfloat16, objective=objective), CLIPS.pin_memory()
    for number in range(2):
        step(number, batch_of(clips))
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(2, batch_of(clips))
    finally:
        torch.cuda.set_sync_debug_mode("default")
