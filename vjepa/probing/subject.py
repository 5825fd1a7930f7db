"""The frozen encoder under test: its weights, how clips are read for it, and where it runs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError

from vjepa import config, device
from vjepa.errors import UserError
from vjepa.interop import load
from vjepa.interop.meta import Hints
from vjepa.interop.weights import Weights
from vjepa.models.encoder import Encoder
from vjepa.probing.settings import SubjectSettings
from vjepa.records import TokenGrid
from vjepa.run_folder import RunFolder

_PUBLISHED_FRAMES: Final = 16  # of a clip of every published video probe but anticipation
_PUBLISHED_PX: Final = {"rotation": 224, "vjepa2": 256}


@dataclass(frozen=True)
class Subject:
    """Hold a frozen encoder on `device`, which computes in `dtype`, and how its clips are read.

    which: `encoder` or `target_encoder`. step: of its checkpoint; None for an encoder of no run. seed: of its run, of
    which the untrained encoder is drawn; else 0. trained_frames: of the clips that it learned from.
    """

    encoder: Encoder
    which: str
    step: int | None
    seed: int
    trained_frames: int
    data: config.Data
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def read(cls, settings: SubjectSettings, format: str | None = None) -> Subject:
        """Read it; clips as its run was trained on, else as it was published, and options win.

        format: see `interop.load.read`. Raises UserError for weights of no known format, for clips that the encoder
        cannot take, and for a device that this machine lacks.
        """
        path = settings.model_path
        require(path)
        weights = load.read(path, format, Hints(settings.encoder), predictor=False)
        encoder, run = weights.build_encoder(), RunFolder.above(path)
        trained = config.load_run(run.config) if run else None
        native = trained.data if trained else _published_data(path, encoder.model, weights.channels)
        where = (trained.run if trained else config.Run()).model_copy(
            update={name: value for name in ("device", "precision") if (value := getattr(settings, name))}
        )
        data = _data(settings, native, encoder)
        checkpoint = run.checkpoint_of(path) if run else None
        on, dtype = device.pick(where)
        step = checkpoint.step if checkpoint else None
        return cls(encoder.to(on), weights.which, step, where.seed, native.num_frames, data, on, dtype)

    @property
    def grid(self) -> TokenGrid:
        """Give the token grid of its clips."""
        return self.encoder.grid(*self.data.clip_size)

    def of_images(self) -> Subject:
        """Give the same encoder, shown single frames."""
        return replace(self, data=self.data.model_copy(update={"num_frames": 1}))


def blocks(option: str, text: str, depth: int) -> tuple[int, ...]:
    """Parse the blocks after which features are read, ascending: `last`, `quarters` of the depth, or 2,5,-1.

    Raises UserError that names `option` for other words, and for a block that `depth` blocks do not have.
    """
    if text == "quarters":
        return tuple(sorted({max(0, quarter * depth // 4 - 1) for quarter in (1, 2, 3, 4)}))
    wanted = re.fullmatch(r"-?\d+(,-?\d+)*", "-1" if text == "last" else text)
    numbers = {int(number) for number in wanted[0].split(",")} if wanted else {depth}
    if not all(-depth <= number < depth for number in numbers):
        raise UserError(
            f"{option} {text}: give last, quarters, or blocks from 0 to {depth - 1}, such as {depth // 2},{depth - 1}"
        )
    return tuple(sorted({number % depth for number in numbers}))


def require(path: Path) -> None:
    """Raise UserError where there is nothing at `path`, with a run under runs/ that may be meant."""
    if path.exists():
        return
    runs = [] if path.is_absolute() else sorted(Path("runs").glob(f"*/{path}"), key=lambda file: file.stat().st_mtime)
    meant = f"; there is {runs[-1]}" if runs else ""
    raise UserError(f"{path}: no such run folder, checkpoint or weights file{meant}")


def _data(settings: SubjectSettings, native: config.Data, encoder: Encoder) -> config.Data:
    """Change `native` by what the options say."""
    names = ("num_frames", "clip_fps", "frame_step", "crop_px", "fit", "workers")
    given = {name: value for name in names if (value := getattr(settings, name)) is not None}
    words = " ".join(f"--{name} {_word(value)}" for name, value in given.items())
    if len(given.get("crop_px", ())) == 1:
        given["crop_px"] = given["crop_px"][0]
    changes = {"prepare": "none", "mix": [], "labelled": None, "clips_per_decode": 1, "actions": None, **given}
    if {"clip_fps", "frame_step"} & given.keys():
        changes = {"clip_fps": None, "frame_step": None, "duration_s": None, **changes}
    try:
        data = config.Data.model_validate({**native.model_dump(), **changes})
        encoder.grid(*data.clip_size)
    except (ValidationError, config.ConfigError) as error:
        problem = config.explain(error) if isinstance(error, ValidationError) else error
        raise UserError(f"{words or settings.model_path}: {problem}") from None
    for side in data.crop_size:
        if side % encoder.model.patch_px:
            raise UserError(f"--crop_px {side}: is not a whole number of patches of {encoder.model.patch_px} px")
    return data


def _word(value: Any) -> str:
    """Write the value of an option as it is given: 64,128."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def native_data(path: Path, weights: Weights) -> config.Data:
    """Say how clips are read for the encoder at `path`: as its run was trained on, else as it was published for."""
    run = RunFolder.above(path)
    return config.load_run(run.config).data if run else _published_data(path, weights.model, weights.channels)


def _published_data(path: Path, model: config.Model, channels: config.Channels) -> config.Data:
    """Give the clips that an encoder of no run is published for, spread over the whole video."""
    num_frames, crop_px = _published_frames(model), _published_px(path, model)
    data = {"train": "", "num_frames": num_frames, "crop_px": crop_px, "channels": channels}
    return config.Data.model_validate(data)


def _published_frames(model: config.Model) -> int:
    if model.positions == "sincos_2d":
        return 1
    return model.sincos_grid[0] * model.tubelet_frames if model.sincos_grid else _PUBLISHED_FRAMES


def _published_px(path: Path, model: config.Model) -> int | tuple[int, int]:
    """Read the size of the crop from the config of a Hugging Face folder; else off the positions."""
    config_path = path / "config.json"
    if config_path.is_file():
        settings = json.loads(config_path.read_text(encoding="utf-8"))
        size = settings.get("crop_size", settings.get("image_size"))
        if isinstance(size, int):
            return size
    if model.sincos_grid:
        return model.sincos_grid[1] * model.patch_px, model.sincos_grid[2] * model.patch_px
    return model.rope_grid * model.patch_px if model.rope_grid else _PUBLISHED_PX[model.rope]
