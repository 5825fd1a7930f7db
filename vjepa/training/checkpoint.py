"""Checkpoints: safetensors weights and a training state that loads without unpickling code, written atomically.

checkpoints/step-00000123/{encoder,target_encoder,predictor}.safetensors   the weights, one file per network of
                                                                           `Objective.networks`
                          optimizer.safetensors                            AdamW's moments, by parameter name
                          state.json                                       step, failures so far, format version
checkpoints/latest        a link to the newest
checkpoints/best          a link to the one with the best k-NN accuracy during training, where that was measured
checkpoints/best.pth      its networks, or the newest's where none was measured, in one file (safetensors) to pass on;
                          see interop.own
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vjepa import config
from vjepa.errors import UserError
from vjepa.jepa import Jepa, untrained_encoder
from vjepa.models.backbone import load_pretrained
from vjepa.models.encoder import Encoder
from vjepa.models.state import load_strictly, read_tensors
from vjepa.records import ClipBatch

FORMAT_VERSION = 1


@dataclass
class TrainingState:
    """What a run has to remember beside tensors. `unreadable` maps a clip to why it was replaced.

    A clip is named by its clip id (as text) where it is of data.train, else by `source:clip_id`; see
    `ClipBatch.source`. `best_knn` is the best k-NN accuracy so far, where that is measured.
    """

    step: int = 0
    num_replaced: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    best_knn: float | None = None

    def note(self, batch: ClipBatch) -> None:
        """Count the clips of a batch that stand in for another, and remember by name what could not be read."""
        self.num_replaced += batch.num_replaced
        prefix = f"{batch.source}:" if batch.source else ""
        self.unreadable |= {f"{prefix}{clip_id}": reason for clip_id, reason in batch.failures}

    def replaced(self) -> Iterator[tuple[int, int, str]]:
        """(source, clip_id, reason) of every clip in `unreadable`."""
        for key, reason in self.unreadable.items():
            source, _, clip_id = key.rpartition(":")
            yield int(source or 0), int(clip_id), reason


def save(
    run_dir: Path, model: Jepa, optimizer: torch.optim.Optimizer, state: TrainingState, keep: int, is_best: bool = False
) -> Path:
    """Write `checkpoints/step-N` under another name, sync it, rename it, then point `latest`, and `best` if it is that,
    to it; returns its path.

    A crash at any moment leaves the last complete checkpoint in place. Older ones than the newest `keep` are removed,
    save the best.
    """
    root = run_dir / "checkpoints"
    final = root / f"step-{state.step:08d}"
    partial = root / f".partial-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for network in model.objective.networks:
        _write_tensors(partial / f"{network}.safetensors", getattr(model, network).state_dict())
    _write_tensors(partial / "optimizer.safetensors", _moments(model, optimizer))
    (partial / "state.json").write_text(json.dumps({"format_version": FORMAT_VERSION, **asdict(state)}, indent=1))
    _sync(partial / "state.json")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for name in ("latest", "best") if is_best else ("latest",):
        _point(root, name, final.name)
    best = (root / "best").resolve()
    for old in sorted(root.glob("step-*"))[:-keep]:
        if old.resolve() != best:
            shutil.rmtree(old)
    return final


def restore(run_dir: Path, model: Jepa, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Load the latest checkpoint into model and optimizer; a run without one starts at step 0. Raises UserError where
    it does not fit.
    """
    folder = run_dir / "checkpoints" / "latest"
    if not folder.exists():
        return TrainingState()
    load_networks(folder, model)
    moments = read_tensors(folder / "optimizer.safetensors")
    for name, parameter in _trained(model).items():
        if f"{name}/step" not in moments:  # no step has used it yet
            continue
        optimizer.state[parameter] = {
            kind: moments[f"{name}/{kind}"].to(parameter.device) for kind in ("step", "exp_avg", "exp_avg_sq")
        }
    stored = json.loads((folder / "state.json").read_text())
    version = stored.pop("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{folder}: checkpoint format {version}, this version of vjepa reads {FORMAT_VERSION}")
    return TrainingState(**stored)


def initialise(model: Jepa, settings: config.Config) -> None:
    """Give the networks the weights that the first step starts from, where those are not random. Raises UserError where
    they cannot be had.
    """
    if settings.run.init_from is not None:
        load_networks(Path(settings.run.init_from), model)
    if settings.model.pretrained:
        load_pretrained(model.encoder)
        if model.target_encoder is not None and model.objective.targets == "ema":
            model.target_encoder.load_state_dict(model.encoder.state_dict())


def load_networks(path: Path, model: Jepa) -> None:
    """Load every network of a checkpoint folder, or of the newest checkpoint of a run. Raises UserError where they do
    not fit.
    """
    folder = path / "checkpoints" / "latest" if (path / "checkpoints").is_dir() else path
    for network in model.objective.networks:
        file = folder / f"{network}.safetensors"
        load_strictly(getattr(model, network), read_tensors(file), file)


def load_run(run_dir: Path | str, which: str) -> tuple[Encoder, config.Config]:
    """The frozen `encoder` or `target_encoder` of the newest checkpoint of a run, on the CPU, and the run's config."""
    folder = Path(run_dir)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{folder}: not a run folder, it has no config.yaml; name a folder made by python -m vjepa.train"
        )
    weights = folder / "checkpoints" / "latest" / f"{which}.safetensors"
    if not weights.is_file():
        raise UserError(
            f"{folder}: no checkpoint yet; train it first with python -m vjepa.train --config {folder / 'config.yaml'}"
        )
    settings = config.load(str(folder / "config.yaml"))
    encoder = untrained_encoder(settings)
    load_strictly(encoder, read_tensors(weights), weights)
    return encoder, settings


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{kind}": value
        for name, parameter in _trained(model).items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    _sync(path)


def _sync(path: Path) -> None:
    """Until the disk has the bytes a rename may outlive them."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _point(root: Path, name: str, checkpoint: str) -> None:
    link = root / f".{name}"
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint)
    os.replace(link, root / name)
