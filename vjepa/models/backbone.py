"""The encoder that the settings name. Everything else knows it as an `Encoder`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vjepa import config
from vjepa.models import timm_backbone
from vjepa.models.encoder import Encoder, VisionTransformer
from vjepa.models.energy import EnergyTransformer

BACKBONES: Final[dict[config.Backbone, Callable[[config.Model], Encoder]]] = {
    "vit": VisionTransformer,
    "energy": EnergyTransformer,
    "timm": timm_backbone.make_encoder,
}


def make_encoder(model: config.Model) -> Encoder:
    """At random initial weights. Raises UserError for a name or a patch size that timm does not have."""
    return BACKBONES[model.backbone_kind](model)


def encoder_width(model: config.Model) -> int:
    """Features per token. Raises UserError as `make_encoder` does, without the time that weights take."""
    return (
        timm_backbone.look_up(model.backbone, model.patch_px).width
        if model.backbone_kind == "timm"
        else model.encoder.width
    )
