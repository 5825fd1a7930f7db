"""Classifiers of videos, an encoder with a head: fine-tuned runs, and Hugging Face's VJEPA2ForVideoClassification."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from vjepa import config
from vjepa.errors import UserError
from vjepa.interop import huggingface, own
from vjepa.interop.probes import HEAD, Classifier, load_probe, write_probes
from vjepa.interop.weights import Weights
from vjepa.models.attentive_pool import AttentiveClassifier
from vjepa.models.encoder import Encoder
from vjepa.run_folder import RunFolder

ARCHITECTURE: Final = "VJEPA2ForVideoClassification"


class EncoderWithHead(nn.Module):
    """Answer normalised clips by an encoder, read after some blocks, and a head: [B, 3, T, H, W] -> logits [B, C]."""

    def __init__(self, encoder: Encoder, head: Classifier, blocks: tuple[int, ...] | None = None) -> None:
        """Take both as they are. blocks: that the head reads; None: the last one."""
        super().__init__()
        self.encoder, self.head, self.blocks = encoder, head, blocks or (encoder.depth - 1,)

    def forward(self, video: Tensor) -> Tensor:
        if self.blocks == (self.encoder.depth - 1,):
            levels = [self.encoder(video)]
        else:
            levels = self.encoder.intermediate(video, self.blocks)
        beside = 1 if isinstance(self.head, AttentiveClassifier) else -1  # see `FittedProbe.head`
        logits: Tensor = self.head(torch.cat(levels, dim=beside))
        return logits


@dataclass(frozen=True)
class VideoClassifier:
    """Hold an encoder and a head with its classes, and how clips are read for them.

    weights: with the predictor of the start, where there is one: a Hugging Face folder has it. blocks: that the head
    reads; None: the last.
    """

    weights: Weights
    head: Classifier
    classes: tuple[str, ...]
    data: config.Data
    blocks: tuple[int, ...] | None = None

    def build(self) -> EncoderWithHead:
        """Make the network, frozen, on the CPU."""
        network = EncoderWithHead(self.weights.build_encoder(), self.head, self.blocks)
        return network.requires_grad_(False).eval()


def find(path: Path) -> VideoClassifier | None:
    """Read the classifier that a fine-tuned run or a Hugging Face folder is; None for anything else.

    Raises UserError for a fine-tuned run that is not finished, and for a damaged folder.
    """
    if RunFolder(path).config.is_file():
        settings = config.load_run(RunFolder(path).config)
        return _of_run(RunFolder(path), settings) if isinstance(settings, config.FinetuneConfig) else None
    return _of_folder(path) if huggingface.recognises(path) and _architecture(path) else None


def _of_run(run: RunFolder, settings: config.FinetuneConfig) -> VideoClassifier:
    if not (run.head.is_file() and run.best_file.is_file()):
        raise UserError(f"{run.path}: is not finished, so its best checkpoint is not known; give its command again")
    weights, head = own.read(run.best_file), load_probe(run.head)
    predictor = own.read(run.start).predictor if run.start.is_file() else {}
    return VideoClassifier(replace(weights, predictor=predictor), head, head.classes, settings.data)


def _architecture(path: Path) -> bool:
    told = json.loads((path / huggingface.CONFIG).read_text(encoding="utf-8"))
    return ARCHITECTURE in (told.get("architectures") or ())


def _of_folder(path: Path) -> VideoClassifier:
    settings, _ = huggingface.read_folder(path)
    head = load_probe(path)
    names = settings.get("id2label") or {}
    num = head.linear.out_features
    classes = tuple(str(names.get(str(number), number)) for number in range(num))
    weights = huggingface.read(path)
    clips = {"num_frames": settings["frames_per_clip"], "crop_px": settings["crop_size"], "channels": weights.channels}
    return VideoClassifier(weights, head, classes, config.Data.model_validate({"train": "", **clips}))


def write_huggingface(classifier: VideoClassifier, folder: Path, size: tuple[int, int, int]) -> None:
    """Write a folder that `VJEPA2ForVideoClassification.from_pretrained` loads, its classes as id2label.

    size: T, H, W of the clips. Raises UserError for what that class does not have.
    """
    weights, head = classifier.weights, classifier.head
    _refuse_other_heads(weights, head, classifier.blocks)
    tensors, settings = huggingface.translate(weights, size)
    theirs = {f"vjepa2.{name}": tensor for name, tensor in tensors.items()}
    theirs |= huggingface.split(head, HEAD)
    depth = len(getattr(head.pooler, "blocks", ()))
    settings |= {"architectures": [ARCHITECTURE], "num_pooler_layers": depth}
    settings |= {"id2label": {str(number): name for number, name in enumerate(classifier.classes)}}
    settings |= {"label2id": {name: number for number, name in enumerate(classifier.classes)}}
    processor = huggingface.processor_of(size[1], classifier.data.fit, weights.channels)
    huggingface.save(folder, settings, theirs, processor)


def _refuse_other_heads(weights: Weights, head: Classifier, blocks: tuple[int, ...] | None) -> None:
    where, shape = f"{weights.origin}: Hugging Face's {ARCHITECTURE}", weights.model.encoder
    if not isinstance(head, AttentiveClassifier):
        raise UserError(
            f"{where} has an attentive head, this one reads means; fine-tune with finetune.head=attentive, or export "
            "it with --to onnx"
        )
    last = head.pooler.cross_attention_block
    if blocks is not None:
        raise UserError(f"{where} reads the last block alone, this head others; export it with --to onnx")
    if last.xattn.heads != shape.heads:
        raise UserError(
            f"{where} has a head of as many attention heads as its encoder, {shape.heads}, this one has "
            f"{last.xattn.heads}; fine-tune with finetune.head_heads={shape.heads}, or export it with --to onnx"
        )
    if last.mlp.fc1.out_features != round(shape.width * shape.mlp_ratio):
        raise UserError(f"{where} has a head with the mlp_ratio of its encoder, {shape.mlp_ratio:g}, this one has 4")


def write_safetensors(classifier: VideoClassifier, path: Path) -> Path:
    """Write the encoder, for load_encoder, and beside it STEM_head.safetensors, for load_probe, which is given."""
    own.write(replace(classifier.weights, predictor={}), path)
    about: Mapping[str, Any] = {"encoder_file": path.name}
    head = path.with_name(f"{path.stem}_head.safetensors")
    write_probes(head, [classifier.head], about)
    return head
