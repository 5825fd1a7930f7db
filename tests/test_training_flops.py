from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vjepa import config
from vjepa.jepa import build
from vjepa.masking.draw import plan
from vjepa.training.flops import step_flops

BLOCKS = {"kind": "multiblock", "num_blocks": 2, "spatial_scale": [0.4, 0.4]}


@pytest.mark.parametrize(
    ("model", "masks", "objective", "num_frames"),
    [
        ({}, [{"ratio": 0.5}, BLOCKS], {}, 4),
        ({"image_mode": "own"}, [{"kind": "ijepa"}], {}, 1),
        ({"positions": "sincos", "encoder": {"width": 48, "depth": 4, "heads": 4, "mlp": "swiglu"}}, [BLOCKS], {}, 4),
        ({"levels": 4, "level_norms": True}, [{"ratio": 0.75}], {"context_weight": 0.5}, 4),
        ({"predictor": {"kind": "mlp", "width": 24, "depth": 2, "heads": 2}}, [{"ratio": 0.5}], {}, 4),
        (
            {},
            [{"ratio": 0.75}],
            {"targets": "none", "vicreg_variance": 0.1, "cycle": 0.5, "projector_widths": [96, 32]},
            4,
        ),
        ({}, [{"kind": "ijepa"}], {"targets": "pixels"}, 4),
        (
            {},
            [{"ratio": 0.5}, {"ratio": 0.75}],
            {"targets": "none", "prediction": 0, "view_invariance": 1, "vicreg_variance": 1},
            4,
        ),
        ({"backbone": "energy", "positions": "sincos"}, [{"ratio": 0.5}], {}, 4),
        ({"backbone": "test_resnet", "encoder": {}, "patch_px": 8}, [{"ratio": 0.5}], {}, 1),
        ({"backbone": "test_vit", "encoder": {}, "patch_px": 16}, [{"ratio": 0.5}], {}, 4),
    ],
)
def test_counted_flops_are_those_of_the_flop_counter(
    model: dict, masks: list, objective: dict, num_frames: int
) -> None:
    shapes = {
        "patch_px": 4,
        "encoder": {"width": 48, "depth": 4, "heads": 4},
        "predictor": {"width": 24, "depth": 2, "heads": 2},
    }
    tree = {
        "data": {"train": "x.parquet", "num_frames": num_frames, "crop_px": 32},
        "masks": masks,
        "model": shapes | model,
        "objective": objective,
    }
    settings = config.validate(tree | {"optim": {"total_steps": 8}}, "test")
    jepa, drawn = build(settings), plan(settings.masks, settings.grid).draw(3, 0, 0, 0, 8)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # the counter does not know the fused kernel of CPUs
        jepa(torch.randn(3, 3, num_frames, 32, 32), drawn, 0.1)["loss"].backward()
    assert step_flops(settings, settings.grid, drawn) == pytest.approx(counter.get_total_flops(), rel=0.002)
