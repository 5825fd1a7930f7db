"""The record between all formats: settings of the networks, and their weights under our names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from vjepa import config
from vjepa.errors import UserError
from vjepa.models.backbone import make_encoder
from vjepa.models.encoder import Encoder
from vjepa.models.predictor import MlpPredictor, Predictor, make_predictor
from vjepa.models.state import load_strictly

Settings = TypeVar("Settings", config.Model, config.Channels)


@dataclass(frozen=True)
class Weights:
    """Hold the networks of one file, whoever wrote it.

    origin: the file or folder, for errors.
    encoder, predictor: name -> tensor, the names of the encoder and predictor that `model` names; the predictor is
    empty where the file has none.
    dense: the predictor has a head for visible tokens (V-JEPA 2.1).
    tables: position tables that the file brings, "encoder" and "predictor" -> fp32 [N, width]; without one it is
    computed.
    which: what the encoder was in training, `encoder` or its moving average, `target_encoder`, which is what is
    published.
    channels: of the clips that the networks learned from, by which these are normalised.
    """

    origin: str
    model: config.Model
    encoder: Mapping[str, Tensor]
    predictor: Mapping[str, Tensor] = field(default_factory=dict)
    dense: bool = False
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    which: str = "target_encoder"
    channels: config.Channels = config.Channels()  # noqa: RUF009 - it is frozen

    def build_encoder(self) -> Encoder:
        """Make the encoder, frozen, on the CPU, in evaluation mode.

        Raises UserError where there is none, or that names a key which is missing, surplus or misshapen.
        """
        if not self.encoder:
            raise UserError(f"{self.origin}: has no encoder")
        with torch.device("meta"):  # drawing initial weights would take longer than reading these
            encoder = make_encoder(self.model)
        load_strictly(encoder, self.encoder, self.origin)
        if "encoder" in self.tables:
            encoder.positions.table = self.tables["encoder"]
        return encoder.requires_grad_(False).eval()

    def build_predictor(self) -> Predictor | MlpPredictor:
        """Make the predictor, as `build_encoder` makes the encoder."""
        if not self.predictor:
            raise UserError(f"{self.origin}: has no predictor")
        with torch.device("meta"):
            predictor = make_predictor(self.model, self.model.predictor.mask_tokens or 1, self.dense)
        load_strictly(predictor, self.predictor, self.origin)
        if "predictor" in self.tables:
            predictor.positions.table = self.tables["predictor"]
        return predictor.requires_grad_(False).eval()


def parse_model(settings: Mapping[str, Any] | str, origin: str) -> config.Model:
    """Validate settings of the networks, from plain data or its JSON. Raises UserError with one line."""
    return parse_section(config.Model, settings if isinstance(settings, str) else json.dumps(settings), origin)


def parse_section(kind: type[Settings], text: str, origin: str) -> Settings:
    """Validate a section of settings from its JSON. Raises UserError with one line."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{origin}: {config.explain(error, kind)}") from None
