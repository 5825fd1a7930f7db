"""The layers of an encoder in the order in which a clip passes them: for rates that fall with depth, and for freezing.

Layer 0 embeds patches, then come the blocks, and what is left, such as the last norm, is the layer after them. Of a CNN
of timm every part of its list is a layer.
"""

from __future__ import annotations

import re

from torch import nn

from vjepa.errors import UserError
from vjepa.models.encoder import Encoder, VisionTransformer

_BLOCK = re.compile(r"(?:network\.)?blocks\.(\d+)\.")
_LAST = re.compile(r"(?:network\.)?(?:norm|fc_norm|norms_block|energy)\.")


def layer_numbers(encoder: Encoder) -> dict[str, int]:
    """Number the layer of every parameter, by name, from 0 without a gap."""
    names = [name for name, _ in encoder.named_parameters()]
    found = {name: _BLOCK.match(name) for name in names}
    if any(found.values()) or isinstance(encoder, VisionTransformer) or any(map(_LAST.match, names)):
        last = 1 + max((int(block[1]) + 1 for block in found.values() if block), default=0)
        return {name: int(block[1]) + 1 if block else last if _LAST.match(name) else 0 for name, block in found.items()}
    parts = list(dict.fromkeys(name.split(".")[1] for name in names))
    return {name: parts.index(name.split(".")[1]) for name in names}


def freeze(encoder: Encoder, num_layers: int) -> None:
    """Keep the first layers from learning. Raises UserError where there are not so many."""
    numbers = layer_numbers(encoder)
    most = max(numbers.values()) + 1
    if num_layers > most:
        raise UserError(f"finetune.freeze_layers: {num_layers} of {most} layers; give {most} or fewer")
    for name, parameter in encoder.named_parameters():
        if numbers[name] < num_layers:
            parameter.requires_grad_(False)


def set_drop_path(encoder: Encoder, drop_path: float) -> None:
    """Have clips skip blocks in training, the last one with this chance, earlier ones less, in a straight line.

    Raises UserError for a network that has no such blocks.
    """
    if not drop_path:
        return
    blocks = getattr(encoder, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise UserError(
            f"finetune.drop_path: backbone: {encoder.model.backbone} has no blocks that a clip may skip; set 0"
        )
    for number, block in enumerate(blocks):
        block.drop_path = drop_path * number / max(len(blocks) - 1, 1)  # type: ignore[assignment]
