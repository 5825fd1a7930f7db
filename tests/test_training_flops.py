from __future__ import annotations

import pytest
import torch

from vjepa import config
from vjepa.jepa import build
from vjepa.masking.draw import plan
from vjepa.records import ClipBatch
from vjepa.training.flops import count, step_flops

BLOCKS = {"kind": "multiblock", "num_blocks": 2, "spatial_scale": [0.4, 0.4]}


@pytest.mark.parametrize(
    ("model", "masks", "objective", "num_frames"),
    [
        ({}, [{"ratio": 0.5}, BLOCKS], {}, 4),
        ({"image_mode": "own"}, [{"kind": "ijepa"}], {}, 1),
        ({"positions": "sincos", "encoder": {"width": 48, "depth": 2, "heads": 4, "mlp": "swiglu"}}, [BLOCKS], {}, 4),
        (
            {"levels": 4, "level_norms": True, "encoder": {"width": 48, "depth": 4, "heads": 4}},
            [{"ratio": 0.75}],
            {"context_weight": 0.5},
            4,
        ),
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
def test_a_step_without_values_needs_what_a_real_one_does(
    model: dict, masks: list, objective: dict, num_frames: int
) -> None:
    shapes = {
        "patch_px": 4,
        "encoder": {"width": 48, "depth": 2, "heads": 4},
        "predictor": {"width": 24, "depth": 1, "heads": 2},
    }
    tree = {
        "data": {"train": "x.parquet", "num_frames": num_frames, "crop_px": 32, "global_batch": 3},
        "masks": masks,
        "model": shapes | model,
        "objective": objective,
    }
    settings = config.validate(tree | {"optim": {"total_steps": 8}}, "test")
    jepa = build(settings)
    batch = ClipBatch(torch.randint(256, (3, 3, num_frames, 32, 32), dtype=torch.uint8), torch.arange(3))
    assert step_flops(settings) == count(lambda: jepa.terms(batch, 0)["loss"].backward())


def transformer(depth: int, width: int, num_tokens: int) -> int:
    """Queries, keys, values and output 8 N D^2, attention 4 N^2 D, MLP of hidden width 4 D: 16 N D^2."""
    return depth * (24 * num_tokens * width**2 + 4 * num_tokens**2 * width)


def test_bench_vits16_needs_what_is_counted_by_hand() -> None:
    settings = config.load("bench_vits16")
    masks = plan(settings.masks, settings.grid).draw(1, 0, 0, 0, 1000)
    embed = 2 * 3 * 2 * 16**2 * 384  # of a token
    num_tokens = settings.grid.num_tokens
    total = num_tokens * embed + transformer(12, 384, num_tokens)  # the target encoder, forward
    for mask in masks:
        seen, wanted = mask.context_ids.shape[1], mask.target_ids.shape[1]
        total += 2 * seen * embed + 3 * transformer(12, 384, seen)  # the gradient of pixels is not asked for
        total += 3 * (transformer(6, 192, seen + wanted) + (seen + wanted) * 2 * 384 * 192)
    assert step_flops(settings) == 4 * total == pytest.approx(252.8e9, rel=1e-3)


def test_what_is_computed_again_to_save_memory_does_not_count() -> None:
    settings = config.load("bench_vits16", ["data.global_batch=1", "model.encoder.depth=2", "model.predictor.depth=1"])
    again = config.load(
        "bench_vits16",
        [
            "data.global_batch=1",
            "model.encoder.depth=2",
            "model.predictor.depth=1",
            "model.encoder.recompute=block",
        ],
    )
    assert step_flops(again) == step_flops(settings)
