"""Weights of any known format, written as another one and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from vjepa import config, files
from vjepa.errors import UserError
from vjepa.interop import classifiers, huggingface, load, onnx, own, world
from vjepa.interop.card import card_path, model_card
from vjepa.interop.classifiers import VideoClassifier
from vjepa.interop.meta import Hints
from vjepa.interop.probes import load_probe
from vjepa.interop.weights import Weights
from vjepa.run_folder import RunFolder


@dataclass(frozen=True)
class ClipSize:
    """Tell the clips that exported networks are for: their frames, height and width in pixels; how frames fill them."""

    num_frames: int
    height: int
    width: int
    fit: str = "crop"

    @property
    def size(self) -> tuple[int, int, int]:
        """Give T, H, W."""
        return self.num_frames, self.height, self.width


def export_file(
    source: str,
    to: str,
    out: Path,
    format: str | None = None,
    hints: Hints | None = None,
    num_frames: int | None = None,
    crop_px: Sequence[int] | None = None,
) -> str:
    """Read `source`, write it to `out` in the format `to`, and report in one line what was done.

    format and hints are those of `load.read`. num_frames and crop_px (a side, or height and width): the clips that the
    result is for; a safetensors file is for any. Raises UserError as `load.read` and `export` do, and where a size is
    missing.
    """
    refuse_existing(out)  # before minutes of reading
    if format is None and world.is_run(Path(source)):
        if to != "safetensors":
            raise UserError(f"--to {to}: a world model is written as safetensors alone")
        return world.export(Path(source), out)
    classifier = classifiers.find(Path(source)) if format is None and (hints is None or hints == Hints()) else None
    if classifier is not None:
        return _export_classifier(source, classifier, to, out, num_frames, crop_px)
    weights = load.read(source, format, hints)
    clip = _clip_size(weights, to, num_frames, crop_px, _fit(Path(source)))
    what = "encoder and predictor" if weights.predictor and to != "onnx" else "encoder"
    size = "x".join(map(str, clip.size))
    about = f"Video features: {what} ({weights.which} of training)."
    difference = _write(
        partial(WRITERS[to], weights), out, clip, partial(model_card, Path(source), out, to, size, about)
    )
    return (
        f"{out}: {what} as {to}; features of clips of {size} differ from those of {source} by at most "
        f"{difference:.2g}; its card is {card_path(out, to)}"
    )


def _export_classifier(
    source: str,
    classifier: VideoClassifier,
    to: str,
    out: Path,
    num_frames: int | None,
    crop_px: Sequence[int] | None,
) -> str:
    """Write encoder and head of a classifier; its clips are those that it learned from, unless others are named."""
    data = classifier.data
    clip = _clip_size(classifier.weights, to, num_frames or data.num_frames, crop_px or data.crop_size, data.fit)
    size = "x".join(map(str, clip.size))
    told = f"{len(classifier.classes)} classes"
    about = f"Video classifier of {told}: {', '.join(classifier.classes)}."
    card = partial(model_card, Path(source), out, to, size, about)
    difference = _write(partial(CLASSIFIER_WRITERS[to], classifier), out, clip, card)
    return (
        f"{out}: classifier of {told} as {to}; logits of clips of {size} differ from those of {source} by at most "
        f"{difference:.2g}; its card is {card_path(out, to)}"
    )


def export(weights: Weights, to: str, out: Path, clip: ClipSize) -> float:
    """Write `out` in the format `to`; return the largest difference of its features from the source's, on random clips.

    Nothing appears at `out` before it is complete and checked. Raises UserError where `out` exists, or where the format
    cannot express the networks.
    """
    return _write(partial(WRITERS[to], weights), out, clip)


def _write(
    writer: Callable[[Path, ClipSize], float], out: Path, clip: ClipSize, card: Callable[[float], str] | None = None
) -> float:
    """Have `writer` make `out` in another place, and all that it wrote appear when it is done.

    card: makes the text that goes with it, of the difference that was found.
    """
    refuse_existing(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as workshop:
            difference = writer(Path(workshop, out.name), clip)
            if card is not None:
                made_in = Path(workshop, out.name)
                files.write_text(card_path(made_in, "huggingface" if made_in.is_dir() else ""), card(difference))
            made = sorted(Path(workshop).iterdir())  # an ONNX file may have its weights beside it, and knows their name
            for item in made:
                refuse_existing(out.with_name(item.name))
            for item in made:
                item.rename(out.with_name(item.name))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    return difference


def refuse_existing(path: Path) -> None:
    """Raise UserError where something is at `path`."""
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: exists; nothing is overwritten, name another --out")


def _clip_size(weights: Weights, to: str, num_frames: int | None, crop_px: Sequence[int] | None, fit: str) -> ClipSize:
    """Take the size that is given; a safetensors file is for any size and is checked on a small one."""
    if num_frames and crop_px:
        if len(crop_px) > 2:
            raise UserError(f"--crop-px {','.join(map(str, crop_px))}: give a side, or height and width")
        return ClipSize(num_frames, crop_px[0], crop_px[-1], fit)
    if to != "safetensors":
        raise UserError(f"--to {to} needs --num-frames and --crop-px: what it writes is for clips of one size")
    side = 4 * weights.model.patch_px
    return ClipSize(2 * weights.model.tubelet_frames, side, side)


def _fit(source: Path) -> str:
    """Read how frames filled the clips of the run that `source` is of; the centre of others."""
    run = RunFolder.above(source)
    return config.load_run(run.config).data.fit if run else "crop"


def _safetensors(weights: Weights, path: Path, clip: ClipSize) -> float:
    own.write(weights, path)
    return _difference(weights, own.read(path), clip)


def _huggingface(weights: Weights, path: Path, clip: ClipSize) -> float:
    huggingface.write(weights, path, clip.size, clip.fit)
    return _difference(weights, huggingface.read(path), clip)


def _onnx(weights: Weights, path: Path, clip: ClipSize) -> float:
    return onnx.export(weights.build_encoder(), clip.size, path)


WRITERS: Final[dict[str, Callable[[Weights, Path, ClipSize], float]]] = {
    "huggingface": _huggingface,
    "onnx": _onnx,
    "safetensors": _safetensors,
}


def _huggingface_classifier(classifier: VideoClassifier, path: Path, clip: ClipSize) -> float:
    classifiers.write_huggingface(classifier, path, clip.size)
    written = classifiers.find(path)
    return _difference_of_logits(classifier, written, clip) if written else math.inf


def _onnx_classifier(classifier: VideoClassifier, path: Path, clip: ClipSize) -> float:
    return onnx.export(classifier.build(), clip.size, path)


def _safetensors_classifier(classifier: VideoClassifier, path: Path, clip: ClipSize) -> float:
    head = classifiers.write_safetensors(classifier, path)
    written = replace(classifier, weights=own.read(path), head=load_probe(head))
    return _difference_of_logits(classifier, written, clip)


CLASSIFIER_WRITERS: Final[dict[str, Callable[[VideoClassifier, Path, ClipSize], float]]] = {
    "huggingface": _huggingface_classifier,
    "onnx": _onnx_classifier,
    "safetensors": _safetensors_classifier,
}


def _difference_of_logits(source: VideoClassifier, written: VideoClassifier, clip: ClipSize) -> float:
    """Find the largest difference of the logits of one random clip."""
    video = torch.randn(1, source.weights.model.channels, *clip.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return float((source.build()(video) - written.build()(video)).abs().max())


def _difference(source: Weights, written: Weights, clip: ClipSize) -> float:
    """Find the largest difference of the encoders' features of one random clip; the predictors have to be equal."""
    same = source.predictor.keys() == written.predictor.keys() and all(
        torch.equal(tensor.float(), written.predictor[key]) for key, tensor in source.predictor.items()
    )
    if not same:
        raise UserError(
            f"{written.origin}: the predictor that was written is not that of {source.origin}; this is a "
            "defect, please report it"
        )
    video = torch.randn(1, source.model.channels, *clip.size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return float((source.build_encoder()(video) - written.build_encoder()(video)).abs().max())
