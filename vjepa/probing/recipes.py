"""The features that a probe compares: those of a frozen encoder, on clips in order, shuffled and reversed, and two that
need no encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vjepa.data.augment import normalise
from vjepa.data.time_order import Time, in_time
from vjepa.errors import UserError
from vjepa.models.backbone import make_encoder
from vjepa.models.encoder import Encoder
from vjepa.models.pooling import MEAN, Pooling
from vjepa.probing.features import motion_energy, pixels
from vjepa.probing.store import Recipe

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"pixels": pixels, "motion_energy": motion_energy}
_PLAIN_VERSION = 1  # raise it when what `pixels` or `motion_energy` computes changes
_UNTRAINED_VERSION = 1  # raise it when an encoder draws other initial weights


def weights_hash(encoder: Encoder) -> str:
    """sha256 of every tensor of an encoder, and of its settings."""
    return network_hash(encoder.model.model_dump_json(exclude={"predictor"}), encoder)


def network_hash(settings: str, network: nn.Module) -> str:
    """sha256 of every tensor of a network, a table of positions included, and of its settings."""
    digest = hashlib.sha256(settings.encode())
    tensors = dict(network.state_dict())
    if (table := _table(network)) is not None:
        tensors["positions.table"] = table
    for name, tensor in sorted(tensors.items()):
        _add_tensor(digest, name, tensor)
    return digest.hexdigest()


def _table(network: nn.Module) -> Tensor | None:
    """Its table of positions, which is no part of its state."""
    table = getattr(getattr(network, "positions", None), "table", None)
    return table if isinstance(table, Tensor) else None


def _add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def untrained(encoder: Encoder) -> Encoder:
    """An encoder of the same architecture with initial weights of seed 0, frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = make_encoder(encoder.model)
    if hasattr(encoder, "positions"):  # a table that a file brought
        fresh.positions.table = encoder.positions.table
    return fresh.requires_grad_(False).eval()


def levels(encoder: Encoder, wish: str) -> tuple[int, ...]:
    """Blocks after which features are read: `last`, `quarters` (of the depth), or numbers such as 2,5,8,11. Raises
    UserError.
    """
    depth = encoder.depth
    if wish == "last":
        return (depth - 1,)
    if wish == "quarters":
        return tuple(sorted({max(0, quarter * depth // 4 - 1) for quarter in (1, 2, 3, 4)}))
    numbers = wish.split(",")
    if not all(number.isdigit() and int(number) < depth for number in numbers):
        raise UserError(
            f"--levels {wish}: give last, quarters, or blocks from 0 to {depth - 1}, such as {depth // 2},{depth - 1}"
        )
    return tuple(sorted({int(number) for number in numbers}))


@dataclass(frozen=True)
class Reading:
    """How a frozen encoder is read, after `blocks`, on `device`, with forward passes in `dtype`.

    outputs: `tokens` [B, L * N, D], those of one block after those of another; `pooled` [B, P, L * D], the tokens of
    each block as `pooling` has them.
    """

    blocks: tuple[int, ...]
    outputs: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    pooling: Pooling = MEAN


def encoder_recipe(encoder: Encoder, sha256: str, reading: Reading, time: Time = "forward") -> Recipe:
    """Features of a frozen encoder, with the frames of each clip in the order `time`."""
    return levels_recipe({"weights": sha256}, lambda clips: read_levels(encoder, clips, reading.blocks), reading, time)


def untrained_recipe(encoder: Encoder, reading: Reading) -> Recipe:
    """As `encoder_recipe`, of `untrained(encoder)`. Its facts say how its weights are drawn, so that they are drawn
    only where its features are missing.
    """
    settings = hashlib.sha256(encoder.model.model_dump_json(exclude={"predictor"}).encode())
    if (table := _table(encoder)) is not None:
        _add_tensor(settings, "table", table)
    libraries = {name: version(name) for name in ("torch", "timm")}
    facts = {"untrained": settings.hexdigest(), "version": _UNTRAINED_VERSION, "libraries": libraries}
    drawn = cache(lambda: untrained(encoder).to(reading.device))
    return levels_recipe(facts, lambda clips: read_levels(drawn(), clips, reading.blocks), reading, "forward")


def levels_recipe(
    facts: Mapping[str, Any], read: Callable[[Tensor], list[Tensor]], reading: Reading, time: Time
) -> Recipe:
    """See `encoder_recipe`. read: normalised clips [B, 3, T, S, S] -> levels of features, [B, N, D] each. facts: what
    it depends on beside `reading`.
    """
    device, dtype = reading.device, reading.dtype

    def run(video: Tensor, clip_ids: Tensor) -> dict[str, Tensor]:
        clips = normalise(in_time(video, clip_ids, time).to(device), dtype)
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            found = read(clips)
        values = {"tokens": torch.cat(found, 1), "pooled": torch.cat([reading.pooling(level) for level in found], -1)}
        return {output: values[output] for output in reading.outputs}

    how = {
        "blocks": list(reading.blocks),
        "pool": str(reading.pooling),
        "time": time,
        "precision": str(dtype),
        "device": device.type,
    }
    return Recipe({**facts, **how}, reading.outputs, run)


def read_levels(encoder: Encoder, clips: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """[B, 3, T, H, W] -> features [B, N, D] after each of `blocks`; the last block goes through `forward`, which is
    what every other use of an encoder sees.
    """
    return [encoder(clips)] if list(blocks) == [encoder.depth - 1] else encoder.intermediate(clips, blocks)


def plain_recipe(name: str) -> Recipe:
    """Raw pixels or motion energy, as `pooled` [B, 1, D]."""
    facts: dict[str, Any] = {"plain": name, "version": _PLAIN_VERSION}
    return Recipe(facts, ("pooled",), lambda video, clip_ids: {"pooled": rearrange(PLAIN[name](video), "b d -> b 1 d")})
