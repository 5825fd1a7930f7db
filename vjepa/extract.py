"""Features of a clip index by a frozen encoder, as safetensors or Parquet.

python -m vjepa.extract --model_path runs/demo --dataset clips.parquet --out features.parquet

One row for each clip that can be read, in the order of the index: `row` (of the index), `clip` (its number in its
video), `start_s`, `end_s`, `uri`, the label columns, and `features`: [D], or with another --pool than mean [P, D], of P
places; with --level 2,5 `features_2` and `features_5`. What was done is in the metadata of the file. Stop it at any
time: the same command goes on where it was. With --shard, or under torchrun, processes share the work; the last one to
end makes the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vjepa import command
from vjepa.probing.settings import ExtractSettings

_PURPOSE: Final = "Features of a clip index by a frozen encoder, as safetensors or Parquet."


def main(arguments: Sequence[str]) -> int:
    settings = command.parse(ExtractSettings, "extract", _PURPOSE, arguments)
    from vjepa.probing import extraction  # imports torch, which --help must not wait for

    print(extraction.extract(settings))
    return 0


if __name__ == "__main__":
    command.run(main)
