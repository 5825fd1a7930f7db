"""The frozen encoder whose features a run predicts (SALT, arXiv 2509.24317).

It is read from any known format, then kept with the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vjepa import config
from vjepa.errors import UserError
from vjepa.interop import load, own
from vjepa.interop.weights import Weights
from vjepa.models.backbone import encoder_width
from vjepa.run_folder import RunFolder


def read_teacher(
    path: str | None, run: RunFolder, ours: config.Model, sources: Mapping[str, config.Data]
) -> Weights | None:
    """Read the encoder of `objective.teacher`, or the copy of it that the run has; None for a run without a teacher.

    The target encoder of what is read, where it has one. Raises UserError where its tokens or features are not those
    that the run predicts.
    """
    if path is None:
        return None
    teacher = replace(load.read(run.teacher if run.teacher.is_file() else path, predictor=False), predictor={})
    theirs = teacher.model
    for name in ("patch_px", "tubelet_frames", "input"):
        if getattr(ours, name) != getattr(theirs, name):
            raise UserError(
                f"objective.teacher: {teacher.origin} has {name} {getattr(theirs, name)}; set model.{name} to "
                f"that, it is {getattr(ours, name)}"
            )
    for name, data in sources.items():
        size = data.clip_size
        if theirs.grid(*size) != ours.grid(*size):
            raise UserError(
                f"objective.teacher: {teacher.origin} cuts {name} into {theirs.grid(*size)}, this run into "
                f"{ours.grid(*size)}; give both one image_mode"
            )
    wanted = theirs.levels * encoder_width(theirs)
    predicted = ours.levels * (ours.predictor.out_width or encoder_width(ours))
    if wanted != predicted:
        width, rest = divmod(wanted, ours.levels)
        remedy = "set model.levels: 1" if rest else f"set model.predictor.out_width: {width}"
        raise UserError(
            f"objective.teacher: {teacher.origin} has {wanted} features a token, {predicted} are predicted; {remedy}"
        )
    return teacher


def keep_teacher(teacher: Weights, run: RunFolder) -> None:
    """Copy a teacher into the run folder, which then needs no other file; a copy that is there stays."""
    if not run.teacher.is_file():
        own.write(teacher, run.teacher)
