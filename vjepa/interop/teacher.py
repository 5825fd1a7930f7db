"""The frozen encoder whose features a run predicts (SALT, arXiv 2509.24317).

It is read from any known format, then kept with the run.
"""

from __future__ import annotations

from dataclasses import replace

from vjepa import config
from vjepa.errors import UserError
from vjepa.interop import load, own
from vjepa.interop.weights import Weights
from vjepa.models.backbone import encoder_width
from vjepa.run_folder import RunFolder


def read_teacher(settings: config.Config) -> Weights | None:
    """Read the encoder of `objective.teacher`, or the copy of it that the run has; None for a run without a teacher.

    The target encoder of what is read, where it has one. Raises UserError where its tokens or features are not those
    that the run predicts.
    """
    if settings.objective.teacher is None:
        return None
    kept = settings.run.folder.teacher
    teacher = replace(load.read(kept if kept.is_file() else settings.objective.teacher, predictor=False), predictor={})
    ours, theirs = settings.model, teacher.model
    for name in ("patch_px", "tubelet_frames", "input"):
        if getattr(ours, name) != getattr(theirs, name):
            raise UserError(
                f"objective.teacher: {teacher.origin} has {name} {getattr(theirs, name)}; set model.{name} to "
                f"that, it is {getattr(ours, name)}"
            )
    for name, data in settings.data.sources.items():
        grid = theirs.grid(data.num_frames, data.crop_px, data.crop_px)
        if grid != settings.grids[name]:
            raise UserError(
                f"objective.teacher: {teacher.origin} cuts {name} into {grid}, this run into "
                f"{settings.grids[name]}; give both one image_mode"
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
