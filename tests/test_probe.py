"""The probe command, with a fake index, encoder and run."""

import json
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from vjepa import config, probe
from vjepa.data import clip_index
from vjepa.errors import UserError
from vjepa.probing import evidence
from vjepa.records import ClipBatch


class FakeIndex:
    def __init__(self, **columns):
        self.path, self.columns = "clips.parquet", {"group": [None] * len(columns["label"]), **columns}

    def column(self, name):
        if name not in self.columns:
            raise UserError(f"no column {name!r}")
        return self.columns[name]

    def select(self, where):
        return np.array([i for i in range(len(self.columns["label"])) if all(self.columns[name][i] in values for name, values in where.items())])


class Mean(torch.nn.Module):
    def forward(self, video):
        return video.mean((2, 3, 4))[:, None]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A run folder of step 30, and a function that sets the columns of the index."""
    (tmp_path / "checkpoints" / "step-00000030").mkdir(parents=True)
    (tmp_path / "checkpoints" / "latest").symlink_to("step-00000030")
    settings = config.Config(data=config.Data(train="x.parquet", num_frames=2, crop_px=16), optim=config.Optim(total_steps=1))
    # the training package may not be importable where only this room is tested
    training, checkpoint, device = ModuleType("vjepa.training"), ModuleType("vjepa.training.checkpoint"), ModuleType("vjepa.training.device")
    checkpoint.load_run = lambda run_dir, which="encoder": (Mean(), settings)
    device.pick = lambda settings: (torch.device("cpu"), torch.float32)
    training.checkpoint, training.device = checkpoint, device
    for module in (training, checkpoint, device):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def loader(index, rows, data, batch, workers, shuffle_frames=False):
        level = torch.tensor([[200, 20, 20] if index.column("label")[row] == "red" else [20, 20, 200] for row in rows], dtype=torch.uint8)
        yield ClipBatch(level[:, :, None, None, None].expand(-1, -1, 2, 16, 16), torch.tensor(rows))

    def use(**columns):
        index = SimpleNamespace(open=lambda path: FakeIndex(**columns))
        monkeypatch.setattr(clip_index, "ClipIndex", index)
        monkeypatch.setattr(evidence, "ClipIndex", index)

    monkeypatch.setattr(evidence, "eval_loader", loader)
    use(label=["red", "blue"] * 40, hue=["warm", "cold"] * 40, split=["train"] * 50 + ["val"] * 30)
    return SimpleNamespace(folder=tmp_path, use=use, arguments=["--model_path", str(tmp_path), "--dataset", "clips.parquet"])


@pytest.mark.fast
def test_a_result_is_written_and_told_in_one_line(run, capsys):
    assert probe.main([*run.arguments, "--eval_mode", "knn"]) == 0
    (result,) = json.loads((run.folder / "probe.json").read_text())
    assert result["accuracy"] == 1
    assert result["low"] < 1
    assert result["chance"]["accuracy"] == 0.5
    assert result["step"] == 30
    assert result["num_clips"] == {"train": 40, "selection": 10, "val": 30}
    assert set(result["chosen"]) == {"k"}
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "accuracy 1.000" in out


@pytest.mark.fast
def test_results_of_other_probes_stay_and_the_same_one_is_replaced(run):
    for words in (["--eval_mode", "knn"], ["--eval_mode", "linear_probe"], ["--eval-mode", "knn", "--label", "hue"], ["--eval_mode", "knn"]):
        probe.main([*run.arguments, *words])
    results = json.loads((run.folder / "probe.json").read_text())
    assert [(result["eval_mode"], result["label"]) for result in results] == [("linear_probe", "label"), ("knn", "hue"), ("knn", "label")]
    assert [path.name for path in run.folder.glob("*probe*")] == ["probe.json"]


@pytest.mark.fast
def test_rows_are_chosen_by_column_and_values(run):
    run.use(label=["red", "blue"] * 40, fold=[str(i // 2 % 4) for i in range(80)], split=[None] * 80)
    with pytest.raises(UserError, match=r"no rows with split=train .*--train"):
        probe.main([*run.arguments, "--eval_mode", "knn"])
    out = run.folder / "deep" / "other.json"
    probe.main([*run.arguments, "--eval_mode", "knn", "--train", "fold=0,1", "--selection", "fold=2", "--val", "fold=3", "--out", str(out)])
    assert json.loads(out.read_text())[0]["num_clips"] == {"train": 40, "selection": 20, "val": 20}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "message"),
    [(["--model_path", "/nowhere"], "/nowhere: no such run folder"), (["--label", "taste"], "no column 'taste'"), (["--val", "split"], "COLUMN=VALUE")],
)
def test_bad_input_is_one_line(run, words, message):
    with pytest.raises(UserError, match=message) as error:
        probe.main([*run.arguments, "--eval_mode", "knn", *words])
    assert "\n" not in str(error.value)


@pytest.mark.fast
def test_a_foreign_file_is_not_overwritten(run):
    (run.folder / "probe.json").write_text("my notes")
    with pytest.raises(UserError, match="--out"):
        probe.main([*run.arguments, "--eval_mode", "knn"])
    assert (run.folder / "probe.json").read_text() == "my notes"


def test_help_loads_no_tensor_library():
    code = "import sys; from vjepa import probe, report\nfor main in (probe.main, report.main):\n  try: main(['--help'])\n  except SystemExit: pass\n"
    start = time.perf_counter()
    code += "print(*{'torch', 'sklearn', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
    assert "--eval-mode" in done.stdout
    assert time.perf_counter() - start < 10
