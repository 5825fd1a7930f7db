"""`run.init_from`: a run starts from published files, folders of Hugging Face, exports and other runs."""

from __future__ import annotations

import re
from pathlib import Path

import published
import pytest
import torch
import yaml
from published import GRID, IMAGE_GRID, NARROW, WIDTH
from small_runs import losses, settings, weights

from vjepa import load_encoder
from vjepa.errors import UserError
from vjepa.interop import export, load, own
from vjepa.interop.meta import Hints
from vjepa.jepa import Jepa
from vjepa.models.positions import SinCos
from vjepa.training.pretraining import prepare, train


def published_file(folder: Path, format: str, *names: str) -> Path:
    parts = published.networks(format)
    for network, key, width in (("target_encoder", "pos_embed", WIDTH), ("predictor", "predictor_pos_embed", NARROW)):
        if key in parts[network]:  # computed, as published
            kind, grid = ("sincos", GRID) if format == "vjepa1" else ("sincos_2d", IMAGE_GRID)
            parts[network][key] = SinCos(kind, width, grid).table[None]
    kept = names or tuple(parts)
    return published.save(folder / f"{format}.pt", format, {name: parts[name] for name in kept})


def asked_for(problem: pytest.ExceptionInfo[UserError]) -> list[str]:
    """The settings that the line lists, as a shell would read them."""
    message = str(problem.value)
    assert "\n" not in message
    return re.findall(r"model\.[\w.]+=\S+", message.partition("; give ")[2])


def started(clips: Path, path: Path, **tree: dict | list) -> Jepa:
    run = {"init_from": str(path), **tree.pop("run", {})}
    return prepare(settings(clips, "run", run=run, **tree), progress=False)[1]


def fitting(clips: Path, path: Path, **tree: dict | list) -> Jepa:
    """Start with the settings that a first try asked for; what it refuses has written nothing."""
    with pytest.raises(
        UserError, match=r"run\.init_from: .* has other networks than this run; give model\."
    ) as problem:
        started(clips, path, **tree)
    assert not (clips.parent / "run").exists()
    model = {"patch_px": 8, "encoder": {"width": 24, "depth": 2, "heads": 2}}
    model |= {"predictor": {"width": 12, "depth": 1, "heads": 2}}
    for setting in asked_for(problem):
        *sections, name = setting.partition("=")[0].split(".")[1:]
        place = model
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = yaml.safe_load(setting.partition("=")[2])
    return started(clips, path, model=model, **tree)


@pytest.mark.parametrize("format", published.FORMATS)
def test_every_published_format_starts_a_run_with_the_settings_that_its_line_asks_for(clips, format, tmp_path) -> None:
    """Clips are of another length and size than the file's, and features are those that the file gives."""
    path = published_file(tmp_path, format)
    method = fitting(clips, path)
    video = torch.randn(2, 3, 4, 24, 40)
    expected = load_encoder(path)(video)
    for encoder in (method.encoder, method.target_encoder):
        assert encoder is not None
        torch.testing.assert_close(encoder(video), expected, rtol=1e-5, atol=1e-5)
    kept = load.read(path).predictor
    for name, tensor in method.predictor.state_dict().items():
        if name in kept:
            assert torch.equal(tensor, kept[name]), name
    assert all(parameter.requires_grad for parameter in method.encoder.parameters())


def test_what_a_file_lacks_starts_anew_and_is_named(clips, tmp_path, capsys) -> None:
    path = published_file(tmp_path, "vjepa2", "target_encoder")
    masks = [{"kind": "tube", "ratio": 0.5}] * 2
    fitting(clips, path, masks=masks, objective={"projector_widths": [16]})
    said = capsys.readouterr().err
    assert f"run.init_from: {path}: its target_encoder starts encoder, target_encoder; starts anew:" in said
    assert {"predictor", "projector"} == set(said.partition("starts anew: ")[2].strip().split(", "))


def test_mask_tokens_are_as_many_as_mask_sets(clips, tmp_path, capsys) -> None:
    """V-JEPA 2 has 10: those of the first sets are taken. A file of fewer leaves the others anew."""
    path = published_file(tmp_path, "vjepa2")
    method = fitting(clips, path, masks=[{"kind": "tube", "ratio": 0.5}] * 2)
    tokens = [name for name in method.predictor.state_dict() if name.startswith("mask_tokens")]
    assert tokens == ["mask_tokens.0", "mask_tokens.1"]
    assert "left out: mask_tokens.2, mask_tokens.3, " in capsys.readouterr().err
    one = published_file(tmp_path, "ijepa")
    method = prepare_again(clips, one, [{"kind": "tube", "ratio": 0.5}] * 2)
    assert torch.equal(method.predictor.state_dict()["mask_tokens.0"], load.read(one).predictor["mask_tokens.0"])
    assert "starts anew: predictor.mask_tokens.1" in capsys.readouterr().err


def prepare_again(clips: Path, path: Path, masks: list) -> Jepa:
    (clips.parent / "again").mkdir()
    moved = clips.rename(clips.parent / "again" / clips.name)
    return fitting(moved, path, masks=masks)


def test_folders_of_hugging_face_and_exports_start_a_run_like_the_file_they_are_of(clips, tmp_path) -> None:
    path = published_file(tmp_path, "vjepa2")
    video = torch.randn(1, 3, 4, 16, 16)
    expected = load_encoder(path)(video)
    export.export_file(str(path), "huggingface", tmp_path / "hf", None, Hints(), 16, [16])
    export.export_file(str(path), "safetensors", tmp_path / "one.safetensors", None, Hints(), None, None)
    for number, name in enumerate(["hf", "one.safetensors"]):
        (clips.parent / str(number)).mkdir()
        clips = clips.rename(clips.parent / str(number) / clips.name)
        method = fitting(clips, tmp_path / name)
        torch.testing.assert_close(method.encoder(video), expected, rtol=1e-5, atol=1e-5)


def test_a_table_of_positions_that_no_run_computes_is_refused(clips, tmp_path) -> None:
    path = published.save(tmp_path / "x.pt", "vjepa1", published.networks("vjepa1"))
    with pytest.raises(UserError, match=r"table of positions .* brings for its encoder is no sin-cos one"):
        fitting(clips, path)


def test_a_run_of_other_networks_is_refused_also_where_all_shapes_fit(clips) -> None:
    train(settings(clips, "first"), stop_at_step=1, progress=False)
    with pytest.raises(UserError, match=r"first has other networks than this run; give model\.rope=rotation$"):
        model = {"rope": "vjepa2", "patch_px": 8, "encoder": {"width": 24, "depth": 2, "heads": 2}}
        started(clips, clips.parent / "first", model=model | {"predictor": {"width": 12, "depth": 1, "heads": 2}})


def test_a_run_without_a_predictor_starts_both_encoders(clips, capsys) -> None:
    alone = settings(
        clips, "alone", objective={"targets": "none", "prediction": 0, "view_invariance": 1, "vicreg_variance": 1}
    )
    train(alone, stop_at_step=1, progress=False)
    method = started(clips, clips.parent / "alone")
    kept = own.read(clips.parent / "alone").encoder
    for network in (method.encoder, method.target_encoder):
        assert network is not None
        assert all(torch.equal(tensor, kept[name]) for name, tensor in network.state_dict().items())
    assert "starts anew: predictor" in capsys.readouterr().err


def test_published_weights_learn_on_and_are_published_again(clips, tmp_path) -> None:
    path = published_file(tmp_path, "vjepa2")
    method = fitting(clips, path)
    run = method.settings.model_copy(
        update={"optim": method.settings.optim.model_copy(update={"total_steps": 50, "lr": 1e-3})}
    )
    run = run.model_copy(update={"run": run.run.model_copy(update={"dir": str(tmp_path / "on")})})
    train(run, progress=False)
    curve = losses(run.run.dir)
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    assert any(not torch.equal(weights(run.run.dir)["encoder.safetensors"][name], tensor)
               for name, tensor in load.read(path).encoder.items())  # fmt: skip
    export.export_file(str(run.run.dir), "huggingface", tmp_path / "hf", None, Hints(), 4, [16])
    video = torch.randn(1, 3, 4, 16, 16)
    torch.testing.assert_close(load_encoder(tmp_path / "hf")(video), load_encoder(str(run.run.dir))(video))
