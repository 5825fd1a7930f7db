"""World models as files: runs, one file to pass on, and the files that were published of V-JEPA 2-AC.

A single file holds `encoder.*`, `predictor.*` and, where there are any, `head.*` and `goal_model.*`; its metadata are
format ("vjepa-world"), config, tracks, step, and model and channels of the encoder, all JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from vjepa import config
from vjepa.data.tracks import TrackInfo, Tracks
from vjepa.errors import UserError
from vjepa.interop import load, meta, own
from vjepa.interop.meta import Hints
from vjepa.interop.weights import Weights, parse_model, parse_section
from vjepa.models.backbone import load_pretrained, make_encoder
from vjepa.models.encoder import Encoder
from vjepa.models.state import load_strictly, read_tensors
from vjepa.run_folder import RunFolder
from vjepa.world_model import WorldModel

_FORMAT: Final = "vjepa-world"
_TIMM: Final = "timm:"
_HEAD_WIDTH: Final = 64  # of every published predictor
# DROID's pose of the gripper, in the frame of the base of the robot, and how far the gripper is closed
_DROID: Final = TrackInfo(
    ("x", "y", "z", "roll", "pitch", "yaw", "gripper"), ("m", "m", "m", "rad", "rad", "rad", ""), {3: "euler"}
)
_ROLL_OUT: Final = (
    "the official V-JEPA 2-AC was trained with a wrong roll-out, whose second prediction stood in place of the first, "
    "and plans worse than a re-training (facebookresearch/vjepa2, PR 25; JEPA-WMs)"
)


@dataclass(frozen=True)
class ReadWorld:
    """Hold a world model that was read, frozen; its settings; the step of its checkpoint, 0 for a published file."""

    model: WorldModel
    settings: config.WorldConfig
    step: int


def build(settings: config.WorldConfig, encoder: Encoder, tracks: Tracks) -> WorldModel:
    """Make a world model at random weights, the same for the same run.seed. Raises UserError where parts do not fit."""
    if settings.world.state and tracks.state is None:
        raise UserError("world.state: the index has no states; set world.state: false")
    if encoder.model.input == "changes":
        raise UserError(
            "world.model_path: this encoder reads changes between frames, and here each frame is encoded alone; give "
            "one with model.input: frames"
        )
    if tracks.action is None:
        raise UserError("world: the index has no actions; index it with their tracks")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        return WorldModel(settings, encoder, tracks.action, tracks.state)


def read_encoder(settings: config.WorldConfig) -> Weights:
    """Read the encoder that a world model is learned on, or the copy that its run has. Raises UserError."""
    world, kept = settings.world, settings.run.folder.start
    if kept.is_file():
        return load.read(kept)
    if world.model_path.startswith(_TIMM):
        model = config.Model(backbone=world.model_path.removeprefix(_TIMM), pretrained=not world.from_scratch)
        encoder = make_encoder(model)
        if model.pretrained:
            load_pretrained(encoder)
        return Weights(world.model_path, model, encoder.state_dict(), which="encoder")
    if not Path(world.model_path).exists():
        raise UserError(f"world.model_path: {world.model_path} is no run folder, checkpoint or weights file")
    return replace(load.read(world.model_path, hints=Hints(world.encoder), predictor=False), predictor={})


def read(path: Path, overrides: Sequence[str] = (), encoder: str | None = None) -> ReadWorld:
    """Read a world model: a run of vjepa.train, a file of `write`, or a published file of V-JEPA 2-AC.

    overrides: settings of planning in place of its own. encoder: file of the encoder, for a published file without one.
    Raises UserError.
    """
    if path.is_dir():
        return _of_run(path, overrides)
    if not path.is_file():
        raise UserError(f"{path}: no such run folder or file; name a run of vjepa.train with a world, such as rooms")
    metadata = own.read_metadata(path)
    if metadata is None:
        return _published(path, overrides, encoder)
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path}: is no world model; name a run of a config with a section world, or its export")
    return _of_file(path, metadata, overrides)


def write(found: ReadWorld, weights: Weights, path: Path) -> None:
    """Write one safetensors file with a world model and its encoder, whole; `read` gives the same back.

    weights: the encoder, as `read_encoder` gives it.
    """
    model = found.model
    networks = {name: network.state_dict() for name, network in model.networks.items()}
    parts: dict[str, Mapping[str, Tensor]] = {"encoder": weights.encoder, **networks}
    tensors = {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}
    metadata = {
        "format": _FORMAT,
        "config": found.settings.model_dump_json(),
        "tracks": Tracks(model.actions, model.states).to_json(),
        "step": str(found.step),
        "model": weights.model.model_dump_json(),
        "channels": weights.channels.model_dump_json(),
    }
    own.write_file(path, tensors, metadata)


def is_run(path: Path) -> bool:
    """Tell whether `path` is a run of a world model."""
    run = RunFolder(path)
    return path.is_dir() and run.config.is_file() and isinstance(config.load_run(run.config), config.WorldConfig)


def export(source: Path, out: Path) -> str:
    """Write the world model of a run as one file, read it back, and say how far their predictions are apart."""
    found = read(source)
    write(found, read_encoder(found.settings), out)
    again = read(out).model
    with torch.inference_mode():
        latents = torch.randn(1, 2, *found.model.latent_shape)
        actions = torch.randn(1, 2, found.model.actions.size)
        states = None if found.model.states is None else torch.randn(1, 2, found.model.states.size)
        apart = (
            (again.predictor(latents, actions, states) - found.model.predictor(latents, actions, states)).abs().max()
        )
    return f"{out}: world model as safetensors; predictions differ from those of {source} by at most {float(apart):.2g}"


def _of_run(path: Path, overrides: Sequence[str]) -> ReadWorld:
    run = RunFolder(path)
    newest = run.require()
    settings = config.load_run(run.config)
    if not isinstance(settings, config.WorldConfig):
        raise UserError(f"{path}: is no world model; name a run of a config with a section world")
    if not run.tracks.is_file():
        raise UserError(f"{run.tracks}: is not there, and says what actions are; copy the whole run")
    settings = config.changed(settings, [f"run.dir={path}", *overrides])
    model = build(settings, read_encoder(settings).build_encoder(), Tracks.from_json(run.tracks.read_text("utf-8")))
    chosen = run.best or newest
    chosen.read_state()
    for name, network in model.networks.items():
        load_strictly(network, read_tensors(chosen.intact(name)), chosen.network(name))
    return ReadWorld(model.requires_grad_(False).eval(), settings, chosen.step or 0)


def _of_file(path: Path, metadata: Mapping[str, str], overrides: Sequence[str]) -> ReadWorld:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(path).items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = tensor
    settings = config.changed(config.validate_world(json.loads(metadata["config"]), str(path)), overrides)
    channels = parse_section(config.Channels, metadata["channels"], str(path))
    weights = Weights(str(path), parse_model(metadata["model"], str(path)), parts["encoder"], channels=channels)
    model = build(settings, weights.build_encoder(), Tracks.from_json(metadata["tracks"]))
    for name, network in model.networks.items():
        load_strictly(network, parts.get(name, {}), f"{path}: {name}")
    return ReadWorld(model.requires_grad_(False).eval(), settings, int(metadata["step"]))


def _published(path: Path, overrides: Sequence[str], encoder: str | None) -> ReadWorld:
    """Read a published predictor beside its encoder: that of the file, or `encoder`."""
    content = meta.read_file(path)
    predictor = content.get("predictor")
    state = meta.network_of(predictor, f"{path}: predictor") if isinstance(predictor, dict) else {}
    if not state or "action_encoder.weight" not in state:
        raise UserError(f"{path}: has no predictor with actions; is it a file of V-JEPA 2-AC?")
    state = {name.replace("proprio_encoder", "state_encoder"): tensor for name, tensor in state.items()}
    # published files have weights of a token of extrinsics that no training used
    state = {name: tensor for name, tensor in state.items() if not name.startswith("extrinsics_encoder.")}
    if encoder is None and not {"encoder", "target_encoder"} & content.keys():
        raise UserError(f"{path}: has no encoder; name the one that it was trained on with encoder=")
    if encoder is None:
        print(f"{path}: {_ROLL_OUT}", file=sys.stderr)
    origin = encoder or str(path)
    weights = load.read(origin, "vjepa2" if encoder is None else None, predictor=False)
    settings = config.changed(_published_settings(state, origin), overrides)
    tracks = Tracks(replace(_DROID, mean=(0.0,) * 7, std=(1.0,) * 7), _DROID)
    model = build(settings, weights.build_encoder(), tracks)
    load_strictly(model.predictor, state, f"{path}: predictor")
    return ReadWorld(model.requires_grad_(False).eval(), settings, 0)


def _published_settings(state: Mapping[str, Tensor], origin: str) -> config.WorldConfig:
    """Tell the settings of a published predictor by the shapes of its weights."""
    width, depth = (
        len(state["predictor_embed.weight"]),
        1 + max(int(name.split(".")[1]) for name in state if name.startswith("predictor_blocks.")),
    )
    shape = {
        "width": width,
        "depth": depth,
        "heads": max(1, width // _HEAD_WIDTH),
        "mlp_ratio": len(state["predictor_blocks.0.mlp.fc1.weight"]) / width,
    }
    tree: dict[str, Any] = config.read_tree(config.config_path("vjepa2_ac_vitg16"))
    tree["world"] |= {"model_path": origin, "state": "state_encoder.weight" in state, "goal_width": 0}
    tree["world"]["predictor"] |= shape
    return config.validate_world(tree, origin)
