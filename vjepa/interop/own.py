"""Weights of `vjepa` itself: run folders, their checkpoints, and a single safetensors file for passing on.

`vjepa.run_folder` says what lies where in a run. The single file holds tensors `encoder.*`, `predictor.*` and
`tables.*`; its metadata are format ("vjepa"), model and channels (JSON of these settings), dense ("true", "false") and
which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vjepa import config
from vjepa.errors import UserError
from vjepa.files import whole_file
from vjepa.interop.weights import Weights, parse_model, parse_section
from vjepa.models.state import read_tensors
from vjepa.run_folder import Checkpoint, RunFolder

# The parts of a single file: prefix of its keys -> field of Weights.
PARTS = ("encoder", "predictor", "tables")


def read_metadata(path: Path) -> dict[str, str] | None:
    """Read the metadata of a safetensors file, empty where it has none; None for a file of another kind."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return None


def recognises(path: Path) -> bool:
    """Tell whether `read` is for this path.

    That is a run, a checkpoint or a weights file inside a run, or a single file whose metadata say so.
    """
    if path.is_dir():
        return RunFolder(path).config.is_file() or _checkpoint_of(path) is not None
    metadata = read_metadata(path)
    return metadata is not None and (metadata.get("format") == "vjepa" or _checkpoint_of(path) is not None)


def read(path: Path, which: str | None = None) -> Weights:
    """Read the networks of a run (its newest checkpoint), of a checkpoint folder, or of one file.

    which: `encoder` or `target_encoder` of a run or checkpoint, None: its `eval.encoder`; a file has the one that it
    has. A weights file of a checkpoint gives that network alone. Raises UserError for anything else.
    """
    if path.is_dir():
        checkpoint = Checkpoint(path)
        return _read_checkpoint(checkpoint if checkpoint.is_one else RunFolder(path).require(), which)
    metadata = read_metadata(path)
    if metadata is None:
        raise UserError(f"{path}: not a run folder, a checkpoint or a safetensors file of vjepa")
    return _read_single(path) if metadata.get("format") == "vjepa" else _read_network(path)


def write(weights: Weights, path: Path) -> None:
    """Write one safetensors file with all of `weights`, whole; `read` gives the same back."""
    tensors = {f"{part}.{name}": tensor for part in PARTS for name, tensor in getattr(weights, part).items()}
    metadata = {
        "format": "vjepa",
        "model": weights.model.model_dump_json(),
        "dense": str(weights.dense).lower(),
        "which": weights.which,
        "channels": weights.channels.model_dump_json(),
    }
    write_file(path, tensors, metadata)


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole."""
    with whole_file(path) as partial:
        apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(apart, partial, metadata)


def _read_single(path: Path) -> Weights:
    metadata = read_metadata(path) or {}
    if "model" not in metadata:
        raise UserError(f"{path}: its metadata hold no settings of the networks (model)")
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, tensor in read_tensors(path).items():
        part, _, name = key.partition(".")
        if part not in parts:
            starts = ", ".join(f"{one}." for one in PARTS)
            raise UserError(f"{path}: {key} is part of no network; keys start with {starts}")
        parts[part][name] = tensor
    model, dense = parse_model(metadata["model"], str(path)), metadata.get("dense") == "true"
    channels = parse_section(config.Channels, metadata.get("channels", "{}"), str(path))
    which = metadata.get("which", "target_encoder")
    return Weights(str(path), model, dense=dense, which=which, channels=channels, **parts)


def _read_checkpoint(checkpoint: Checkpoint, which: str | None) -> Weights:
    settings = _settings(checkpoint)
    if isinstance(settings, config.WorldConfig):
        return _of_world(checkpoint, settings)
    if isinstance(settings, config.FinetuneConfig):
        return _of_finetuned(checkpoint, settings, which or settings.measured[0])
    networks, which = settings.objective.networks, which or settings.eval.encoder
    if which not in networks:
        raise UserError(
            f"{checkpoint.path}: has no {which}, for the run has objective.targets: {settings.objective.targets}; "
            "take encoder"
        )
    predictor = read_tensors(checkpoint.intact("predictor")) if "predictor" in networks else {}
    return _of_run(checkpoint.path, settings, read_tensors(checkpoint.intact(which)), predictor, which)


def _read_network(path: Path) -> Weights:
    """Read a weights file of a checkpoint; its keys say which network it is."""
    checkpoint = _checkpoint_of(path)
    if checkpoint is None:
        raise UserError(f"{path}: no config.yaml lies above it; name a file or folder inside a run of vjepa.train")
    settings = _settings(checkpoint)
    checkpoint.intact(path.stem)
    tensors = read_tensors(path)
    if isinstance(settings, config.WorldConfig):
        return _of_world(checkpoint, settings)
    if isinstance(settings, config.FinetuneConfig):
        return _of_finetuned(checkpoint, settings, path.stem)
    is_predictor = "predictor_proj.weight" in tensors
    return _of_run(path, settings, {} if is_predictor else tensors, tensors if is_predictor else {}, path.stem)


def _of_finetuned(checkpoint: Checkpoint, settings: config.FinetuneConfig, which: str) -> Weights:
    """Read an encoder of a fine-tuned run, with the tables of positions that its start brought."""
    encoders = [name for name in settings.networks if name.endswith("encoder")]
    if which not in encoders:
        raise UserError(f"{checkpoint.path}: {which} is no encoder of this run; take {' or '.join(encoders)}")
    run = checkpoint.run
    tables = _read_single(run.start).tables if run and run.start.is_file() else {}
    tensors = read_tensors(checkpoint.intact(which))
    return Weights(str(checkpoint.path), settings.model, tensors, tables=tables, which=which)


def _of_world(checkpoint: Checkpoint, settings: config.WorldConfig) -> Weights:
    """Read the encoder of a world model: that which it was given, or that which it has learned."""
    run = checkpoint.run
    if run is None or not run.start.is_file():
        raise UserError(f"{checkpoint.path}: start.safetensors, its encoder, is not in the run; copy the whole run")
    start = _read_single(run.start)
    if "encoder" not in settings.networks:
        return start
    return replace(start, encoder=read_tensors(checkpoint.intact("encoder")), origin=str(checkpoint.path))


def _settings(checkpoint: Checkpoint) -> config.Config | config.FinetuneConfig | config.WorldConfig:
    """Read the settings of the run that a checkpoint lies in, of a format that this version reads."""
    checkpoint.read_state()
    run = checkpoint.run
    if run is None:
        raise UserError(f"{checkpoint.path}: no config.yaml lies above it; name a folder inside a run of vjepa.train")
    return config.load_run(run.config)


def _of_run(
    path: Path, settings: config.Config, encoder: Mapping[str, Tensor], predictor: Mapping[str, Tensor], which: str
) -> Weights:
    """Give networks the settings of their run, whose masks tell the number of mask tokens where the model does not."""
    num_tokens = settings.model.predictor.mask_tokens or len(settings.masks)
    shape = settings.model.predictor.model_copy(update={"mask_tokens": num_tokens})
    model = settings.model.model_copy(update={"predictor": shape})
    dense, channels = settings.objective.context_weight > 0, settings.data.channels
    return Weights(str(path), model, encoder, predictor, dense, which=which, channels=channels)


def _checkpoint_of(path: Path) -> Checkpoint | None:
    """Find the checkpoint of a run that `path` is, or is a file of; None for others."""
    found = Checkpoint(path if path.is_dir() else path.resolve().parent)
    return found if found.is_one and found.run else None
