"""V-JEPA 1, V-JEPA 2, V-JEPA 2.1 and I-JEPA training files, read into `Weights`.

Such a file is a pickled dict: networks (`encoder`, `target_encoder` or `ema_encoder`, `predictor`) beside the
optimizer's state. A network is a dict of tensors whose names carry wrappers: those of the training code,
`module.backbone.` or `module.`, and of torch.compile and FSDP. Settings are in none of these files: all but the numbers
of attention heads are read off the shapes.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from vjepa.errors import UserError
from vjepa.interop.weights import Weights, parse_model
from vjepa.models.positions import SinCos

KERNEL = "patch_embed.proj.weight"
# Of files of torch before 1.6, which are several pickles and no zip archive: the first pickle is a number.
OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
Tensors = Mapping[str, Tensor]

# What each format stands for beside its shapes. The two kinds of 3D sin-cos table are told apart by the table in the
# file.
POSITIONS: Final[dict[str, dict[str, Any]]] = {
    "vjepa1": {"positions": "sincos"},
    "vjepa2": {"positions": "rope", "rope": "vjepa2"},
    "vjepa2.1": {"positions": "rope", "rope": "rotation", "level_norms": True},
    "ijepa": {"positions": "sincos_2d"},
}
# Attention heads of the published widths that are not width / 64; V-JEPA 2's giant has 22, the older one has 16.
HEADS: Final[dict[str, dict[int, int]]] = {
    "vjepa1": {1280: 16, 1408: 16, 1664: 16},
    "vjepa2": {1280: 16},
    "vjepa2.1": {1280: 16},
    "ijepa": {1280: 16, 1408: 16, 1664: 16},
}
# Of the predictor; None: as many as the encoder has.
PREDICTOR_HEADS: Final[dict[str, int | None]] = {"vjepa1": None, "vjepa2": 12, "vjepa2.1": 12, "ijepa": None}
# The side, in pixels, of the square whose rows and columns V-JEPA 2.1 scales all others to: 16 patches of 16, 18 of 14.
ROPE_SQUARE_PX = 256
# Frames of the clips that V-JEPA 1's table of positions was made for, where the table itself does not tell.
TABLE_FRAMES = 16


@dataclass(frozen=True)
class Hints:
    """Tell what a training file cannot.

    which: the encoder that was trained, or its moving average; None: the one that `load.read` says.
    heads, predictor_heads: attention heads; None: those of the published sizes.
    position_grid: time slots, rows and columns of a sin-cos table; None: told from its values, else 16 frames and a
    square.
    """

    which: str | None = None
    heads: int | None = None
    predictor_heads: int | None = None
    position_grid: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class TrainingFile:
    """Hold the networks of one file, wrappers stripped from the names.

    encoders: by which one, `encoder` or `target_encoder`. predictor: empty where there is none. has_ema: the average is
    called ema_encoder.
    """

    origin: str
    encoders: Mapping[str, Tensors]
    predictor: Tensors
    has_ema: bool

    def encoder(self, which: str) -> Tensors:
        """Take one encoder. Raises UserError where the file has another one alone."""
        if which not in self.encoders:
            raise UserError(f"{self.origin}: has no {which}; take another with which= ({', '.join(self.encoders)})")
        return self.encoders[which]


def read_file(path: Path) -> dict[str, Any]:
    """Read the dict in a file of torch.save: tensors, numbers, text.

    Tensors stay on disk until used, and no code is unpickled. Raises UserError for a file that is none, is damaged, or
    needs code to load.
    """
    try:
        with path.open("rb") as file:
            is_old = file.read(len(OLD_START)) == OLD_START
            is_zip = zipfile.is_zipfile(path)
            file.seek(0)
            # a path is mapped to memory, but torch believes its ending
            source = path if is_zip and path.suffix != ".safetensors" else file
            content = None
            if is_zip or is_old:
                content = torch.load(source, map_location="cpu", weights_only=True, mmap=source is path)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        needs = f"needs the code of {code[1]}" if code else "holds more than tensors, numbers and text"
        raise UserError(
            f"{path}: {needs} to load, which could do anything, so it was not run; save the state dicts alone"
        ) from None
    except (OSError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a training file, which is a dict of networks written by torch.save")
    return content


def read_networks(path: Path) -> TrainingFile:
    """Read the networks of a file; one that is the state dict of an encoder itself counts as either encoder.

    Raises UserError where there is none.
    """
    content = read_file(path)
    if any(isinstance(value, Tensor) for value in content.values()):
        encoder = network_of(content, f"{path}")
        return TrainingFile(str(path), {"encoder": encoder, "target_encoder": encoder}, {}, has_ema=False)
    # beside ema_encoder, target_encoder is the teacher of a distillation
    average = "ema_encoder" if "ema_encoder" in content else "target_encoder"
    keys = {"encoder": "encoder", "target_encoder": average}
    encoders = {name: network_of(content[key], f"{path}: {key}") for name, key in keys.items() if key in content}
    if not encoders:
        raise UserError(
            f"{path}: has no encoder, target_encoder or ema_encoder (it has "
            f"{', '.join(sorted(map(str, content))) or 'nothing'})"
        )
    predictor = network_of(content["predictor"], f"{path}: predictor") if "predictor" in content else {}
    return TrainingFile(str(path), encoders, predictor, average == "ema_encoder")


def network_of(content: Any, origin: str) -> Tensors:
    """Strip wrappers from the names of tensors. Raises UserError for no state dict, or two tensors of one name."""
    if not isinstance(content, dict):
        raise UserError(f"{origin}: not a state dict but a {type(content).__name__}")
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        name = unwrapped(str(key))
        if not isinstance(value, Tensor):
            raise UserError(f"{origin}: {key} is not a tensor but a {type(value).__name__}")
        if name in tensors:
            raise UserError(f"{origin}: {key} is there twice, with and without a wrapper's prefix")
        tensors[name] = value
    return tensors


def unwrapped(name: str) -> str:
    """Strip wrappers from the name of a tensor, in any order and number: of torch.compile, FSDP and activation
    checkpointing wherever they stand, of DDP and of the training code at the start.
    """
    name = re.sub(r"(?<![^.])_(orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.", "", name)
    return re.sub(r"^((module|backbone)\.)+", "", name)


@dataclass(frozen=True)
class _Cues:
    """Hold what tells the formats apart."""

    kernel_dims: int
    has_levels: bool
    has_table: bool
    has_predictor_table: bool
    num_mask_tokens: int

    @classmethod
    def of(cls, file: TrainingFile, encoder: Tensors) -> _Cues:
        """Read the cues off a file and one of its encoders."""
        return cls(
            _need(encoder, KERNEL, file.origin).ndim,
            file.has_ema or any(key.startswith("norms_block.") for key in encoder),
            "pos_embed" in encoder,
            "predictor_pos_embed" in file.predictor,
            _count(file.predictor, "mask_tokens"),
        )

    def __str__(self) -> str:
        levels = "norms_block or ema_encoder" if self.has_levels else "no norms_block"
        table = "pos_embed" if self.has_table else "no pos_embed"
        return f"a {self.kernel_dims}-D patch kernel, {levels}, {table}, {self.num_mask_tokens} mask tokens"


# Tells of each format whether a file may be of it.
FITS: Final[dict[str, Callable[[_Cues], bool]]] = {
    "vjepa1": lambda cues: cues.kernel_dims == 5 and not cues.has_levels and cues.has_table,
    "vjepa2": lambda cues: cues.kernel_dims == 5 and not cues.has_levels,
    "vjepa2.1": lambda cues: cues.kernel_dims == 5 and cues.has_levels,
    "ijepa": lambda cues: cues.kernel_dims == 4,
}


def recognise(path: Path) -> str:
    """Tell the format of a training file by its content.

    Raises UserError that says what was found where none fits, or where two do.
    A table of positions means V-JEPA 1 or one of the V-JEPA 2 files that carry one without using it: V-JEPA 1 has 2
    mask tokens, V-JEPA 2 has 6 or more.
    """
    file = read_networks(path)
    cues = _Cues.of(file, next(iter(file.encoders.values())))
    formats = [name for name, fits in FITS.items() if fits(cues)]
    if formats == ["vjepa1", "vjepa2"]:
        if cues.num_mask_tokens == 2 and cues.has_predictor_table:
            return "vjepa1"
        if cues.num_mask_tokens >= 6:
            return "vjepa2"
    if len(formats) != 1:
        guess = f"could be {' or '.join(formats)}" if formats else "fits no known format"
        raise UserError(f"{path}: {guess} ({cues}); name it with format=")
    return formats[0]


def read(path: Path, format: str, hints: Hints | None = None, *, predictor: bool = True) -> Weights:
    """Read the networks of a training file, of format `vjepa1`, `vjepa2`, `vjepa2.1` or `ijepa`.

    predictor: False leaves it out, with settings at their defaults, so that what is wrong with it does not matter.
    `pos_embed` and `predictor_pos_embed` in the files of V-JEPA 2 and 2.1 are dropped: these networks rotate, and never
    used them. Raises UserError for a file of another format, and where a hint is needed or impossible. What does not
    fit the inferred networks is named when they are built.
    """
    hints, file = hints or Hints(), read_networks(path)
    which = hints.which or "target_encoder"
    encoder = file.encoder(which)
    cues = _Cues.of(file, encoder)
    if not FITS[format](cues):
        raise UserError(f"{path}: not a file of format {format!r}: it has {cues}")
    if hints.position_grid and POSITIONS[format]["positions"] == "rope":
        raise UserError(
            f"{path}: position_grid= is for tables of positions, and networks of format {format!r} have none"
        )
    stored = {"encoder": dict(encoder), "predictor": dict(file.predictor) if predictor else {}}
    tables = _take_tables(stored, format, path)
    if format == "ijepa":
        _as_video(stored)
    settings = POSITIONS[format] | _patches(stored["encoder"], path)
    settings["encoder"] = _shape(stored["encoder"], "blocks", len(stored["encoder"][KERNEL]), path)
    settings["encoder"]["heads"] = _heads(settings["encoder"]["width"], hints.heads, format, path)
    if format == "vjepa2.1":
        settings |= _levels(encoder, file.predictor, settings["patch_px"])
    if tables:
        settings |= _table_settings(tables["encoder"], settings, hints.position_grid, path)
    if stored["predictor"]:
        settings["predictor"] = _predictor(stored["predictor"], settings, hints, format, path)
    _check_tables(tables, settings, path)
    dense = "predictor_proj_context.weight" in stored["predictor"]
    model = parse_model(settings, str(path))
    return Weights(str(path), model, stored["encoder"], stored["predictor"], dense, tables, which)


def _need(tensors: Tensors, key: str, origin: Path | str) -> Tensor:
    if key not in tensors:
        raise UserError(f"{origin}: {key} is missing")
    return tensors[key]


def _count(tensors: Tensors, stem: str) -> int:
    """Count to 1 + the largest i of the keys `stem.i` and `stem.i.*`; 0 without one."""
    numbers = (re.match(rf"{stem}\.(\d+)(\.|$)", key) for key in tensors)
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def _take_tables(stored: dict[str, dict[str, Tensor]], format: str, path: Path) -> dict[str, Tensor]:
    """Take the tables of positions [1, N, D] out of the networks; fp32 [N, D] for a format that adds them, else none.

    A predictor's is asked for where there is a predictor.
    """
    tables = {}
    for network, key in (("encoder", "pos_embed"), ("predictor", "predictor_pos_embed")):
        table = stored[network].pop(key, None)
        if POSITIONS[format]["positions"] == "rope" or not (table is not None or stored[network]):
            continue
        if table is None:
            raise UserError(f"{path}: {key} is missing; {format} needs it")
        if table.ndim != 3 or len(table) != 1:
            raise UserError(f"{path}: {key} has shape {list(table.shape)}, {format} needs [1, tokens, width]")
        tables[network] = table[0].to(torch.float32, copy=True)  # of its own memory, like the weights
    return tables


def _as_video(stored: dict[str, dict[str, Tensor]]) -> None:
    """Give I-JEPA's image kernel [D, 3, p, p] one frame, and its only mask token the name of the first of several."""
    stored["encoder"][KERNEL] = stored["encoder"][KERNEL].unsqueeze(2)
    if "mask_token" in stored["predictor"]:
        stored["predictor"]["mask_tokens.0"] = stored["predictor"].pop("mask_token")


def _patches(encoder: Tensors, path: Path) -> dict[str, Any]:
    """Read the settings of patches off the kernel [D, 3, taps, p, p]."""
    shape = list(encoder[KERNEL].shape)
    if shape[1] != 3 or shape[3] != shape[4]:  # what is published sees colours
        raise UserError(f"{path}: {KERNEL} has shape {shape}; patches are square, of 3 colours")
    return {"patch_px": shape[3], "tubelet_frames": shape[2]}


def _shape(tensors: Tensors, blocks: str, width: int, path: Path) -> dict[str, Any]:
    """Read the settings of a stack of blocks, but for the heads.

    SwiGLU keeps two thirds of the hidden width (see `SwiGlu`).
    """
    gated = f"{blocks}.0.mlp.fc3.weight" in tensors
    hidden = len(_need(tensors, f"{blocks}.0.mlp.fc1.weight", path)) * (1.5 if gated else 1.0)
    return {
        "width": width,
        "depth": _count(tensors, blocks),
        "mlp_ratio": hidden / width,
        "mlp": "swiglu" if gated else "gelu",
    }


def _heads(width: int, given: int | None, format: str, path: Path) -> int:
    if given is None and width % 64 and width not in HEADS[format]:
        raise UserError(
            f"{path}: does not tell its attention heads, and a width of {width} is of no published size; give heads="
        )
    heads = given or HEADS[format].get(width, width // 64)
    if heads < 1 or width % heads:
        raise UserError(f"{path}: {heads} attention heads do not divide the width {width}; give another heads=")
    return heads


def _levels(encoder: Tensors, predictor: Tensors, patch_px: int) -> dict[str, Any]:
    """Read the settings that V-JEPA 2.1 adds.

    Four levels are trained where the predictor embeds them by two layers, else the last alone.
    """
    return {
        "levels": 4 if "predictor_embed.0.weight" in predictor else 1,
        "image_mode": "own" if "patch_embed_img.proj.weight" in encoder else "summed",
        "modality_embedding": "video_mod_embed" in encoder or "img_mod_embed" in encoder,
        "rope_grid": max(ROPE_SQUARE_PX // patch_px, 2),
    }


def _predictor(tensors: Tensors, settings: Mapping[str, Any], hints: Hints, format: str, path: Path) -> dict[str, Any]:
    levels, encoder = settings.get("levels", 1), settings["encoder"]
    width = len(_need(tensors, "predictor_embed.2.weight" if levels > 1 else "predictor_embed.weight", path))
    out_width = len(_need(tensors, "predictor_proj.weight", path)) // levels
    heads = hints.predictor_heads or PREDICTOR_HEADS[format] or encoder["heads"]
    if heads < 1 or width % heads:
        raise UserError(
            f"{path}: {heads} attention heads do not divide the predictor's width {width}; give predictor_heads="
        )
    return {
        **_shape(tensors, "predictor_blocks", width, path),
        "heads": heads,
        "mask_tokens": _count(tensors, "mask_tokens") or None,
        "out_width": None if out_width == encoder["width"] else out_width,
    }


def _table_settings(
    table: Tensor, settings: Mapping[str, Any], given: tuple[int, int, int] | None, path: Path
) -> dict[str, Any]:
    """Tell the kind and the grid of a sin-cos table [N, D].

    The values tell both, for they are computed, not learned. A table that is none of ours is taken to be of 16 frames,
    or of one for I-JEPA, and of a square.
    """
    kinds = ["sincos_2d"] if settings["positions"] == "sincos_2d" else ["sincos", "sincos_uniform"]
    usual = 1 if settings["positions"] == "sincos_2d" else max(TABLE_FRAMES // settings["tubelet_frames"], 1)
    grids = [given] if given else _square_grids(len(table), usual)
    if given and math.prod(given) != len(table):
        raise UserError(f"{path}: pos_embed has {len(table)} places, a position_grid of {given} has {math.prod(given)}")
    for grid in grids:
        for kind in kinds:
            if torch.allclose(SinCos(kind, table.shape[1], grid).table, table, atol=1e-4):
                return {"positions": kind, "sincos_grid": grid}
    if not given and (not grids or grids[0][0] != usual):
        raise UserError(
            f"{path}: pos_embed has {len(table)} places, not {usual} time slots of a square; give "
            "position_grid=(slots, rows, columns)"
        )
    return {"positions": kinds[0], "sincos_grid": grids[0]}


def _square_grids(num_tokens: int, usual: int) -> list[tuple[int, int, int]]:
    """List all (t, s, s) of so many tokens, that with the usual t first."""
    sides = range(1, math.isqrt(num_tokens) + 1)
    grids = [(num_tokens // side**2, side, side) for side in sides if num_tokens % side**2 == 0]
    return sorted(grids, key=lambda grid: grid[0] != usual)


def _check_tables(tables: Tensors, settings: Mapping[str, Any], path: Path) -> None:
    for network, key in (("encoder", "pos_embed"), ("predictor", "predictor_pos_embed")):
        if network in tables:
            wanted = [math.prod(settings["sincos_grid"]), settings[network]["width"]]
            if list(tables[network].shape) != wanted:
                raise UserError(
                    f"{path}: {key} has shape {[1, *tables[network].shape]}, this network needs {[1, *wanted]}"
                )
