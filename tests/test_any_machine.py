"""On machines that lack something: a wheel of decord, the features of a CUDA GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vjepa.data.clip_index import ClipIndex

ROOT = Path(__file__).parents[1]
SMALL = (
    *("data.num_frames=4", "data.clip_fps=4", "data.crop_px=16", "data.global_batch=4", "data.workers=1"),
    *("model.patch_px=8", "model.encoder.width=24", "model.encoder.depth=2", "model.encoder.heads=2"),
    *("model.predictor.width=12", "model.predictor.depth=1", "model.predictor.heads=2", "optim.total_steps=6"),
    *("run.device=cpu", "run.precision=fp32", "run.save_every_steps=3"),
)


@pytest.fixture
def without(tmp_path):
    """without("decord")("vjepa.train", ...) runs a command where that module cannot be imported, nor by its children;
    returns what it printed.
    """

    def make(module):
        folder = tmp_path / f"without {module}"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}

        def run(*command, code=0):
            answer = subprocess.run(
                [sys.executable, "-m", *map(str, command)],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert answer.returncode == code, answer.stderr
            return answer.stdout + answer.stderr

        return run

    return make


def test_without_decord_a_folder_is_indexed_trained_on_and_probed(clips, tmp_path, without):
    run, made, folder = without("decord"), tmp_path / "made.parquet", tmp_path / "run"
    run("data_prep.index", tmp_path / "clips", "--labels", tmp_path / "labels.csv", "--out", made, "--workers", 1)
    assert set(ClipIndex.open(made).column("decoder")) <= {"torchcodec", "pyav_seek"}
    # clips: an index of the same clips, made where decord is installed
    train = f"data.train={clips}", "data.train.where.split=train", f"run.dir={folder}"
    run("vjepa.train", "small", *SMALL, *train, "data.labelled=null", "data.selection=null", "data.val=null")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["num_replaced"] for row in rows if row["step"] == 6] == [0]
    said = run("vjepa.probe", "--model_path", folder, "--dataset", made, "--eval_mode", "knn")
    assert "encoder, step 6" in said and "chance" in said


@pytest.mark.fast
def test_without_any_decoder_a_command_says_so_in_one_line(make_video, tmp_path, without):
    make_video("clips/a.mp4", 2)
    said = without("av")("data_prep.index", tmp_path / "clips", "--out", tmp_path / "x.parquet", code=2)
    assert said.startswith("error: no decoder: PyAV") and said.count("\n") == 1
