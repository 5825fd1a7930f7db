"""The features that a probe compares: of a frozen encoder, on clips in any order, and two that need no encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, Final

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vjepa.config import Channels
from vjepa.data.augment import RGB, normalise
from vjepa.data.time_order import Time, in_time
from vjepa.models.backbone import make_encoder
from vjepa.models.encoder import Encoder
from vjepa.models.pooling import MEAN, Pooling
from vjepa.probing.banks import Extractor

_PLAIN_VERSION: Final = 1  # raise it when what `pixels` or `motion_energy` computes changes
_UNTRAINED_VERSION: Final = 1  # raise it when an encoder draws other initial weights
_PLAIN_PX: Final = 32
_CPU_CLIPS: Final = 16  # what a CPU makes of a few stays in its cache: 138 clips/s, 119 in batches of 64 (demo)


@dataclass(frozen=True)
class Readout:
    """Say how a frozen encoder is read: after `blocks`, on `device`, with forward passes in `dtype`.

    outputs: `tokens` [B, L * N, D], those of one block after those of another; `pooled` [B, P, L * D], the tokens of
    each block as `pooling` has them, in fp32. channels: of the clips, as `normalise` takes them.
    """

    blocks: tuple[int, ...]
    outputs: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    pooling: Pooling = MEAN
    channels: Channels = RGB


def encoder_extractor(encoder: Encoder, weights: str, readout: Readout, time: Time = "forward") -> Extractor:
    """Read a frozen encoder, with the frames of each clip in the order `time`."""
    return levels_extractor(
        {"weights": weights}, lambda clips: read_levels(encoder, clips, readout.blocks), readout, time
    )


def untrained_extractor(encoder: Encoder, readout: Readout, seed: int) -> Extractor:
    """Read `untrained(encoder, seed)`. Its facts say how its weights are drawn: that waits until they are needed."""
    settings = hashlib.sha256(encoder.model.model_dump_json(exclude={"predictor"}).encode())
    if (table := _table(encoder)) is not None:
        _add_tensor(settings, "table", table)
    libraries = {name: version(name) for name in ("torch", "timm")}
    facts = {"untrained": settings.hexdigest(), "seed": seed, "version": _UNTRAINED_VERSION, "libraries": libraries}
    drawn = cache(lambda: untrained(encoder, seed).to(readout.device))
    return levels_extractor(facts, lambda clips: read_levels(drawn(), clips, readout.blocks), readout)


def levels_extractor(
    facts: Mapping[str, Any], read: Callable[[Tensor], list[Tensor]], readout: Readout, time: Time = "forward"
) -> Extractor:
    """Make features of what `read` gives: normalised clips [B, 3, T, H, W] -> [B, N, D] of each level.

    facts: what they depend on beside `readout` and `time`.
    """
    device, dtype = readout.device, readout.dtype

    def run_few(video: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            found = read(normalise(video.to(device), dtype, readout.channels))
        values = {"tokens": torch.cat(found, 1), "pooled": torch.cat([readout.pooling(level) for level in found], -1)}
        return {output: values[output] for output in readout.outputs}

    def run(video: Tensor, clip_ids: Tensor) -> dict[str, Tensor]:
        few = _CPU_CLIPS if device.type == "cpu" else len(video)
        parts = [run_few(clips) for clips in torch.split(in_time(video, clip_ids, time), few)]
        return {output: torch.cat([part[output] for part in parts]) for output in readout.outputs}

    how = {
        "blocks": list(readout.blocks),
        "pool": str(readout.pooling),
        "time": time,
        "precision": str(dtype),
        "device": device.type,
    }
    return Extractor({**facts, **how}, readout.outputs, run)


def read_levels(encoder: Encoder, clips: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """Read features [B, N, D] after each of `blocks`, from clips [B, 3, T, H, W].

    The last block goes through `forward`, which is what every other use of an encoder sees.
    """
    return [encoder(clips)] if list(blocks) == [encoder.depth - 1] else encoder.intermediate(clips, blocks)


def untrained(encoder: Encoder, seed: int) -> Encoder:
    """Draw initial weights of `seed` for an encoder of the same architecture, frozen.

    With `run.seed` these are the weights that a run started from (see `jepa.build`).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = make_encoder(encoder.model)
    if hasattr(encoder, "positions"):  # a table that a file brought
        fresh.positions.table = encoder.positions.table
    return fresh.requires_grad_(False).eval()


def weights_hash(encoder: Encoder) -> str:
    """Hash every tensor of an encoder, and its settings, by sha256."""
    return network_hash(encoder.model.model_dump_json(exclude={"predictor"}), encoder)


def network_hash(settings: str, network: nn.Module) -> str:
    """Hash every tensor of a network, a table of positions included, and its settings, by sha256."""
    digest = hashlib.sha256(settings.encode())
    tensors = dict(network.state_dict())
    if (table := _table(network)) is not None:
        tensors["positions.table"] = table
    for name, tensor in sorted(tensors.items()):
        _add_tensor(digest, name, tensor)
    return digest.hexdigest()


def _table(network: nn.Module) -> Tensor | None:
    """Find the table of positions, which is no part of the state of a network."""
    table = getattr(getattr(network, "positions", None), "table", None)
    return table if isinstance(table, Tensor) else None


def _add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def plain_extractor(name: str) -> Extractor:
    """Make raw pixels or motion energy, as `pooled` [B, 1, D]."""
    facts: dict[str, Any] = {"plain": name, "version": _PLAIN_VERSION}
    return Extractor(
        facts, ("pooled",), lambda video, clip_ids: {"pooled": rearrange(PLAIN[name](video), "b d -> b 1 d")}
    )


def pixels(video: Tensor) -> Tensor:
    """Shrink every frame to at most 32 px a side: [B, C, T, H, W] -> [B, T * C * 32 * 32] in 0..1."""
    return rearrange(_small(video), "b t c h w -> b (t c h w)")


def motion_energy(video: Tensor) -> Tensor:
    """Measure how much each grey pixel changes from frame to frame: [B, 3, T, H, W] -> [B, (T - 1) * 32 * 32].

    It sees where and when things move and nothing of how they look; a single frame has none (one zero).
    """
    grey = _small(video).mean(2)
    change = (grey[:, 1:] - grey[:, :-1]).abs()
    return rearrange(change, "b t h w -> b (t h w)") if video.shape[2] > 1 else grey.new_zeros(len(grey), 1)


def _small(video: Tensor) -> Tensor:
    """Shrink frames, antialiased: b c t h w, uint8 or uint16 -> b t c h w, float in 0..1, at most 32 px a side."""
    frames = rearrange(video, "b c t h w -> (b t) c h w").float() / torch.iinfo(video.dtype).max
    size = [min(side, _PLAIN_PX) for side in frames.shape[-2:]]
    if list(frames.shape[-2:]) != size:
        frames = functional.interpolate(frames, size=size, mode="bilinear", antialias=True)
    return rearrange(frames, "(b t) c h w -> b t c h w", b=len(video))


# kinds of features that need no encoder
PLAIN: Final[dict[str, Callable[[Tensor], Tensor]]] = {"pixels": pixels, "motion_energy": motion_energy}
