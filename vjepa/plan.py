"""Plan in a trained world model: in two rooms, in an environment of Gymnasium, or on clips of data.val.

python -m vjepa.plan runs/rooms plan.samples=128
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vjepa import command, config
from vjepa.errors import UserError

_PURPOSE = "Plan in a world model that vjepa.train made, beside random actions, shuffled energies and an oracle."


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vjepa.plan",
        description=_PURPOSE,
        epilog="\n".join(["settings (plan.key = default  meaning):", *_settings()]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="run folder of a world model")
    parser.add_argument("settings", nargs="*", metavar="plan.key=value", help="in place of those of the run")
    options = parser.parse_args(arguments)
    path = Path(options.run)
    other = [word for word in options.settings if not word.startswith(("plan.", "run.seed=", "run.device="))]
    if other:
        raise UserError(f"{other[0]}: only plan.key=value, run.seed and run.device may change here")
    from vjepa.planning import running  # PyTorch, which --help must not wait for

    running.plan_in(path, options.settings)
    return 0


def _settings() -> list[str]:
    return [line for line in config.describe(config.WorldConfig) if line.strip().startswith("plan.")]


if __name__ == "__main__":
    command.run(main)
