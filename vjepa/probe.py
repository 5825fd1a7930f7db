"""Measure a frozen encoder by a probe, beside its baselines, on a clip index or an image data set.

python -m vjepa.probe --model_path runs/demo --dataset clips.parquet --eval_mode attentive
python -m vjepa.probe --model_path runs/demo --dataset actions.parquet --eval_mode attentive --anticipation_s 1
--rollout both
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vjepa import command
from vjepa.probing.settings import ProbeSettings

_PURPOSE: Final = "Measure a frozen encoder by a probe, beside its baselines."


def main(arguments: Sequence[str]) -> int:
    settings = command.parse(ProbeSettings, "probe", _PURPOSE, arguments)
    from vjepa.probing import measuring  # imports torch, which --help must not wait for

    table = measuring.measure(settings)
    if table is not None:  # under torchrun the first process alone has one
        print(table)
    return 0


if __name__ == "__main__":
    command.run(main)
