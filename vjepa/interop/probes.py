"""Published probes: V-JEPA and V-JEPA 2 probe files, and the heads of Hugging Face's V-JEPA 2 classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vjepa.errors import UserError
from vjepa.interop import huggingface, meta
from vjepa.models.attentive_pool import AttentiveClassifier, AttentivePooler
from vjepa.models.state import load_strictly

FILE_HEADS = 16  # in every published probe, whatever the width; the files do not say it
UNUSED = "pooler.cross_attention_block.xattn.proj."  # V-JEPA has this layer and never applies it
HEAD = huggingface.Layout(
    block="pooler.self_attention_layers.{}",
    parts={
        "norm1": ("layer_norm1",),
        "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.proj": ("self_attn.out_proj",),
        "norm2": ("layer_norm2",),
        "mlp.fc1": ("mlp.fc1",),
        "mlp.fc2": ("mlp.fc2",),
    },
    names={
        "pooler": ("pooler",),  # of query_tokens
        "pooler.cross_attention_block.norm1": ("pooler.cross_attention_layer.layer_norm1",),
        "pooler.cross_attention_block.xattn.q": ("pooler.cross_attention_layer.cross_attn.q_proj",),
        "pooler.cross_attention_block.xattn.kv": (
            "pooler.cross_attention_layer.cross_attn.k_proj",
            "pooler.cross_attention_layer.cross_attn.v_proj",
        ),
        "pooler.cross_attention_block.norm2": ("pooler.cross_attention_layer.layer_norm2",),
        "pooler.cross_attention_block.mlp.fc1": ("pooler.cross_attention_layer.mlp.fc1",),
        "pooler.cross_attention_block.mlp.fc2": ("pooler.cross_attention_layer.mlp.fc2",),
        "linear": ("classifier",),
    },
)


def load_probe(path: str | Path, index: int = 0, heads: int = FILE_HEADS) -> AttentiveClassifier:
    """The probe of a V-JEPA or V-JEPA 2 probe file or a Hugging Face V-JEPA 2 classifier folder: features [B, N, D] -> logits [B, C].

    index: which of the probes that a V-JEPA 2 file holds, one per learning rate and weight decay. heads: attention heads, for
    files, which do not say it. Frozen, in evaluation mode; no code is unpickled. Raises UserError that names a key which is
    missing, surplus or misshapen.
    """
    path = Path(path)
    probe = _from_folder(path) if path.is_dir() else _from_file(path, index, heads)
    return probe.requires_grad_(False).eval()


def _from_folder(path: Path) -> AttentiveClassifier:
    settings, stored = huggingface.read_folder(path)
    stored = {key: tensor for key, tensor in stored.items() if not key.startswith("vjepa2.")}
    if settings["model_type"] != "vjepa2" or "classifier.weight" not in stored:
        raise UserError(f"{path}: holds no attentive probe; a V-JEPA 2 classifier has the keys pooler.* and classifier.*")
    width, heads, eps = settings["hidden_size"], settings["num_attention_heads"], settings["layer_norm_eps"]
    num_classes = len(stored["classifier.weight"])
    pooler = AttentivePooler(width, heads, depth=settings.get("num_pooler_layers", 3) + 1, norm_eps=eps)
    probe = AttentiveClassifier(pooler, num_classes)
    load_strictly(probe, huggingface.take(stored, probe, HEAD, path), path)
    huggingface.refuse_rest(stored, path)
    return probe


def _from_file(path: Path, index: int, heads: int) -> AttentiveClassifier:
    stored = _choose(path, meta.read_file(path), index)
    stored = {key.removeprefix("module."): tensor for key, tensor in stored.items()}
    of_vjepa1 = any(key.startswith(UNUSED) for key in stored)
    stored = {key: tensor for key, tensor in stored.items() if not key.startswith(UNUSED)}
    depth = 1 + len({key.split(".")[2] for key in stored if key.startswith("pooler.blocks.")})
    if of_vjepa1 and depth > 1:
        raise UserError(f"{path}: is a V-JEPA probe of depth {depth}, whose blocks follow the query; only depth 1 is supported")
    query, hidden, linear = (_tensor(path, stored, key) for key in ("pooler.query_tokens", "pooler.cross_attention_block.mlp.fc1.weight", "linear.weight"))
    width = query.shape[-1]
    if width % heads:
        raise UserError(f"{path}: a width of {width} has no {heads} heads; give the number of heads of this probe")
    probe = AttentiveClassifier(AttentivePooler(width, heads, len(hidden) / width, depth), len(linear))
    load_strictly(probe, stored, path)
    return probe


def _tensor(path: Path, stored: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in stored:
        raise UserError(f"{path}: {key} is missing; this is no attentive probe")
    return stored[key]


def _choose(path: Path, content: Mapping[str, Any], index: int) -> Mapping[str, Tensor]:
    """The state of probe number `index`: V-JEPA's file has one, V-JEPA 2's a list."""
    if "classifier" not in content and "classifiers" not in content:
        raise UserError(f"{path}: is no probe file; it has neither `classifier` (V-JEPA) nor `classifiers` (V-JEPA 2)")
    probes: list[Mapping[str, Tensor]] = content.get("classifiers", [content.get("classifier")])
    if not 0 <= index < len(probes):
        raise UserError(f"{path}: has no probe number {index}; it has 0 to {len(probes) - 1}")
    return probes[index]
