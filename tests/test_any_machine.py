"""On machines that lack something: a wheel of decord, a GPU of CUDA."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from packaging.requirements import Requirement
from steps import OBJECTIVES, batch_of, built, step_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vjepa import config, device
from vjepa.data.clip_index import ClipIndex
from vjepa.errors import UserError
from vjepa.models import positions
from vjepa.models.attentive_pool import AttentiveClassifier, AttentivePooler
from vjepa.probing import sweep
from vjepa.probing.attentive import make_heads
from vjepa.records import sent

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


MACHINES = {
    "Linux": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "Grace, Graviton, Jetson": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "Mac": {"sys_platform": "darwin", "platform_machine": "arm64"},
    "Windows": {"sys_platform": "win32", "platform_machine": "AMD64"},
    "neither has a wheel": {"sys_platform": "linux", "platform_machine": "ppc64le"},
}


@pytest.mark.fast
def test_no_machine_gets_two_packages_of_one_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"] if line.startswith("decord")]
    got = {
        machine: [one.name for one in wanted if one.marker is None or one.marker.evaluate(facts)]
        for machine, facts in MACHINES.items()
    }
    assert list(got.values()) == [["decord"], ["decord2"], ["decord2"], ["decord"], []]


@pytest.mark.fast
def test_ci_runs_one_command_on_every_kind_of_machine() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["run"]
    machines = {row["os"] for row in job["strategy"]["matrix"]["include"]}
    assert {"ubuntu-latest", "ubuntu-24.04-arm", "macos-latest"} <= machines
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]


@cache
def kernels() -> dict[str, dict]:
    """What PyTorch says of each of its operators: for which devices it has a kernel."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = yaml.load(table.read_text(), yaml.CSafeLoader)
    names = (entry["func"].split("(")[0] for entry in entries)
    return {name if "." in name else f"{name}.default": entry for name, entry in zip(names, entries, strict=True)}


def runs_on_mps(operator: str) -> bool:
    entry = kernels()[operator]
    devices = ", ".join(entry.get("dispatch") or ["CompositeImplicitAutograd"]).split(", ")
    delegate = entry.get("structured_delegate")
    if delegate:
        devices += ", ".join(kernels()[delegate]["dispatch"]).split(", ")
    return any(name == "MPS" or name.startswith("Composite") for name in devices)


class LikeMps(TorchDispatchMode):
    """Refuse on the CPU what MPS does not have: fp64, complex numbers, operators without a kernel."""

    # in its place MPS has scaled_dot_product_attention of its own
    ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        if func.namespace == "aten":
            assert runs_on_mps(name) or name.startswith(self.ATTENTION), f"MPS has no {name}"
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                assert tensor.dtype is not torch.float64 and not tensor.is_complex(), (name, tensor.dtype)
        return found


@pytest.fixture
def like_mps(monkeypatch):
    """Have the CPU go the way of MPS where the code tells them apart."""
    monkeypatch.setattr(positions, "_WITHOUT_COMPLEX", {"cpu"})
    return LikeMps()


@pytest.mark.fast
def test_the_stand_in_of_mps_refuses_what_mps_lacks() -> None:
    pairs = torch.ones(2, 2)
    for use in (pairs.double, lambda: torch.view_as_complex(pairs), lambda: torch.linalg.eigvals(pairs)):
        with pytest.raises(AssertionError), LikeMps():
            use()
    with LikeMps():
        (pairs @ pairs).softmax(-1).sum()


@pytest.mark.parametrize("rope", ["rotation", "vjepa2"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_uses_nothing_that_mps_lacks_and_gives_the_same_loss(objective: str, rope: str, like_mps) -> None:
    settings = config.validate(
        {
            "data": {"train": "x.parquet", "num_frames": 4, "crop_px": 16},
            "masks": [{"kind": "multiblock", "num_blocks": 2}, {"kind": "multiblock", "num_blocks": 1}],
            "model": {
                "patch_px": 4,
                "rope": rope,
                "encoder": {"width": 48, "depth": 2, "heads": 2},
                "predictor": {"width": 24, "depth": 1, "heads": 2},
            },
            "objective": OBJECTIVES[objective],
            "optim": {"total_steps": 8, "clip_grad": 1.0},
        },
        "test",
    )
    clips = torch.randint(256, (4, 3, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def losses(mode) -> list[float]:
        step = step_of(settings, built(settings))
        found = [step(0, batch_of(clips))["loss"].item()]  # tables of positions are made on the host, in fp64, and kept
        with mode:
            found += [step(number, batch_of(clips), by_part=True)["loss"].item() for number in (1, 2)]
            step.observe(clips)
        return found

    assert losses(like_mps) == pytest.approx(losses(torch.enable_grad()), rel=1e-6)


def test_attentive_heads_use_nothing_that_mps_lacks(like_mps) -> None:
    tokens, classes = torch.randn(6, 8, 16), torch.arange(6) % 2
    for depth in (1, 2):
        start = AttentiveClassifier(AttentivePooler(16, 2, depth), 2)
        heads = make_heads(start, 2, torch.device("cpu"), torch.float32)
        clips = sweep.Clips(lambda epoch, places: tokens[places], 8, classes)
        with like_mps:
            sweep.run_round(heads, [{"lr": 1e-3, "weight_decay": 0.1}] * 2, sweep.Grid(), clips, range(3))


class Host:
    """A tensor of the host that remembers how it was copied."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def pin_memory(self) -> Host:
        self.calls.append(("pin",))
        return self

    def to(self, where: torch.device, non_blocking: bool = False) -> None:
        self.calls.append((where.type, non_blocking))


@pytest.mark.fast
def test_only_cuda_copies_while_the_host_goes_on() -> None:
    """MPS would read memory that is freed by then."""
    for where, calls in {"mps": [("mps", False)], "cpu": [("cpu", False)], "cuda": [("pin",), ("cuda", True)]}.items():
        tensor = Host()
        sent(tensor, torch.device(where))
        assert tensor.calls == calls
    lines = {line.strip() for path in ROOT.glob("vjepa/**/*.py") for line in path.read_text().splitlines()}
    assert {line for line in lines if "non_blocking" in line} == {
        "return tensor.pin_memory().to(device, non_blocking=True)",
        "copies[name] = empty.copy_(values, non_blocking=values.is_cuda)",
        "flags = torch.empty(len(flags), pin_memory=True).copy_(flags, non_blocking=True)",  # on a GPU of CUDA
    }
    assert not any(re.search(r"\.double\(\)\.cpu\(\)", path.read_text()) for path in ROOT.glob("vjepa/**/*.py"))


@pytest.mark.fast
def test_mps_is_chosen_where_it_is_in_fp32_and_refused_in_one_line_elsewhere(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device.pick(config.Run()) == (torch.device("mps"), torch.float32)
    assert device.pick(config.Run(precision="bf16")) == (torch.device("mps"), torch.bfloat16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^run\.device: no mps device on this machine; use run\.device=auto$"):
        device.pick(config.Run(device="mps"))
