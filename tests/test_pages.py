"""The Python examples of the reference pages run, one after the other, as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from small_runs import settings

from vjepa import config
from vjepa.interop.probes import write_probes
from vjepa.jepa import build
from vjepa.models.attentive_pool import AttentiveClassifier, AttentivePooler
from vjepa.training import checkpoint
from vjepa.training.optim import make_optimizer

ROOT = Path(__file__).parents[1]
ROOMS = ["config", "health", "interop", "masking", "models", "objectives"]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out a small run as runs/demo, with a probe beside it, in the working directory."""
    run = settings(tmp_path / "runs" / "clips.parquet", "demo")
    method = build(run)
    run.run.folder.path.mkdir(parents=True)
    run.run.folder.config.write_text(config.dump(run))
    checkpoint.save(run.run.folder, method, make_optimizer(method, run.optim), checkpoint.TrainingState(1), keep=1)
    probe = AttentiveClassifier(AttentivePooler(24, heads=2), num_classes=3)
    probe.classes = ("a", "b", "c")
    write_probes(tmp_path / "runs/demo/probe_attentive_label.safetensors", [probe], {})
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize("room", ROOMS)
def test_the_examples_run_and_have_the_shapes_that_they_tell(room: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "vjepa" / room / "README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert examples and page.index("```python") < page.index("\n## ")  # a page opens with one
    names: dict[str, object] = {}
    for example in examples:
        exec(example, names)
        for name, shape in re.findall(r"^(\w+) = .*# \[(\d[\d, ]*)\]", example, re.MULTILINE):
            value = names[name]
            assert isinstance(value, torch.Tensor) and list(value.shape) == [int(size) for size in shape.split(",")]
    for name, shape in re.findall(r"^(\w+) = .*# (TokenGrid\([^)]*\))", page, re.MULTILINE):
        assert repr(names[name]) == shape


def test_the_page_of_settings_lists_the_short_names() -> None:
    page = (ROOT / "vjepa/config/README.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|$", page, re.MULTILINE))
    assert {f"  {name} = {path}" for name, path in listed.items()} == set(config.describe_aliases())


def test_the_page_of_networks_lists_the_presets() -> None:
    page = (ROOT / "vjepa/models/README.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \| x ([\d/]+) \|$", page, re.MULTILINE)
    found = {
        name: {"width": int(width), "depth": int(depth), "heads": int(heads), "mlp_ratio": float(eval(ratio))}
        for name, width, depth, heads, ratio in listed
    }
    assert found == config.PRESETS
