"""`configs/slurm.sbatch` with stand-ins for Slurm's commands: it asks the run to stop, waits, and requeues once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "configs" / "slurm.sbatch"
SCONTROL = 'if [ "$1" = show ]; then printf "node1\\nnode2\\n"; else echo "$@" >>requeued; fi'
# a run of vjepa.train: goes on until it is asked to stop or has done its work; torchrun ends with 1 for either
TORCHRUN = """
echo "$@" >>started; mkdir -p runs/mine
for _ in $(seq 200); do
  if [ -e runs/mine/stop ]; then echo saving; sleep .5; echo saved >runs/mine/checkpoint; exit 1; fi
  if [ -e finish ]; then echo {} >runs/mine/summary.json; sleep .5; exit 0; fi
  if [ -e fail ]; then exit 1; fi
  sleep .05
done
"""


@pytest.fixture
def job(tmp_path: Path):
    """The script as Slurm starts it, in a folder of its own."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", 'shift; exec "$@"'), ("scontrol", SCONTROL), ("torchrun", TORCHRUN)):
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    slurm = {"JOB_ID": "17", "JOB_NODELIST": "node[1-2]", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "8"}
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **{f"SLURM_{k}": v for k, v in slurm.items()}}
    arguments = ["bash", str(SCRIPT), "runs/mine", "small", "data.train=a b.parquet"]
    started = subprocess.Popen(arguments, cwd=tmp_path, env=env)
    deadline = time.monotonic() + 60
    while not (tmp_path / "runs/mine").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    yield started
    started.kill()


def test_at_the_limit_the_run_saves_and_the_job_is_requeued_once(job, tmp_path) -> None:
    job.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)  # again, while it saves
    assert job.wait(60) == 1
    assert (tmp_path / "runs/mine/checkpoint").read_text() == "saved\n"
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"


def test_a_run_that_finished_is_not_requeued_even_if_it_was_asked(job, tmp_path) -> None:
    (tmp_path / "finish").touch()
    while not (tmp_path / "runs/mine/summary.json").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0
    assert not (tmp_path / "requeued").exists()


def test_a_run_that_failed_is_not_requeued(job, tmp_path) -> None:
    (tmp_path / "fail").touch()
    assert job.wait(60) == 1
    assert not (tmp_path / "requeued").exists()


def test_torchrun_is_given_all_nodes_and_the_words_of_the_command(job, tmp_path) -> None:
    (tmp_path / "finish").touch()
    job.wait(60)
    told = (tmp_path / "started").read_text()
    assert "--nnodes=2 --nproc-per-node=8 " in told
    assert "--rdzv-endpoint=node1:29500 " in told
    assert told.endswith("-m vjepa.train small data.train=a b.parquet run.dir=runs/mine\n")
