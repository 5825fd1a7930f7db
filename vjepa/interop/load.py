"""Weights of any known format: named, or recognised by what the file holds, never by what it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vjepa.errors import UserError
from vjepa.interop import huggingface, meta, own
from vjepa.interop.meta import Hints
from vjepa.interop.weights import Weights
from vjepa.run_folder import followed

# What each format is, for errors. Those of `meta.FITS` are training files; the others say their settings themselves.
FORMATS: Final[dict[str, str]] = {
    "vjepa": "a run, checkpoint or export of vjepa",
    "vjepa1": "a training file of V-JEPA 1",
    "vjepa2": "a training file of V-JEPA 2",
    "vjepa2.1": "a training file of V-JEPA 2.1",
    "ijepa": "a training file of I-JEPA",
    "huggingface": "a folder of transformers' VJEPA2 or I-JEPA",
}
WHICH: Final = ("target_encoder", "encoder")


def read(path: Path | str, format: str | None = None, hints: Hints | None = None, *, predictor: bool = True) -> Weights:
    """Read the networks at `path`, in a format of `FORMATS`, or in the one that is recognised.

    hints: which encoder, where there are two, and what a training file cannot tell. Where they do not say which, it is
    the one that is evaluated: `eval.encoder` of a run (unless set otherwise its context encoder), the target encoder
    of a published file (V-JEPA, section 4).
    predictor: False reads the encoder of a training file alone.
    Raises UserError with one line for a path that is none of these, for a format that it is not, and for a hint that
    the format has no use for.
    """
    path, hints = Path(path), hints or Hints()
    if format is not None and format not in FORMATS:
        raise UserError(f"format={format!r}: no such format; the formats are {', '.join(FORMATS)}")
    if hints.which not in (None, *WHICH):
        raise UserError(f"which={hints.which!r}: no such encoder; it is {' or '.join(WHICH)}")
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    path = followed(path)
    format = format or recognise(path)
    if format in meta.FITS:
        if path.is_dir():
            raise UserError(f"{path}: a folder, while format {format!r} is a file")
        return meta.read(path, format, hints, predictor=predictor)
    if hints != Hints(which=hints.which):
        raise UserError(
            f"{path}: heads=, predictor_heads= and position_grid= are for training files; {FORMATS[format]} "
            "says them itself"
        )
    return own.read(path, hints.which) if format == "vjepa" else huggingface.read(path)


def recognise(path: Path) -> str:
    """Tell the format at `path`. Raises UserError that says what was found where it is none, or might be two."""
    if not path.is_dir() and own.read_metadata(path) is None:
        return meta.recognise(path)
    readers = {"vjepa": own, "huggingface": huggingface}
    formats = [format for format, reader in readers.items() if reader.recognises(path)]
    if len(formats) == 1:
        return formats[0]
    if formats:
        raise UserError(f"{path}: could be {' or '.join(FORMATS[format] for format in formats)}; name it with format=")
    found = "a safetensors file"
    if path.is_dir():
        found = f"a folder of {', '.join(sorted(entry.name for entry in path.iterdir())[:5]) or 'nothing'}"
    raise UserError(
        f"{path}: {found}, neither {FORMATS['vjepa']} nor {FORMATS['huggingface']}; name another path, or the "
        "format with format="
    )
