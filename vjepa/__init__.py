"""vjepa: pre-train video encoders by predicting features of hidden space-time tokens, and prove what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from vjepa.interop.weights import Weights
    from vjepa.models.encoder import Encoder
    from vjepa.models.predictor import MlpPredictor, Predictor
    from vjepa.planning.planner import WorldPlanner

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder", "load_predictor", "load_world"]


def load_encoder(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    which: str | None = None,
    heads: int | None = None,
    position_grid: tuple[int, int, int] | None = None,
) -> Encoder:
    """Load a frozen encoder, on the CPU, in evaluation mode: `encoder(video [B, 3, T, H, W]) -> [B, N, D]`.

    The video is normalised by ImageNet's mean and standard deviation, or by `data.channels` of its run. Its N tokens
    lie on the grid `encoder.grid(T, H, W)` of t time slots, h rows and w columns, in raster order;
    `encoder(video, context_ids)`, ids [B, K], gives those tokens alone, which see no others. T = 1 is an image, one
    time slot; the image evaluations of V-JEPA 1 and 2 repeat it to 16 frames instead, which
    `video.expand(-1, -1, 16, -1, -1)` does. Predictors of four
    levels (V-JEPA 2.1 g and G) take `encoder.encode(patchify(video, encoder.model), context_ids)`, [B, K, 4 D].

    path: a run, checkpoint or export of vjepa; a training file of V-JEPA 1, V-JEPA 2, V-JEPA 2.1 or I-JEPA; a folder of
    transformers' VJEPA2 or I-JEPA.
    format: vjepa, vjepa1, vjepa2, vjepa2.1, ijepa or huggingface; None: recognised by content.
    which: `encoder`, the context encoder, or `target_encoder`, its moving average, where there are both. None: the one
    that is evaluated, `eval.encoder` of a run (unless set otherwise its context encoder), the target encoder of a
    published file.
    heads: attention heads, for a training file of no published size. position_grid: time slots, rows and columns of its
    sin-cos table.

    Raises UserError with one line that says what is wrong with the file, and names a key that is missing, surplus or
    misshapen. Nothing in a file is ever run.
    """
    return _read(path, format, which, heads, None, position_grid, predictor=False).build_encoder()


def load_predictor(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    which: str | None = None,
    heads: int | None = None,
    predictor_heads: int | None = None,
    position_grid: tuple[int, int, int] | None = None,
) -> Predictor | MlpPredictor:
    """Load a frozen predictor: `predictor(context [B, Kc, D], context_ids, target_ids, grid) -> [B, Kt, D]`.

    The ids are [B, Kc] and [B, Kt]. grid: that of all tokens of the video, `encoder.grid(T, H, W)`, or its three
    numbers (t, h, w): time slots, rows, columns. A further argument, `mask_index=0`, picks the mask token: V-JEPA 1 has
    one for each mask set; V-JEPA 2 has more than its training used, which is the first where clips have one length,
    while transformers' VJEPA2 reads the second.

    predictor_heads: attention heads; None: 12 for V-JEPA 2 and 2.1, as many as the encoder has for V-JEPA 1 and I-JEPA.
    The other arguments, and the errors, are those of `load_encoder`; a file without a predictor is a UserError.
    """
    return _read(path, format, which, heads, predictor_heads, position_grid, predictor=True).build_predictor()


def load_world(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, encoder: str | None = None
) -> WorldPlanner:
    """Load a world model that plans, on the CPU: `world.plan(frames, goal) -> actions [H, A], energy`.

    path: a run of vjepa.train with a section world, its export, or a published file of V-JEPA 2-AC. overrides: such as
    "plan.samples=128". encoder: what load_encoder takes, for a published file that has no encoder.
    Raises UserError with one line that says what is wrong.
    """
    from vjepa.planning import running  # not at the top, for the same reason as below

    return running.load_planner(Path(path), overrides, encoder)


def _read(path: str | os.PathLike[str], format: str | None, *hints: Any, predictor: bool) -> Weights:
    from vjepa.interop import load, meta  # not at the top: `import vjepa`, of every --help, must not wait for torch

    return load.read(Path(path), format, meta.Hints(*hints), predictor=predictor)
