from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import published
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import vjepa
from vjepa import config
from vjepa.errors import UserError
from vjepa.interop import load, own
from vjepa.interop.meta import Hints
from vjepa.jepa import Jepa
from vjepa.jepa import build as build_networks
from vjepa.records import TokenGrid
from vjepa.run_folder import RunFolder
from vjepa.training import checkpoint, optim

IDS = torch.tensor([[0, 3, 5]]), torch.tensor([[1, 2]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_run(folder: Path, objective: dict | None = None, **model: object) -> Jepa:
    """A run of two mask sets with checkpoints of step 1 and 2, and its networks, which no two share weights."""
    shapes = {"encoder": {"width": 48, "depth": 4, "heads": 4}, "predictor": {"width": 24, "depth": 2, "heads": 2}}
    dense = {"context_weight": 0.5} if model.get("level_norms") else {}
    tree = {
        "data": {"train": "clips.parquet", "num_frames": 4, "crop_px": 8},
        "model": {"patch_px": 4, **shapes, **model},
        "masks": [{"kind": "tube"}, {"kind": "random"}],
        "objective": objective or dense,
        "optim": {"total_steps": 2},
    }
    settings = config.validate(tree, "test")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.dump(settings))
    networks = build_networks(settings)
    optimizer = optim.make_optimizer(networks, settings.optim)
    for step in (1, 2):
        for parameter in networks.parameters():
            nn.init.normal_(parameter, std=0.1)
        sum(parameter.sum() for parameter in networks.parameters() if parameter.requires_grad).backward()
        optimizer.step()
        checkpoint.save(RunFolder(folder), networks, optimizer, checkpoint.TrainingState(step), keep=2)
    return networks.eval()


@pytest.mark.parametrize("place", ["run", "run/checkpoints/latest", "run/checkpoints/step-00000002"])
def test_a_run_and_its_checkpoints_load(place: str, tmp_path: Path) -> None:
    networks, path = make_run(tmp_path / "run"), tmp_path / place
    video, grid = torch.randn(1, 3, 4, 8, 8), TokenGrid(2, 2, 2)
    assert load.recognise(path) == "vjepa"
    assert torch.equal(vjepa.load_encoder(path)(video, IDS[0]), networks.encoder(video, IDS[0]))
    assert torch.equal(vjepa.load_encoder(path, which="target_encoder")(video), networks.target_encoder(video))
    context, predictor = networks.encoder(video, IDS[0]), vjepa.load_predictor(path, "vjepa")
    for index in range(2):
        assert torch.equal(predictor(context, *IDS, grid, index), networks.predictor(context, *IDS, grid, index))
    assert not any(
        parameter.requires_grad for module in (vjepa.load_encoder(path), predictor) for parameter in module.parameters()
    )


@pytest.mark.parametrize(
    "objective",
    [
        {"targets": "pixels"},
        {"targets": "none", "prediction": 0, "view_invariance": 1, "vicreg_variance": 1, "projector_widths": [8]},
    ],
)
def test_a_run_without_a_target_encoder_is_its_encoder(objective: dict, tmp_path: Path) -> None:
    networks, path = make_run(tmp_path / "run", objective), tmp_path / "run"
    video = torch.randn(1, 3, 4, 8, 8)
    names = {file.stem for file in (path / "checkpoints/latest").glob("*.safetensors")}
    assert names == {"optimizer", "encoder", *(["predictor"] if "prediction" not in objective else ["projector"])}
    for which in (None, "encoder"):
        assert torch.equal(vjepa.load_encoder(path, which=which)(video), networks.encoder(video))
    with pytest.raises(
        UserError,
        match=rf"has no target_encoder, for the run has objective\.targets: {objective['targets']}; take encoder",
    ):
        vjepa.load_encoder(path, which="target_encoder")
    own.write(load.read(path), tmp_path / "one")
    assert torch.equal(vjepa.load_encoder(tmp_path / "one")(video), networks.encoder(video))
    if "prediction" in objective:
        with pytest.raises(UserError, match="has no predictor"):
            vjepa.load_predictor(path)
    else:
        assert vjepa.load_predictor(path)(networks.encoder(video, IDS[0]), *IDS, TokenGrid(2, 2, 2)).shape == (1, 2, 96)


def test_a_file_of_a_checkpoint_is_that_network_alone(tmp_path: Path) -> None:
    networks = make_run(tmp_path / "run")
    folder, video = tmp_path / "run/checkpoints/latest", torch.randn(1, 3, 4, 8, 8)
    assert torch.equal(vjepa.load_encoder(folder / "encoder.safetensors")(video), networks.encoder(video))
    assert torch.equal(
        vjepa.load_predictor(folder / "predictor.safetensors").mask_tokens[1], networks.predictor.mask_tokens[1]
    )
    with pytest.raises(UserError, match=r"predictor\.safetensors: has no encoder$"):
        vjepa.load_encoder(folder / "predictor.safetensors")
    with pytest.raises(UserError, match=r"target_encoder\.safetensors: has no predictor$"):
        vjepa.load_predictor(folder / "target_encoder.safetensors")


@pytest.mark.parametrize("place", ["run", "run/checkpoints/latest", "run/checkpoints/latest/encoder.safetensors"])
def test_a_checkpoint_of_a_newer_format_is_named_before_what_it_changed(place: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    for name in ("encoder", "target_encoder", "predictor"):
        save_file({"renamed": torch.ones(1)}, tmp_path / f"run/checkpoints/latest/{name}.safetensors")
    (tmp_path / "run/checkpoints/latest/state.json").write_text('{"format_version": 99, "steps": 2}')
    with (tmp_path / "run/config.yaml").open("a") as file:
        file.write("new_section: 1\n")
    with pytest.raises(
        UserError, match=r"(latest|step-00000002): checkpoint format 99, this version of vjepa reads up to \d; "
    ) as one:
        vjepa.load_encoder(tmp_path / place)
    assert "\n" not in str(one.value)


def test_a_damaged_state_is_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    for text in ("", "[]", "{}"):
        (tmp_path / "run/checkpoints/latest/state.json").write_text(text)
        with pytest.raises(UserError, match=r"state\.json: is no training state"):
            vjepa.load_encoder(tmp_path / "run")


@pytest.mark.parametrize("place", ["run", "run/checkpoints/latest", "run/checkpoints/latest/encoder.safetensors"])
def test_weights_that_are_not_what_was_written_are_named(place: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    file = tmp_path / "run/checkpoints/step-00000002/encoder.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 64
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"encoder\.safetensors: does not hold what was written; copy it anew"):
        vjepa.load_encoder(tmp_path / place)
    assert vjepa.load_encoder(tmp_path / "run", which="target_encoder")


def test_other_kinds_of_networks_load(tmp_path: Path) -> None:
    networks = make_run(tmp_path / "mlp", predictor={"kind": "mlp", "width": 24, "depth": 2, "heads": 2})
    context = torch.randn(1, 3, 48)
    expected = networks.predictor(context, *IDS, TokenGrid(2, 2, 2), 1)
    assert torch.equal(vjepa.load_predictor(tmp_path / "mlp")(context, *IDS, TokenGrid(2, 2, 2), 1), expected)
    networks = make_run(tmp_path / "dense", levels=4, level_norms=True)
    context = torch.randn(1, 3, 4 * 48)
    expected = networks.predictor.dense(context, *IDS, TokenGrid(2, 2, 2))[1]
    assert torch.equal(vjepa.load_predictor(tmp_path / "dense").dense(context, *IDS, TokenGrid(2, 2, 2))[1], expected)


def test_a_single_file_gives_back_what_was_written(tmp_path: Path) -> None:
    make_run(tmp_path / "run", levels=4, level_norms=True, input="changes")
    sources = {
        "run": tmp_path / "run",
        "vjepa1": published.save(tmp_path / "a.bin", "vjepa1", published.networks("vjepa1")),
    }
    for name, source in sources.items():
        weights, path = load.read(source), tmp_path / "new" / name
        own.write(weights, path)
        again = load.read(path)
        assert (again.model, again.dense, again.which) == (weights.model, weights.dense, weights.which)
        for part in ("encoder", "predictor", "tables"):
            stored, expected = getattr(again, part), getattr(weights, part)
            assert stored.keys() == expected.keys() and all(torch.equal(stored[key], expected[key]) for key in stored)
        video = torch.randn(1, 3, 16, 16, 16)
        assert torch.equal(vjepa.load_encoder(path)(video), weights.build_encoder()(video))
        vjepa.load_predictor(path)
    assert sorted(entry.name for entry in (tmp_path / "new").iterdir()) == ["run", "vjepa1"]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (
        metadata["format"] == "vjepa"
        and metadata["dense"] == "false"
        and json.loads(metadata["model"])["positions"] == "sincos"
    )


def test_what_does_not_fit_the_settings_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    weights, path = load.read(tmp_path / "run"), tmp_path / "a"
    tensors = {f"encoder.{key}": tensor for key, tensor in weights.encoder.items()}
    metadata = {"format": "vjepa", "model": weights.model.model_dump_json(), "dense": "false"}
    key = "encoder.blocks.1.attn.qkv.bias"
    cases = {
        "blocks.1.attn.qkv.bias is missing": ({name: one for name, one in tensors.items() if name != key}, metadata),
        "extra is not part of this network": (tensors | {"encoder.extra": torch.ones(1)}, metadata),
        r"blocks.1.attn.qkv.bias has shape \[2\], this network needs \[144\]": (
            tensors | {key: torch.ones(2)},
            metadata,
        ),
        "head.weight is part of no network; keys start with encoder": (
            tensors | {"head.weight": torch.ones(1)},
            metadata,
        ),
        "its metadata hold no settings": (tensors, {"format": "vjepa"}),
        "a: patch_px: ": (tensors, metadata | {"model": '{"patch_px": "big"}'}),
        "a: encoder.dept: unknown key; did you mean 'depth'": (
            tensors,
            metadata | {"model": '{"encoder": {"dept": 3}}'},
        ),
        "a: encoder.heads: 3 heads do not divide a width of 16": (
            tensors,
            metadata | {"model": '{"encoder": {"width": 16}}'},
        ),
        "a: Invalid JSON": (tensors, metadata | {"model": "{"}),
    }
    for problem, (stored, said) in cases.items():
        save_file(stored, path, said)
        with pytest.raises(UserError, match=problem) as raised:
            vjepa.load_encoder(path)
        assert "\n" not in str(raised.value)


def test_paths_that_hold_no_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new/config.yaml").write_text((tmp_path / "run/config.yaml").read_text())
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    cases = {
        "missing": "missing: no such file or folder",
        "empty": "empty: a folder of nothing, neither a run, checkpoint or export of vjepa nor a folder of "
        "transformers",
        "new": "new: no checkpoint yet; train it first with python -m vjepa.train --config ",
        "other.safetensors": "a safetensors file, neither a run, checkpoint or export of vjepa nor",
    }
    for name, problem in cases.items():
        with pytest.raises(UserError, match=problem) as raised:
            vjepa.load_encoder(tmp_path / name)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"other\.safetensors: no config\.yaml lies above it"):
        vjepa.load_encoder(tmp_path / "other.safetensors", "vjepa")
    with pytest.raises(UserError, match=r"not a run folder, it has no config\.yaml"):
        vjepa.load_encoder(tmp_path / "empty", "vjepa")
    with pytest.raises(UserError, match="a folder, while format 'vjepa2' is a file"):
        vjepa.load_encoder(tmp_path / "run", "vjepa2")
    with pytest.raises(UserError, match=r"heads=, predictor_heads= and position_grid= are for training files"):
        vjepa.load_encoder(tmp_path / "run", heads=4)
    assert (
        load.read(tmp_path / "run", hints=Hints("encoder")).encoder.keys() == load.read(tmp_path / "run").encoder.keys()
    )


def test_a_folder_of_two_formats_is_refused_until_one_is_named(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run/config.json").write_text('{"model_type": "vjepa2"}')
    with pytest.raises(UserError, match=r"could be a run, .* or a folder of transformers.*; name it with format="):
        vjepa.load_encoder(tmp_path / "run")
    vjepa.load_encoder(tmp_path / "run", "vjepa")


def test_importing_vjepa_loads_nothing_heavy() -> None:
    code = (
        "import sys, vjepa; vjepa.load_encoder; print([name for name in ('torch', 'numpy', 'pydantic', "
        "'safetensors') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "[]"
