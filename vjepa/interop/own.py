"""Weights of `vjepa` itself: run folders, their checkpoints, and a single safetensors file for passing on.

runs/demo/config.yaml, runs/demo/checkpoints/step-00000123/{encoder,target_encoder,predictor}.safetensors written by
vjepa.train, those that the run has encoder.safetensors tensors `encoder.*`, `predictor.*`, `tables.*`; metadata: format
("vjepa"), model (JSON), dense ("true", "false"), which
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vjepa import config
from vjepa.errors import UserError
from vjepa.interop.weights import Weights, parse_model
from vjepa.models.state import read_tensors

# The parts of a single file: prefix of its keys -> field of Weights.
PARTS = ("encoder", "predictor", "tables")


def read_metadata(path: Path) -> dict[str, str] | None:
    """Metadata of a safetensors file, empty where it has none; None for a file of another kind."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return None


def recognises(path: Path) -> bool:
    """Whether `read` is for this path: a run, a checkpoint or a weights file inside a run, or a single file whose
    metadata say so.
    """
    if path.is_dir():
        return (path / "config.yaml").is_file() or (_is_checkpoint(path) and _config_above(path) is not None)
    metadata = read_metadata(path)
    return metadata is not None and (metadata.get("format") == "vjepa" or _config_above(path) is not None)


def read(path: Path, which: str | None = None) -> Weights:
    """The networks of a run (its newest checkpoint), of a checkpoint folder, or of one file.

    which: `encoder` or `target_encoder` of a run or checkpoint, None: its `eval.encoder`; a file has the one that it
    has. A weights file of a checkpoint gives that network alone. Raises UserError for anything else.
    """
    if path.is_dir():
        return _read_checkpoint(_checkpoint(path), which)
    metadata = read_metadata(path)
    if metadata is None:
        raise UserError(f"{path}: not a run folder, a checkpoint or a safetensors file of vjepa")
    return _read_single(path, metadata) if metadata.get("format") == "vjepa" else _read_network(path)


def write(weights: Weights, path: Path) -> None:
    """One safetensors file with all of `weights`, all at once or not at all; `read` gives the same back."""
    tensors = {f"{part}.{name}": tensor for part in PARTS for name, tensor in getattr(weights, part).items()}
    metadata = {
        "format": "vjepa",
        "model": weights.model.model_dump_json(),
        "dense": str(weights.dense).lower(),
        "which": weights.which,
    }
    write_file(path, tensors, metadata)


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, all at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(
            {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, partial, metadata
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read_single(path: Path, metadata: Mapping[str, str]) -> Weights:
    if "model" not in metadata:
        raise UserError(f"{path}: its metadata hold no settings of the networks (model)")
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, tensor in read_tensors(path).items():
        part, _, name = key.partition(".")
        if part not in parts:
            raise UserError(
                f"{path}: {key} is part of no network; keys start with {', '.join(f'{one}.' for one in PARTS)}"
            )
        parts[part][name] = tensor
    dense = metadata.get("dense") == "true"
    which = metadata.get("which", "target_encoder")
    return Weights(
        str(path),
        parse_model(metadata["model"], str(path)),
        parts["encoder"],
        parts["predictor"],
        dense,
        parts["tables"],
        which,
    )


def _read_checkpoint(folder: Path, which: str | None) -> Weights:
    settings = _settings_above(folder)
    networks, which = settings.objective.networks, which or settings.eval.encoder
    if which not in networks:
        raise UserError(
            f"{folder}: has no {which}, for the run has objective.targets: {settings.objective.targets}; take encoder"
        )
    files = {"encoder": which, **({"predictor": "predictor"} if "predictor" in networks else {})}
    return _of_run(
        folder,
        settings,
        {network: read_tensors(folder / f"{name}.safetensors") for network, name in files.items()},
        which,
    )


def _read_network(path: Path) -> Weights:
    """A weights file of a checkpoint; its keys say which network it is."""
    tensors = read_tensors(path)
    return _of_run(
        path,
        _settings_above(path),
        {"predictor" if "predictor_proj.weight" in tensors else "encoder": tensors},
        path.stem,
    )


def _settings_above(path: Path) -> config.Config:
    """Those of the run that `path` lies in."""
    found = _config_above(path)
    if found is None:
        raise UserError(f"{path}: no config.yaml lies above it; name a file or folder inside a run of vjepa.train")
    return config.load(str(found))


def _of_run(path: Path, settings: config.Config, networks: Mapping[str, Mapping[str, Tensor]], which: str) -> Weights:
    """`networks` under the settings of their run, whose masks tell the number of mask tokens where the model
    does not.
    """
    num_tokens = settings.model.predictor.mask_tokens or len(settings.masks)
    predictor = settings.model.predictor.model_copy(update={"mask_tokens": num_tokens})
    model = settings.model.model_copy(update={"predictor": predictor})
    dense = settings.objective.context_weight > 0
    return Weights(str(path), model, networks.get("encoder", {}), networks.get("predictor", {}), dense, which=which)


def _checkpoint(folder: Path) -> Path:
    """The checkpoint that a folder is, or the newest of the run that it is."""
    if _is_checkpoint(folder):
        return folder
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder}: not a run folder, it has no config.yaml; name a folder made by python -m vjepa.train"
        )
    latest = folder / "checkpoints" / "latest"
    if not latest.is_dir():
        raise UserError(
            f"{folder}: no checkpoint yet; train it first with python -m vjepa.train --config {folder / 'config.yaml'}"
        )
    return latest.resolve()


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "encoder.safetensors").is_file() and (folder / "state.json").is_file()


def _config_above(path: Path) -> Path | None:
    """The config of the run that a checkpoint, or a file in one, lies in: run/checkpoints/step-N[/file]."""
    checkpoint = path.resolve() if path.is_dir() else path.resolve().parent
    if not _is_checkpoint(checkpoint) or len(checkpoint.parents) < 2:
        return None
    found = checkpoint.parents[1] / "config.yaml"
    return found if found.is_file() else None
