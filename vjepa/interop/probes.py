"""Probes: V-JEPA and V-JEPA 2 probe files, the heads of Hugging Face's V-JEPA 2 classifiers, and the heads that
`vjepa.probe` chose.

probe_attentive_label.safetensors holds a head for each fold, number N under `N.` and the names of V-JEPA's file. Its
metadata are format ("vjepa.probe"), probes (JSON: of each its task and link, which say what its outputs are, its
classes, attention_heads or null, and of a linear one pool and grid: how it averages tokens [t, h, w]), and what was
measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from vjepa.errors import UserError
from vjepa.interop import huggingface, meta, own
from vjepa.models.attentive_pool import AttentiveClassifier, AttentivePooler, LinearClassifier
from vjepa.models.pooling import MEAN, Pooling
from vjepa.models.state import load_strictly, read_tensors

FORMAT: Final = "vjepa.probe"
Classifier = AttentiveClassifier | LinearClassifier
FILE_HEADS = 16  # in every published probe, whatever the width; the files do not say it
UNUSED = "pooler.cross_attention_block.xattn.proj."  # V-JEPA has this layer and never applies it
HEAD = huggingface.TensorNames(
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


def load_probe(path: str | Path, index: int = 0, heads: int = FILE_HEADS) -> Classifier:
    """Load a probe: features [B, N, D] -> logits [B, C]; its `answers` are probabilities, or numbers.

    path: a file of `vjepa.probe`, V-JEPA or V-JEPA 2, or a Hugging Face folder of a V-JEPA 2 classifier.
    index: which of the probes that a file holds: of `vjepa.probe` one per fold, of V-JEPA 2 one per learning rate and
    weight decay.
    heads: attention heads, for published files, which do not say it. Frozen, in evaluation mode; no code is unpickled.
    Raises UserError that names a key which is missing, surplus or misshapen.
    """
    path = Path(path)
    probe: Classifier
    if path.is_dir():
        probe = _from_folder(path)
    elif (metadata := own.read_metadata(path)) is not None:
        probe = _from_own(path, metadata, index)
    else:
        probe = _from_file(path, index, heads)
    return probe.requires_grad_(False).eval()


def write_probes(path: Path, probes: Sequence[Classifier], about: Mapping[str, Any]) -> None:
    """Write one file of `probes`, whole; `about` becomes metadata, values other than text as JSON."""
    told = [{**_shape(probe), "task": probe.task, "link": probe.link, "classes": probe.classes} for probe in probes]
    tensors = {
        f"{number}.{name}": tensor for number, probe in enumerate(probes) for name, tensor in probe.state_dict().items()
    }
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    own.write_file(path, tensors, {**texts, "format": FORMAT, "probes": json.dumps(told)})


def _shape(probe: Classifier) -> dict[str, Any]:
    """Tell what the tensors of a probe do not."""
    if isinstance(probe, AttentiveClassifier):
        return {"attention_heads": probe.pooler.cross_attention_block.xattn.heads}
    return {"attention_heads": None, "pool": str(probe.pooling), "grid": astuple(probe.pooling.grid)}


def _from_own(path: Path, metadata: Mapping[str, str], index: int) -> Classifier:
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: is no probe file; name one that python -m vjepa.probe wrote beside its probe.json")
    told = _one_of(json.loads(metadata["probes"]), index, path)
    start, tensors = f"{index}.", read_tensors(path)
    stored = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    heads = told["attention_heads"]
    probe: Classifier = _attentive(path, stored, heads) if heads else _linear(path, stored, told)
    load_strictly(probe, stored, path)
    probe.classes = tuple(told["classes"])
    # older files knew classes alone, and do not tell ridge regression, of which softmax keeps no more than the order
    probe.task, probe.link = told.get("task", "classify"), told.get("link", "softmax")
    return probe


def _from_folder(path: Path) -> AttentiveClassifier:
    settings, stored = huggingface.read_folder(path)
    stored = {key: tensor for key, tensor in stored.items() if not key.startswith("vjepa2.")}
    if settings["model_type"] != "vjepa2" or "classifier.weight" not in stored:
        raise UserError(
            f"{path}: holds no attentive probe; a V-JEPA 2 classifier has the keys pooler.* and classifier.*"
        )
    width, heads, eps = settings["hidden_size"], settings["num_attention_heads"], settings["layer_norm_eps"]
    num_classes = len(stored["classifier.weight"])
    pooler = AttentivePooler(width, heads, depth=settings.get("num_pooler_layers", 3) + 1, norm_eps=eps)
    probe = AttentiveClassifier(pooler, num_classes)
    load_strictly(probe, huggingface.take(stored, probe, HEAD, path), path)
    huggingface.refuse_rest(stored, path)
    return probe


def _from_file(path: Path, index: int, heads: int) -> AttentiveClassifier:
    stored = _choose(path, meta.read_file(path), index)
    stored = {meta.unwrapped(key): tensor for key, tensor in stored.items()}
    of_vjepa1 = any(key.startswith(UNUSED) for key in stored)
    stored = {key: tensor for key, tensor in stored.items() if not key.startswith(UNUSED)}
    if of_vjepa1 and _depth(stored) > 1:
        raise UserError(
            f"{path}: is a V-JEPA probe of depth {_depth(stored)}, whose blocks follow the query; only depth "
            "1 is supported"
        )
    probe = _attentive(path, stored, heads)
    load_strictly(probe, stored, path)
    return probe


def _depth(stored: Mapping[str, Tensor]) -> int:
    return 1 + len({key.split(".")[2] for key in stored if key.startswith("pooler.blocks.")})


def _attentive(path: Path, stored: Mapping[str, Tensor], heads: int) -> AttentiveClassifier:
    """Make a probe of the shapes of `stored`, without its values."""
    keys = ("pooler.query_tokens", "pooler.cross_attention_block.mlp.fc1.weight", "linear.weight")
    query, hidden, linear = (_tensor(path, stored, key) for key in keys)
    width = query.shape[-1]
    if width % heads:
        raise UserError(f"{path}: a width of {width} has no {heads} heads; give the number of heads of this probe")
    return AttentiveClassifier(AttentivePooler(width, heads, len(hidden) / width, _depth(stored)), len(linear))


def _linear(path: Path, stored: Mapping[str, Tensor], told: Mapping[str, Any]) -> LinearClassifier:
    """Make a linear probe of the shapes of `stored`. Older files say no `pool`, for they knew the mean alone."""
    num_classes, width = _tensor(path, stored, "linear.weight").shape
    pooling = Pooling.parse(told["pool"], told["grid"]) if "pool" in told else MEAN
    return LinearClassifier(width, num_classes, pooling)


def _tensor(path: Path, stored: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in stored:
        raise UserError(f"{path}: {key} is missing; this is no attentive probe")
    return stored[key]


def _choose(path: Path, content: Mapping[str, Any], index: int) -> Mapping[str, Tensor]:
    """Take the state of probe number `index`: V-JEPA's file has one, V-JEPA 2's a list."""
    if "classifier" not in content and "classifiers" not in content:
        raise UserError(f"{path}: is no probe file; it has neither `classifier` (V-JEPA) nor `classifiers` (V-JEPA 2)")
    chosen: Mapping[str, Tensor] = _one_of(content.get("classifiers", [content.get("classifier")]), index, path)
    return chosen


def _one_of(probes: Sequence[Any], index: int, path: Path) -> Any:
    if not 0 <= index < len(probes):
        raise UserError(f"{path}: has no probe number {index}; it has 0 to {len(probes) - 1}")
    return probes[index]
