"""How much arithmetic a training step needs: matrix products, two operations for each multiply-add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vjepa import config
from vjepa.jepa import build
from vjepa.models.backbone import make_encoder
from vjepa.models.layers import Block
from vjepa.models.positions import forget_tables
from vjepa.records import ClipBatch


def step_flops(settings: config.Config, teacher: config.Model | None = None) -> int:
    """Count the products of the first step, forward and backward, on tensors without values: 1 to 3 s, no memory.

    What is recomputed in the backward pass to save memory does not count: it is no work of the model. Norms, softmax,
    tables of positions and the optimizer are left out. teacher: settings of the frozen target encoder, where that is
    one.
    """
    data, objective = settings.data, settings.objective.model_copy(update={"initial_std": 0.0})  # which asks for values
    settings = settings.model_copy(update={"objective": objective})
    with torch.device("meta"):  # no initial weights are drawn
        method = build(settings, make_encoder(teacher) if teacher else None)
    for block in (module for module in method.modules() if isinstance(module, Block)):
        block.recompute = "none"
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            method.to_empty(device="cpu")
            video = torch.empty(data.global_batch, data.channels.num, *data.clip_size, dtype=torch.uint8)
            batch = ClipBatch(video, torch.arange(len(video)))
            return count(lambda: method.terms(batch, 0)["loss"].backward())  # type: ignore[no-untyped-call]
    finally:
        forget_tables()


def count(run: Callable[[], Any]) -> int:
    """Count the products of `run()`; attention takes the plain kernel, for the counter knows not all fused ones."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
