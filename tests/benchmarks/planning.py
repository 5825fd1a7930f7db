"""How long an action takes to plan: 4 x 4 tokens, width 128, depth 4, 64 samples x 5 rounds, 4 steps ahead.

python tests/benchmarks/planning.py        (one thread: OMP_NUM_THREADS=1; seconds of the CPU, so others may use it too)
Beside it the way of the published code, which predicts each sequence anew at every step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vjepa import config
from vjepa.data.tracks import TrackInfo
from vjepa.models.backbone import make_encoder
from vjepa.planning.planner import WorldPlanner
from vjepa.world_model import WorldModel


def make(horizon: int) -> WorldPlanner:
    torch.manual_seed(0)
    settings = config.WorldConfig.model_validate(
        {
            "data": {"train": "x", "num_frames": 8, "frame_step": 5, "actions": "sum", "crop_px": 32, "fit": "squash"},
            "world": {"model_path": "x", "predictor": {"width": 128, "depth": 4, "heads": 4}},
            "optim": {"total_steps": 1, "lr": 1e-3},
        }
    )
    model = config.Model.model_validate({"patch_px": 8, "encoder": {"width": 96, "depth": 4, "heads": 3}})
    actions = TrackInfo(("x", "y"), ("", ""), {}, (0.0, 0.0), (1.0, 1.0), 1)
    wanted = config.Planning(samples=64, rounds=5, horizon=horizon)
    return WorldPlanner(WorldModel(settings, make_encoder(model), actions, None), wanted)


def anew(planner: WorldPlanner, now: Tensor, actions: Tensor) -> Tensor:
    """Predict the last frame of each sequence with nothing kept."""
    frames = now.expand(len(actions), 1, *now.shape[1:])
    for k in range(actions.shape[1]):
        predicted = planner.model.predictor(frames, actions[:, : k + 1])[:, -1:]
        frames = torch.cat([frames, predicted], dim=1)
    return frames[:, 1:]


def seconds(call: Callable[[], object], times: int) -> float:
    """Give the least CPU time of several calls."""
    found = []
    for _ in range(times):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    frames, goal = (torch.randint(256, (3, *shape, 32, 32), dtype=torch.uint8) for shape in ((1,), ()))
    for horizon in (2, 4):
        planner = make(horizon)
        now, actions = planner.encode(frames), torch.randn(64, horizon, 2)
        with torch.inference_mode():
            kept = seconds(lambda: planner.roll_out(now[-1], None, actions), times)  # noqa: B023
            plain = seconds(lambda: anew(planner, now, actions), times)  # noqa: B023
        whole = seconds(lambda: planner.plan(frames, goal), times)  # noqa: B023
        print(
            f"H={horizon}: an action {whole:.3f} s; a round {kept:.3f} s with keys kept, {plain:.3f} s without, "
            f"{plain / kept:.2f} times as long"
        )


if __name__ == "__main__":
    main()
