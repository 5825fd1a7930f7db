"""`python -m vjepa.train [CONFIG.yaml] [section.key=value ...]`: pre-train, or learn a world model; resume; measure.

On several GPUs or machines: `torchrun --nproc-per-node N -m vjepa.train ...`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vjepa import command, config
from vjepa.training.stopping import exit_when_stopped

STOPPED_EARLY: Final = 75  # exit code (EX_TEMPFAIL): the same command goes on
ENDED_BY_MONITOR: Final = 3  # exit code: monitor.stop_on names the verdict


def main(arguments: Sequence[str]) -> int:
    purpose = "Pre-train a video encoder, or learn a world model on one; go on with a run; measure what it learned."
    parser = command.config_parser("train", purpose)
    of_worlds = [line for line in config.describe(config.WorldConfig) if line.strip().startswith(("world.", "plan."))]
    parser.epilog = "\n".join(
        [f"{parser.epilog}", "settings of a world model, where there is a section world:", *of_worlds]
    )
    early = "save and stop after N steps; the same command without it goes on"
    parser.add_argument("--stop-at-step", type=int, metavar="N", help=early)
    options = parser.parse_args(arguments)
    settings = command.read_training(options)
    if options.print_config:
        print(config.dump(settings), end="")
        return 0
    exit_when_stopped(STOPPED_EARLY)
    from vjepa.training import pretraining, world  # PyTorch, which --help must not wait for

    if isinstance(settings, config.WorldConfig):
        summary = world.train_world(settings, options.stop_at_step)
    else:
        summary = pretraining.train(settings, options.stop_at_step)
    if summary is None:
        return 0 if options.stop_at_step is not None else STOPPED_EARLY
    return ENDED_BY_MONITOR if summary.get("ended_early") else 0


if __name__ == "__main__":
    command.run(main)
