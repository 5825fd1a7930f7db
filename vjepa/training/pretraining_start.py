"""Where pre-training starts from: the weights of a run, or of any file of a known format (`run.init_from`)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from vjepa import config
from vjepa.errors import UserError
from vjepa.interop import load
from vjepa.interop.weights import Weights
from vjepa.jepa import Jepa
from vjepa.models.encoder import Encoder
from vjepa.models.predictor import MlpPredictor, Predictor
from vjepa.models.state import load_strictly, spread_colours
from vjepa.run_folder import Checkpoint, RunFolder, followed
from vjepa.training import checkpoint

# Settings of `model` by which weights mean what they do; shapes alone would not tell of all. Channels may differ.
_ENCODER: Final = (
    *("backbone", "input", "patch_px", "tubelet_frames", "positions", "rope", "rope_grid", "sincos_grid"),
    *("level_norms", "modality_embedding", "image_mode"),
    *(f"encoder.{name}" for name in ("width", "depth", "heads", "mlp", "mlp_ratio", "step_size")),
)
_PREDICTOR: Final = (
    *("levels", "predictor.kind", "predictor.out_width"),
    *(f"predictor.{name}" for name in ("width", "depth", "heads", "mlp", "mlp_ratio")),
)
# Parts of a predictor that a file may lack: as many mask tokens as there are mask sets, the head for visible tokens.
_OPTIONAL: Final = ("mask_tokens.", "predictor_proj_context.")


def start_from(path: Path, method: Jepa) -> None:
    """Load the networks at `path` into those of a run; what starts anew, and what is left out, is said.

    A run or checkpoint of `vjepa.train` that has all of them gives each its own. Of everything else that `interop.load`
    reads, the encoder that is evaluated starts the context encoder and its moving average, and the predictor is taken
    where there is one. Clips may have another size, length and number of channels than the weights were trained on;
    channels start from colours with the mean of their kernels. Raises UserError where networks differ, with the
    settings to give.
    """
    path = followed(path)
    found = RunFolder(path).newest or Checkpoint(path)
    if all(found.network(name).is_file() for name in method.networks):
        run = found.run
        if run is not None and isinstance(theirs := config.load_run(run.config), config.Config):
            _refuse_others(str(path), method.settings.model, theirs.model, "predictor" in method.networks)
        checkpoint.load_networks(found, method, other_channels=True)
        return
    weights = load.read(path)
    predictor = None if isinstance(method.predictor, nn.Identity) or not weights.predictor else method.predictor
    _refuse_others(str(path), method.settings.model, weights.model, predictor is not None)
    _refuse_own_table(weights, {"encoder": method.encoder} | ({"predictor": predictor} if predictor else {}))
    _load(method.encoder, weights.encoder, weights.origin)
    method.start_average()
    started = [name for name in method.networks if name.endswith("encoder")]
    anew, left = [name for name in method.networks if name not in started], list[str]()
    if predictor is not None:
        fitted, new, left = _fit(weights.predictor, predictor.state_dict())
        _load(predictor, fitted, weights.origin)
        started.append("predictor")
        anew = [name for name in anew if name != "predictor"] + [f"predictor.{name}" for name in new]
    text = f"run.init_from: {weights.origin}: its {weights.which} starts {', '.join(started)}"
    text += f"; starts anew: {', '.join(anew)}" if anew else ""
    print(text + (f"; left out: {', '.join(left)}" if left else ""), file=sys.stderr)


def _load(network: nn.Module, stored: Mapping[str, Tensor], origin: str) -> None:
    tensors = dict(stored)
    spread_colours(tensors, network.state_dict(), origin)
    load_strictly(network, tensors, origin)


def _fit(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Fill what a predictor may lack from `wanted`, and leave out what it may have more.

    Returns the tensors, the names of those that start anew, and of those that are left out.
    """
    anew = [name for name in wanted.keys() - stored.keys() if name.startswith(_OPTIONAL)]
    left = [name for name in stored.keys() - wanted.keys() if name.startswith(_OPTIONAL)]
    kept = {name: tensor for name, tensor in stored.items() if name not in left}
    return kept | {name: wanted[name] for name in anew}, sorted(anew), sorted(left)


def _refuse_others(origin: str, ours: config.Model, theirs: config.Model, with_predictor: bool) -> None:
    """Raise UserError with the settings that would make our networks those of `origin`, where they are others."""
    differing = list(_differing(ours, theirs, _ENCODER + (_PREDICTOR if with_predictor else ())))
    if differing:
        raise UserError(f"run.init_from: {origin} has other networks than this run; give {' '.join(differing)}")


def _refuse_own_table(weights: Weights, networks: Mapping[str, Encoder | Predictor | MlpPredictor]) -> None:
    """Raise UserError for a file whose tables of positions are others than the sin-cos ones that a run computes."""
    for name, network in networks.items():
        table = weights.tables.get(name)
        if table is not None and not torch.allclose(table, network.positions.table, atol=1e-4):
            raise UserError(
                f"run.init_from: the table of positions that {weights.origin} brings for its {name} is no sin-cos one, "
                "which is all that a run computes; start from another file"
            )


def _differing(ours: config.Model, theirs: config.Model, paths: tuple[str, ...]) -> Iterator[str]:
    """Yield `model.rope=vjepa2`, and so on, for settings of theirs that count and differ."""
    unused = {"rope", "rope_grid"} if theirs.positions != "rope" else {"sincos_grid"}
    for path in paths:
        wanted, got = _setting(theirs, path), _setting(ours, path)
        same = math.isclose(wanted, got) if path.endswith("mlp_ratio") else wanted == got
        if path == "image_mode":  # the others read single frames by the same weights
            same = (wanted == "own") == (got == "own")
        if not same and path not in unused:
            yield f"model.{path}={wanted if isinstance(wanted, str) else json.dumps(wanted, separators=(',', ':'))}"


def _setting(model: config.Model, path: str) -> Any:
    return reduce(getattr, path.split("."), model)
