"""Measure the channels of an index: what `data.channels` of a config says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_prep.child import Child, ChildLost
from data_prep.looking.contact_sheet import DEADLINE_S, spread
from vjepa.config import Channels
from vjepa.data.clip_index import ClipIndex
from vjepa.errors import UserError


def measured_channels(
    index: ClipIndex, where: Mapping[str, str | list[str]], num: int, deadline_s: float = DEADLINE_S
) -> str:
    """Read the middle frame of `num` clips, evenly among those that are meant; give the lines of a config.

    Mean and deviation are over all pixels, as shares of full scale. Raises UserError where no clip can be read, or
    where they have different channels.
    """
    if num < 1:
        raise UserError(f"--channels {num}: at least 1 is needed")
    rows = index.select(where)
    kinds: dict[tuple[int, int], list[np.ndarray]] = {}
    reasons: list[str] = []
    with Child("-m", "data_prep.looking.moments", str(index.path)) as reader:
        for i in spread(rows, num).tolist():
            answer = _ask(reader, i, deadline_s)
            if "moments" in answer:
                found = np.array(answer["moments"])
                kinds.setdefault((found.shape[1], answer["bits"]), []).append(found)
            else:
                reasons.append(f"{index.uri(i)}: {answer['reason']}")
    if not kinds:
        raise UserError(f"{index.path}: none of {len(reasons)} clips can be read; {reasons[0]}")
    if len(kinds) > 1:
        found_kinds = ", ".join(f"{len(each)} of {kind[0]} with {kind[1]} bits" for kind, each in kinds.items())
        raise UserError(f"{index.path}: has clips of several kinds ({found_kinds} channels); choose one with --where")
    (((_, bits), measured),) = kinds.items()
    left_out = f", {len(reasons)} more cannot be read" if reasons else ""
    return "\n".join(
        [f"# {len(measured)} of {len(rows)} clips of {index.path.name}{left_out}", *_lines(measured, bits)]
    )


def _ask(reader: Child, row: int, deadline_s: float) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    try:
        for message in reader.ask({"row": row}, deadline_s):
            answer |= message
    except ChildLost as lost:
        answer = {"reason": f"the decoder did not end well ({lost.how})"}
    return answer


def _lines(measured: list[np.ndarray], bits: int) -> list[str]:
    """Write float64 [2, C] of each clip, mean and mean square, as `data.channels`."""
    mean, square = np.mean(measured, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    names = Channels().names if len(mean) == 3 else tuple(f"channel_{number}" for number in range(1, len(mean) + 1))
    return [
        "data:",
        "  channels:  # name them as you like",
        f"    names: [{', '.join(names)}]",
        f"    mean: [{', '.join(f'{value:.5f}' for value in mean)}]",
        f"    std: [{', '.join(f'{max(value, 1e-5):.5f}' for value in std)}]",
        f"    bits: {bits}",
    ]
