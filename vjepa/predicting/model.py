"""Which classifier answers: a fine-tuned run, a Hugging Face folder, or a frozen encoder with a head of vjepa.probe."""

from __future__ import annotations

import json
from pathlib import Path

from vjepa import config
from vjepa.errors import UserError
from vjepa.interop import classifiers, load, own
from vjepa.interop.classifiers import VideoClassifier
from vjepa.interop.meta import Hints
from vjepa.interop.probes import FORMAT, load_probe
from vjepa.probing.extractors import weights_hash
from vjepa.probing.subject import blocks, require
from vjepa.run_folder import RunFolder


def read_model(path: Path) -> VideoClassifier:
    """Read the classifier at `path`; of a run of pre-training, the one head that vjepa.probe left there.

    Raises UserError where there is none, or where there are several.
    """
    require(path)
    found = classifiers.find(path)
    if found is not None:
        return found
    if path.is_file() and (own.read_metadata(path) or {}).get("format") == FORMAT:
        return _of_probe(path)
    if not RunFolder(path).config.is_file():
        raise UserError(
            f"{path}: no classifier: name a run of vjepa.finetune, a head that vjepa.probe wrote, "
            "or a Hugging Face folder of VJEPA2ForVideoClassification"
        )
    files = sorted(path.glob("*.safetensors"))
    heads = [file for file in files if (own.read_metadata(file) or {}).get("format") == FORMAT]
    if len(heads) != 1:
        told = f"has {len(heads)} heads; name one of {', '.join(map(str, heads))}" if heads else "has no head"
        remedy = "" if heads else f"; python -m vjepa.finetune or vjepa.probe --model_path {path} makes one"
        raise UserError(f"{path}: {told}{remedy}")
    return _of_probe(heads[0])


def _of_probe(path: Path) -> VideoClassifier:
    """Join a head of vjepa.probe and the encoder that it was learned on. Raises UserError where that has changed."""
    told = own.read_metadata(path) or {}
    if "model_path" not in told:
        raise UserError(f"{path}: does not say which encoder it reads; name the run that it lies in")
    for name, remedy in (("fold", "probe without --fold"), ("anticipation_s", "probe without --anticipation_s")):
        if told.get(name, "null") != "null":
            raise UserError(f"{path}: is of a probe with {name}, which answers no whole videos; {remedy}")
    above = RunFolder.above(path)
    source = Path(told["model_path"])
    source = above.path if above and not source.exists() else source
    weights = load.read(source, hints=Hints(told["encoder"]), predictor=False)
    encoder = weights.build_encoder()
    if weights_hash(encoder) != told["weights_hash"]:
        raise UserError(f"{path}: was learned on other weights than {source} has now; run vjepa.probe again")
    head = load_probe(path)
    read = blocks("levels", told["levels"], encoder.depth)
    data = config.Data.model_validate({"train": "", **json.loads(told["data"])})
    return VideoClassifier(weights, head, head.classes, data, None if read == (encoder.depth - 1,) else read)
