"""Fine-tune a pre-trained encoder with a head on labelled clips, resume, and close with the frozen probes beside.

python -m vjepa.finetune --model_path runs/demo --dataset data/demo/index.parquet finetune.label=motion
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vjepa import command, config
from vjepa.training.stopping import exit_when_stopped

STOPPED_EARLY: Final = 75  # exit code (EX_TEMPFAIL): the same command goes on
_PURPOSE: Final = "Fine-tune an encoder on labelled clips, or go on with a run, and measure it beside frozen probes."


def main(arguments: Sequence[str]) -> int:
    parser = command.config_parser("finetune", _PURPOSE, config.FinetuneConfig)
    add = parser.add_argument
    add("--model_path", "--model-path", metavar="PATH", help="the start: whatever vjepa.probe reads")
    dataset = (
        "clip index made by data_prep.index, or several, of which rows of split train, selection and val are taken; "
    )
    dataset += "digits, cifar10, cifar100, imagenet; or a folder of images"
    add("--dataset", type=command.texts, metavar="DATA[,DATA]", help=dataset)
    add("--from_scratch", "--from-scratch", action="store_true", help="random weights in place of those of the start")
    add("--stop-at-step", type=int, metavar="N", help="save and stop after N steps; the same command goes on")
    options = parser.parse_args(arguments)
    name, overrides = command.split_settings(options)
    tree = config.read_tree(config.config_path(name) if name else None, overrides)
    exit_when_stopped(STOPPED_EARLY)
    from vjepa.training import finetuning, finetuning_start  # PyTorch, which --help must not wait for

    settings = finetuning_start.resolve(tree, options.model_path, options.dataset, options.from_scratch)
    if options.print_config:
        print(config.dump(settings), end="")
        return 0
    summary = finetuning.finetune(settings, options.stop_at_step)
    return STOPPED_EARLY if summary is None and options.stop_at_step is None else 0


if __name__ == "__main__":
    command.run(main)
