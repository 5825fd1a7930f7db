"""Training files in the published formats: random tensors under the published names, and plain twins of the networks.

Names and shapes are written out here, and the twins are written against those names, so that nothing of `vjepa` vouches
for itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

PATCH, WIDTH, DEPTH, HIDDEN, HEADS = 8, 128, 4, 192, 2
NARROW, PREDICTOR_DEPTH, PREDICTOR_HIDDEN = 72, 2, 144
GRID = (8, 2, 2)  # of 16 frames of 16 x 16 px
IMAGE_GRID = (1, 4, 4)  # of 32 x 32 px
WRAPPERS = {
    "vjepa1": "module.backbone.",
    "vjepa2": "module.backbone.",
    "vjepa2.1": "module.backbone.",
    "ijepa": "module.",
}
PREDICTOR_HEADS = {"vjepa1": 2, "vjepa2": 12, "vjepa2.1": 12, "ijepa": 2}
FORMATS = list(WRAPPERS)

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, Tensor]


def linear(name: str, out: int, width: int) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def blocks(stem: str, depth: int, width: int, hidden: int, swiglu: bool = False) -> Shapes:
    shapes: Shapes = {}
    for i in range(depth):
        one = f"{stem}.{i}"
        shapes |= (
            norm(f"{one}.norm1", width)
            | linear(f"{one}.attn.qkv", 3 * width, width)
            | linear(f"{one}.attn.proj", width, width)
        )
        shapes |= norm(f"{one}.norm2", width) | linear(f"{one}.mlp.fc1", hidden, width)
        shapes |= (
            linear(f"{one}.mlp.fc2", hidden, width) | linear(f"{one}.mlp.fc3", width, hidden)
            if swiglu
            else linear(f"{one}.mlp.fc2", width, hidden)
        )
    return shapes


def encoder_shapes(format: str, swiglu: bool = False) -> Shapes:
    kernel = (WIDTH, 3, PATCH, PATCH) if format == "ijepa" else (WIDTH, 3, 2, PATCH, PATCH)
    shapes: Shapes = {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": (WIDTH,)} | blocks(
        "blocks", DEPTH, WIDTH, HIDDEN, swiglu
    )
    if format == "vjepa2.1":
        shapes |= {"patch_embed_img.proj.weight": (WIDTH, 3, 1, PATCH, PATCH), "patch_embed_img.proj.bias": (WIDTH,)}
        shapes |= {"img_mod_embed": (1, 1, WIDTH), "video_mod_embed": (1, 1, WIDTH)}
        for level in range(4):
            shapes |= norm(f"norms_block.{level}", WIDTH)
        return shapes
    tables = {"vjepa1": math.prod(GRID), "ijepa": math.prod(IMAGE_GRID)}
    return shapes | norm("norm", WIDTH) | ({"pos_embed": (1, tables[format], WIDTH)} if format in tables else {})


def predictor_shapes(format: str, levels: int = 1, out: int = WIDTH) -> Shapes:
    """levels, out: of V-JEPA 2.1, trained on 4 levels or, distilled, on one of the teacher's width."""
    shapes = blocks("predictor_blocks", PREDICTOR_DEPTH, NARROW, PREDICTOR_HIDDEN) | norm("predictor_norm", NARROW)
    shapes |= linear("predictor_proj", levels * out, NARROW)
    if levels > 1:
        shapes |= linear("predictor_embed.0", WIDTH, levels * WIDTH) | linear("predictor_embed.2", NARROW, WIDTH)
    else:
        shapes |= linear("predictor_embed", NARROW, WIDTH)
    tokens = {"vjepa1": 2, "vjepa2": 10, "vjepa2.1": 8, "ijepa": 0}[format]
    shapes |= {f"mask_tokens.{j}": (1, 1, NARROW) for j in range(tokens)}
    if format == "vjepa2.1":
        shapes |= linear("predictor_proj_context", levels * out, NARROW) | {
            "img_mod_embed": (1, 1, NARROW),
            "video_mod_embed": (1, 1, NARROW),
        }
    if format == "ijepa":
        shapes |= {"mask_token": (1, 1, NARROW), "predictor_pos_embed": (1, math.prod(IMAGE_GRID), NARROW)}
    if format == "vjepa1":
        shapes |= {"predictor_pos_embed": (1, math.prod(GRID), NARROW)}
    return shapes


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Tensors:
    """Normal, of a size that no output explodes or drowns at; norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    around = {key: 1.0 if "norm" in key and key.endswith("weight") else 0.0 for key in shapes}
    return {key: torch.randn(shape, generator=generator) * 0.1 + around[key] for key, shape in shapes.items()}


def networks(format: str, levels: int = 1, out: int = WIDTH, swiglu: bool = False) -> dict[str, Tensors]:
    """The three networks of a training file, without wrappers."""
    shapes = encoder_shapes(format, swiglu)
    return {
        "encoder": random_tensors(shapes, 1),
        "target_encoder": random_tensors(shapes, 2),
        "predictor": random_tensors(predictor_shapes(format, levels, out), 3),
    }


def training_content(parts: Mapping[str, Tensors], prefix: str) -> dict[str, Any]:
    """As the training code writes it: the networks under their wrappers, and the state of the optimizer."""
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}}
    state = {
        "opt": {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}]},
        "scaler": None,
    }
    wrapped = {name: {prefix + key: tensor for key, tensor in tensors.items()} for name, tensors in parts.items()}
    return {**wrapped, **state, "epoch": 3, "loss": 0.5, "batch_size": 24, "world_size": 8, "lr": 1e-3}


def save(path: Path, format: str, parts: Mapping[str, Tensors], prefix: str | None = None) -> Path:
    torch.save(training_content(parts, WRAPPERS[format] if prefix is None else prefix), path)
    return path


def tokens_of(sd: Tensors, video: Tensor, stem: str = "patch_embed") -> Tensor:
    """[B, 3, T, H, W] -> [B, N, D] by the convolution that the file holds."""
    kernel, bias = sd[f"{stem}.proj.weight"], sd[f"{stem}.proj.bias"]
    convolved = (
        functional.conv3d(video, kernel, bias, kernel.shape[2:])
        if kernel.ndim == 5
        else functional.conv2d(video[:, :, 0], kernel, bias, PATCH)
    )
    return convolved.flatten(2).transpose(1, 2)


def layer_norm(sd: Tensors, name: str, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], sd[f"{name}.weight"], sd[f"{name}.bias"], 1e-6)


def affine(sd: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ sd[f"{name}.weight"].T + sd[f"{name}.bias"]


def run_blocks(sd: Tensors, stem: str, depth: int, heads: int, x: Tensor, places: Tensor | None = None) -> list[Tensor]:
    """Pre-norm blocks; what leaves each. places [B, K, 3]: turn queries and keys by them."""
    outputs = []
    for i in range(depth):
        one = f"{stem}.{i}"
        query, key, value = affine(sd, f"{one}.attn.qkv", layer_norm(sd, f"{one}.norm1", x)).chunk(3, dim=-1)
        mixed = []
        for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
            if places is not None:
                q, k = turn(q, places), turn(k, places)
            mixed.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1) @ v)
        x = x + affine(sd, f"{one}.attn.proj", torch.cat(mixed, dim=-1))
        inner, mlp = layer_norm(sd, f"{one}.norm2", x), f"{one}.mlp"
        if f"{mlp}.fc3.weight" in sd:
            x = x + affine(
                sd, f"{mlp}.fc3", functional.silu(affine(sd, f"{mlp}.fc1", inner)) * affine(sd, f"{mlp}.fc2", inner)
            )
        else:
            x = x + affine(sd, f"{mlp}.fc2", functional.gelu(affine(sd, f"{mlp}.fc1", inner)))
        outputs.append(x)
    return outputs


def turn(x: Tensor, places: Tensor) -> Tensor:
    """[B, K, d] with each pair of neighbours, as a complex number, turned by place times frequency, axis after axis;
    the rest as it is.
    """
    share = 2 * (x.shape[-1] // 3 // 2)
    frequencies = 10000.0 ** -(torch.arange(share // 2, dtype=torch.float64) / (share // 2))
    parts = []
    for axis in range(3):
        pairs = torch.view_as_complex(
            x[..., axis * share : (axis + 1) * share].double().unflatten(-1, (-1, 2)).contiguous()
        )
        angles = places[..., axis, None].double() * frequencies
        parts.append(torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2).float())
    return torch.cat([*parts, x[..., 3 * share :]], dim=-1)


def square_places(ids: Tensor, grid: tuple[int, int, int], side: int) -> Tensor:
    """[B, K] -> [B, K, 3]: slot, and row and column scaled to 0 .. side - 1 (V-JEPA 2.1)."""
    _, h, w = grid
    return torch.stack(
        [ids // (h * w), ids // w % h * ((side - 1) / (h - 1)), ids % w * ((side - 1) / (w - 1))], dim=-1
    )


def split(num_tokens: int, num_seen: int = 5, num_hidden: int = 7) -> tuple[Tensor, Tensor]:
    """Context and target ids [2, K], sorted and disjoint."""
    drawn = torch.stack([torch.randperm(num_tokens) for _ in range(2)])
    return drawn[:, :num_seen].sort().values, drawn[:, num_seen : num_seen + num_hidden].sort().values


def pick(tokens: Tensor, ids: Tensor) -> Tensor:
    return torch.stack([row[one] for row, one in zip(tokens, ids, strict=True)])
