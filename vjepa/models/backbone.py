"""The encoder that the settings name. Everything else knows it as an `Encoder`."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Final

from vjepa import config
from vjepa.models.encoder import Encoder, VisionTransformer
from vjepa.models.energy import EnergyTransformer


def _timm_backbone() -> ModuleType:
    from vjepa.models import timm_backbone  # timm takes a second, which runs of other backbones need not wait for

    return timm_backbone


BACKBONES: Final[dict[config.Backbone, Callable[[config.Model], Encoder]]] = {
    "vit": VisionTransformer,
    "energy": EnergyTransformer,
    "timm": lambda model: _timm_backbone().make_encoder(model),
}


def make_encoder(model: config.Model) -> Encoder:
    """Make an encoder at random weights. Raises UserError for a name or a patch size that timm does not have."""
    return BACKBONES[model.backbone_kind](model)


def encoder_width(model: config.Model) -> int:
    """Tell the features per token, D, without drawing weights. Raises UserError as `make_encoder` does."""
    known = model.known_width
    return _timm_backbone().look_up(model.backbone, model.patch_px).width if known is None else known


def load_pretrained(encoder: Encoder) -> None:
    """Load the weights that timm publishes into an encoder of timm. Raises UserError where there are none."""
    _timm_backbone().load_pretrained(encoder)
