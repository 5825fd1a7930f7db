"""Kill 50 ranks of a run at random moments, half of them inside a save: its weights are those of an undisturbed run.

python tests/benchmarks/kills.py --out FOLDER [--kills 50] [--ranks 2] [--steps 600] [--seed 0]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from killing import killed_run

from vjepa.files import sha256
from vjepa.run_folder import RunFolder

NAMES = ("encoder", "target_encoder", "predictor", "optimizer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the ranks")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    words = ["digits", f"optim.total_steps={options.steps}", "run.precision=fp32", "run.save_every_steps=2"]
    words += ["eval.every_steps=null", "monitor.every_steps=null", "data.workers=1"]
    flags = ["--standalone", f"--nproc-per-node={options.ranks}"]
    command = [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "vjepa.train"]
    subprocess.run([*command, *words, "run.dir=runs/undisturbed"], cwd=options.out, check=True)
    run = RunFolder(options.out / "runs" / "killed")
    done = killed_run(options.out, [*words, "run.dir=runs/killed"], run, options.ranks, options.kills, options.seed)
    expected, found = (
        {name: sha256(folder.require().network(name)) for name in NAMES}
        for folder in (RunFolder(options.out / "runs" / "undisturbed"), run)
    )
    print(f"{done} ranks killed, every other one inside a save")
    for name, hashed in expected.items():
        print(f"{name}: {'equal' if hashed == found[name] else 'OTHER'}  {hashed}")
    if expected != found:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
