"""Hugging Face folders, VJEPA2 and I-JEPA: config.json beside safetensors, read and written without the library.

One table per kind of model says which of their tensors, stacked along dimension 0, make one of ours; reading stacks by
it and writing splits by it. Their V-JEPA 2 numbers the cells of every video as if each time slot were a square of
`crop_size`, so its positions, and with them its features, agree with ours on videos of that size (and for one time
slot, on any height).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vjepa import config
from vjepa.errors import UserError
from vjepa.interop.weights import Weights, parse_model, parse_section
from vjepa.models.encoder import VisionTransformer
from vjepa.models.predictor import make_predictor
from vjepa.models.state import read_tensors

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PROCESSOR = "video_preprocessor_config.json"
MASK_TOKENS = "predictor.embeddings.mask_tokens"  # [n, 1, 1, width], where we have n of [1, 1, width]
NORM_EPS = 1e-6


@dataclass(frozen=True)
class TensorNames:
    """Translate our names of tensors into theirs, without `.weight` and `.bias`; several of theirs are stacked.

    block: the start of the names in their block number {}. parts: within a block. names: outside of blocks.
    """

    block: str
    parts: Mapping[str, tuple[str, ...]]
    names: Mapping[str, tuple[str, ...]]

    def theirs(self, key: str) -> tuple[str, ...]:
        """List their keys of our `key`: blocks.0.attn.qkv.bias -> encoder.layer.0.attention.{query,key,value}.bias."""
        stem, _, kind = key.rpartition(".")
        numbered = re.fullmatch(r".*?blocks\.(\d+)\.(.+)", stem)
        if numbered is None:
            return tuple(f"{name}.{kind}" for name in self.names[stem])
        return tuple(f"{self.block.format(numbered[1])}.{name}.{kind}" for name in self.parts[numbered[2]])


VJEPA2_PARTS = {
    "norm1": ("norm1",),
    "attn.qkv": ("attention.query", "attention.key", "attention.value"),
    "attn.proj": ("attention.proj",),
    "norm2": ("norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
VJEPA2_ENCODER = TensorNames(
    block="encoder.layer.{}",
    parts=VJEPA2_PARTS,
    names={"patch_embed.proj": ("encoder.embeddings.patch_embeddings.proj",), "norm": ("encoder.layernorm",)},
)
VJEPA2_PREDICTOR = TensorNames(
    block="predictor.layer.{}",
    parts=VJEPA2_PARTS,
    names={
        "predictor_embed": ("predictor.embeddings.predictor_embeddings",),
        "mask_tokens": (MASK_TOKENS,),
        "predictor_norm": ("predictor.layernorm",),
        "predictor_proj": ("predictor.proj",),
    },
)
IJEPA_NAMES = {"patch_embed.proj": ("embeddings.patch_embeddings.projection",), "norm": ("layernorm",)}
# I-JEPA files hold the names of the library's ViT before version 5, which version 5 still writes; in memory it has
# other ones.
IJEPA_FILE = TensorNames(
    block="encoder.layer.{}",
    parts={
        "norm1": ("layernorm_before",),
        "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        "attn.proj": ("attention.output.dense",),
        "norm2": ("layernorm_after",),
        "mlp.fc1": ("intermediate.dense",),
        "mlp.fc2": ("output.dense",),
    },
    names=IJEPA_NAMES,
)
IJEPA_MEMORY = TensorNames(
    block="layers.{}",
    parts={
        "norm1": ("layernorm_before",),
        "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attn.proj": ("attention.o_proj",),
        "norm2": ("layernorm_after",),
        "mlp.fc1": ("mlp.fc1",),
        "mlp.fc2": ("mlp.fc2",),
    },
    names=IJEPA_NAMES,
)

# What their config class takes where config.json is silent, for the settings that shape the networks.
VJEPA2_DEFAULTS: dict[str, Any] = {
    "patch_size": 16,
    "crop_size": 256,
    "frames_per_clip": 64,
    "tubelet_size": 2,
    "hidden_size": 1024,
    "in_chans": 3,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "mlp_ratio": 4.0,
    "layer_norm_eps": NORM_EPS,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "pred_hidden_size": 384,
    "pred_num_attention_heads": 12,
    "pred_num_hidden_layers": 12,
    "pred_num_mask_tokens": 10,
    "pred_mlp_ratio": 4.0,
}
IJEPA_DEFAULTS: dict[str, Any] = {
    "patch_size": 16,
    "image_size": 224,
    "hidden_size": 768,
    "num_channels": 3,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "qkv_bias": True,
    "hidden_act": "gelu",
}
DEFAULTS = {"vjepa2": VJEPA2_DEFAULTS, "ijepa": IJEPA_DEFAULTS}
# What our networks have. I-JEPA was trained with norms of 1e-6; the default of its class here, 1e-12, is read as that.
SUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "vjepa2": {"layer_norm_eps": (NORM_EPS,), "qkv_bias": (True,), "hidden_act": ("gelu",)},
    "ijepa": {"layer_norm_eps": (NORM_EPS, 1e-12), "qkv_bias": (True,), "hidden_act": ("gelu",)},
}


def recognises(path: Path) -> bool:
    """Tell whether `path` is a folder of a V-JEPA 2 or I-JEPA model."""
    try:
        settings = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("model_type") in DEFAULTS


def read(path: Path) -> Weights:
    """Read the networks of a folder. Of a classifier model the head is left to `interop.probes`.

    Raises UserError that names the file and key for what is missing, surplus or misshapen, and for settings that our
    networks lack.
    """
    settings, stored = read_folder(path)
    prefix = f"{settings['model_type']}."
    if any(key.startswith(prefix) for key in stored):  # a classifier model: its head stands beside the model
        of_model = (item for item in stored.items() if not item[0].startswith(("pooler.", "classifier.")))
        stored = {key.removeprefix(prefix): tensor for key, tensor in of_model}
    weights = _vjepa2(path, settings, stored) if settings["model_type"] == "vjepa2" else _ijepa(path, settings, stored)
    refuse_rest(stored, path)
    return replace(weights, channels=_channels(path, weights.model.channels))


def _channels(path: Path, num: int) -> config.Channels:
    """Read by what `num` channels are normalised, off the video processor; colours without one by ImageNet."""
    rgb, file = config.Channels(), path / PROCESSOR
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if num == rgb.num and "image_mean" not in settings:
        return rgb
    if "image_mean" not in settings or "image_std" not in settings:
        raise UserError(f"{path}: has {num} channels, and no {PROCESSOR} tells their image_mean and image_std")
    names = rgb.names if num == rgb.num else [f"channel_{number}" for number in range(1, num + 1)]
    bits = 16 if settings.get("rescale_factor", 1) < 1 / rgb.full_scale else rgb.bits
    told = {"names": names, "mean": settings["image_mean"], "std": settings["image_std"], "bits": bits}
    return parse_section(config.Channels, json.dumps(told), str(file))


def _vjepa2(path: Path, settings: dict[str, Any], stored: dict[str, Tensor]) -> Weights:
    predictor_shape = _shape(settings, "pred_") | {"mask_tokens": settings["pred_num_mask_tokens"]}
    shapes = {"encoder": _shape(settings, ""), "predictor": predictor_shape}
    sizes = {"patch_px": _side(path, settings, "patch_size"), "tubelet_frames": settings["tubelet_size"]}
    sizes["channels"] = settings["in_chans"]
    model = parse_model({"positions": "rope", "rope": "vjepa2"} | sizes | shapes, f"{path / CONFIG}")
    encoder, predictor = _networks(model)
    ours = take(stored, encoder, VJEPA2_ENCODER, path)
    if not any(key.startswith("predictor.") for key in stored):
        return Weights(str(path), model, ours)
    stored |= {f"{MASK_TOKENS}.{number}": token for number, token in enumerate(stored.pop(MASK_TOKENS, ()))}
    return Weights(str(path), model, ours, take(stored, predictor, VJEPA2_PREDICTOR, path))


def _ijepa(path: Path, settings: dict[str, Any], stored: dict[str, Tensor]) -> Weights:
    """Read an encoder of images and its table of positions, which this library learns and the paper fixes."""
    patch_px, side = _side(path, settings, "patch_size"), _side(path, settings, "image_size")
    mlp_ratio = settings["intermediate_size"] / settings["hidden_size"]
    shape = _shape(settings | {"mlp_ratio": 1.0}, "") | {"mlp_ratio": mlp_ratio}
    cells = side // patch_px
    sizes = {"patch_px": patch_px, "tubelet_frames": 1, "sincos_grid": (1, cells, cells)}
    sizes["channels"] = settings["num_channels"]
    model = parse_model({"positions": "sincos_2d", "encoder": shape} | sizes, f"{path / CONFIG}")
    kernel = "embeddings.patch_embeddings.projection.weight"
    if kernel in stored:
        stored[kernel] = stored[kernel].unsqueeze(2)  # 2D -> 3D with one tap
    table = IJEPA_MEMORY if any(key.startswith("layers.") for key in stored) else IJEPA_FILE
    encoder = take(stored, _networks(model)[0], table, path)
    positions = _pop(stored, "embeddings.position_embeddings", (1, cells * cells, settings["hidden_size"]), path)
    return Weights(str(path), model, encoder, tables={"encoder": positions[0].float()})


def _shape(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Give our settings of the encoder (prefix "") or the predictor ("pred_").

    They round the hidden width of the MLP down, we to the nearest.
    """
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio")
    width, depth, heads, ratio = (settings[f"{prefix}{name}"] for name in names)
    return {"width": width, "depth": depth, "heads": heads, "mlp_ratio": int(width * ratio) / width}


def _networks(model: config.Model) -> tuple[nn.Module, nn.Module]:
    """Make encoder and predictor without storage, for the names and shapes of their tensors."""
    with torch.device("meta"):
        return VisionTransformer(model), make_predictor(model, model.predictor.mask_tokens or 1, dense=False)


def _side(path: Path, settings: Mapping[str, Any], name: str) -> int:
    """Read a size in pixels, which config.json may give as one number or as two equal ones."""
    value = settings[name]
    sides = value if isinstance(value, list) else [value]
    if any(side != sides[0] or not isinstance(side, int) or side < 1 for side in sides) or not sides:
        raise UserError(f"{path / CONFIG}: {name}: {value} is not supported, only squares")
    return int(sides[0])


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the settings, with the defaults filled in, and every tensor by its name in the file or files.

    Raises UserError for a folder of another kind of model and for settings that no network of ours has.
    """
    if not recognises(path):
        raise UserError(
            f"{path}: is no Hugging Face folder of a V-JEPA 2 or I-JEPA model (config.json with model_type "
            "vjepa2 or ijepa)"
        )
    given = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    settings = DEFAULTS[given["model_type"]] | given
    _check(path, settings)
    return settings, _read_shards(path)


def _check(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that no network of ours has."""
    kind = settings["model_type"]
    for name, values in SUPPORTED[kind].items():
        if settings[name] not in values:
            raise UserError(f"{path / CONFIG}: {name}: {settings[name]} is not supported, only {values[0]}")
    for name in DEFAULTS[kind].keys() - SUPPORTED[kind].keys() - {"patch_size", "image_size"}:
        if not isinstance(settings[name], (int, float)) or settings[name] <= 0:
            raise UserError(f"{path / CONFIG}: {name}: {settings[name]} is no positive number")


def _read_shards(path: Path) -> dict[str, Tensor]:
    """Read name -> tensor of the one file, or of all the files that the index names."""
    index = path / INDEX
    if not index.is_file():
        return read_tensors(path / TENSORS)
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{index}: is no index of safetensors files; download it again") from None
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(f"{index}: {name} is outside of the folder")
        tensors |= read_tensors(path / name)
    if places.keys() != tensors.keys():
        raise UserError(
            f"{index}: the index and its files differ in {min(places.keys() ^ tensors.keys())}; download them again"
        )
    return tensors


def take(stored: dict[str, Tensor], network: nn.Module, table: TensorNames, path: Path) -> dict[str, Tensor]:
    """Take the tensors of `network`, under our names, out of `stored`.

    Raises UserError that names a key which is missing or misshapen.
    """
    ours = {}
    for key, wanted in network.state_dict().items():
        names = table.theirs(key)
        shape = (wanted.shape[0] // len(names), *wanted.shape[1:])
        parts = [_pop(stored, name, shape, path) for name in names]
        ours[key] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return ours


def _pop(stored: dict[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    if name not in stored:
        raise UserError(f"{path}: {name} is missing; the weights do not fit {CONFIG}")
    tensor = stored.pop(name)
    if tensor.shape != shape:
        raise UserError(f"{path}: {name} has shape {list(tensor.shape)}, {CONFIG} asks for {list(shape)}")
    return tensor


def refuse_rest(stored: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError that names a key which no network has taken."""
    if stored:
        more = f" (and {len(stored) - 1} more)" if len(stored) > 1 else ""
        raise UserError(f"{path}: {min(stored)} is not part of this model{more}; the weights do not fit {CONFIG}")


def write(weights: Weights, folder: Path, size: tuple[int, int, int], fit: str = "crop") -> None:
    """Write a new folder that `transformers.VJEPA2Model.from_pretrained` loads with no key missing or surplus.

    size: T, H, W of the videos that it will be given; they are squares, for its positions are right for no others (see
    above), while T is for the record and changes nothing. fit: how frames filled them, for its processor.
    Raises UserError for what V-JEPA 2 cannot express there, and for clips smaller than a patch.
    """
    tensors, settings = translate(weights, size)
    save(folder, settings, tensors, processor_of(size[1], fit, weights.channels))


def translate(weights: Weights, size: tuple[int, int, int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Give the tensors of `write` under their names, and its config.json. Raises UserError as `write` does."""
    _refuse_inexpressible(weights)
    model, (num_frames, height, crop_px) = weights.model, size
    if height != crop_px:
        raise UserError(
            f"--crop-px {height},{crop_px}: Hugging Face's V-JEPA 2 knows the positions of square clips alone; export "
            "it with --to onnx or safetensors"
        )
    if crop_px < model.patch_px or num_frames < 1:
        raise UserError(
            f"clips of {num_frames} frames of {crop_px} px hold no patch of {model.patch_px} px; give larger ones"
        )
    theirs = split(weights.build_encoder(), VJEPA2_ENCODER) | split(weights.build_predictor(), VJEPA2_PREDICTOR)
    num_masks = sum(name.startswith(MASK_TOKENS) for name in theirs)
    theirs[MASK_TOKENS] = torch.stack([theirs.pop(f"{MASK_TOKENS}.{number}") for number in range(num_masks)])
    return theirs, _settings(model, num_masks) | {"crop_size": crop_px, "frames_per_clip": num_frames}


def split(network: nn.Module, table: TensorNames) -> dict[str, Tensor]:
    """Give the tensors of `network` under their names: the inverse of `take`."""
    theirs: dict[str, Tensor] = {}
    for key, tensor in network.state_dict().items():
        names = table.theirs(key)
        theirs |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    return theirs


def save(
    folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], processor: Mapping[str, Any]
) -> None:
    """Write config.json, the tensors and what their processor does into a new folder."""
    folder.mkdir(parents=True)
    for name, told in ((CONFIG, settings), (PROCESSOR, processor)):
        (folder / name).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / TENSORS, metadata={"format": "pt"})


def processor_of(crop_px: int, fit: str, channels: config.Channels) -> dict[str, Any]:
    """Make the settings of their video processor, which resizes the short side to 8/7 of what it crops in the centre.

    It can neither squash nor letterbox: for such clips it only normalises, and is given squares of `crop_px`.
    """
    return {
        "video_processor_type": "VJEPA2VideoProcessor",
        "crop_size": {"height": crop_px, "width": crop_px},
        "do_resize": fit == "crop",
        "do_center_crop": fit == "crop",
        "image_mean": channels.mean,
        "image_std": channels.std,
        "rescale_factor": 1 / channels.full_scale,
    }


def _settings(model: config.Model, num_masks: int) -> dict[str, Any]:
    """Make their config.json."""
    encoder, predictor = model.encoder, model.predictor
    return VJEPA2_DEFAULTS | {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        "dtype": "float32",
        "patch_size": model.patch_px,
        "in_chans": model.channels,
        "tubelet_size": model.tubelet_frames,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "mlp_ratio": _rounded_down_ratio(encoder),
        "pred_hidden_size": predictor.width,
        "pred_num_hidden_layers": predictor.depth,
        "pred_num_attention_heads": predictor.heads,
        "pred_mlp_ratio": _rounded_down_ratio(predictor),
        "pred_num_mask_tokens": num_masks,
    }


def _rounded_down_ratio(shape: config.Transformer) -> float:
    """Find a ratio that gives our hidden width where it is rounded down: 6143.99 must not become 6143."""
    hidden = round(shape.width * shape.mlp_ratio)
    ratio = hidden / shape.width
    return ratio if int(shape.width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _refuse_inexpressible(weights: Weights) -> None:
    """Raise UserError for what Hugging Face's VJEPA2Model does not have."""
    model = weights.model
    other_width = model.predictor.out_width not in (None, model.encoder.width)
    other_repeats = model.image_mode == "repeat" and model.image_repeats != model.tubelet_frames
    refusals = {
        f"backbone: {model.backbone} (it is a ViT)": model.backbone != "vit",
        f"input: {model.input} (it only has frames)": model.input != "frames",
        f"positions: {model.positions} (it only has rope)": model.positions != "rope",
        f"rope: {model.rope} (it only has the formula of the published weights; train with model.rope=vjepa2)": (
            model.rope != "vjepa2"
        ),
        "rope_grid (it never scales positions)": model.rope_grid is not None,
        "image_mode: own (it has one patch kernel)": model.image_mode == "own",
        "image_mode: repeat (it repeats a single frame to one tubelet)": other_repeats,
        "modality_embedding": model.modality_embedding,
        "level_norms (it has one last norm)": model.level_norms,
        "mlp: swiglu": "swiglu" in (model.encoder.mlp, model.predictor.mlp),
        "a predictor of kind: mlp": model.predictor.kind == "mlp",
        "a predictor with another out_width than the encoder": other_width,
        "a predictor with a dense head": weights.dense,
    }
    for what, is_so in refusals.items():
        if is_so:
            raise UserError(
                f"{weights.origin}: Hugging Face's V-JEPA 2 cannot express {what}; export it with --to safetensors"
            )
    if not weights.predictor:
        raise UserError(
            f"{weights.origin}: has no predictor, and Hugging Face's VJEPA2Model needs one; export from a "
            "file that holds both"
        )
