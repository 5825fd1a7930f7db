"""What every backbone owes: hidden pixels have no influence, training resumes bit for bit, and files give the same features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from data_prep.index import build_index
from vjepa import config, export, load_encoder
from vjepa.errors import UserError
from vjepa.interop import own
from vjepa.jepa import Jepa, build
from vjepa.masking.draw import plan
from vjepa.models.encoder import patchify
from vjepa.probing import recipes
from vjepa.train import train
from vjepa.training import ema, optim
from vjepa.training.step import TrainingStep

ENERGY = {"backbone": "energy", "positions": "sincos", "patch_px": 8, "encoder": {"width": 24, "depth": 3, "heads": 2}}
MODELS: dict[str, dict] = {
    "vit": {"patch_px": 8, "encoder": {"width": 24, "depth": 2, "heads": 2}},
    "energy": ENERGY,
    "resnet": {"backbone": "test_resnet", "patch_px": 8},  # with BatchNorm
    "convnext": {"backbone": "test_convnext", "patch_px": 8},
    "timm_vit": {"backbone": "test_vit", "patch_px": 16},
    "timm_vit_registers": {"backbone": "test_vit3", "patch_px": 16},
}
every_backbone = pytest.mark.parametrize("name", MODELS)


def settings(name: str, num_frames: int = 4, **tree: dict) -> config.Config:
    model = {**MODELS[name], "predictor": {"width": 24, "depth": 1, "heads": 2}}
    base = {
        "run": {"device": "cpu", "precision": "fp32", "log_every_steps": 1},
        "data": {"train": "x.parquet", "num_frames": num_frames, "crop_px": 4 * model["patch_px"], "global_batch": 2, "workers": 0},
        "masks": [{"kind": "random", "ratio": 0.5}],
        "model": model,
        "optim": {"total_steps": 3, "ema_decay": 0.9},
    }
    for section, values in tree.items():
        base[section] = {**base.get(section, {}), **values}
    return config.validate(base, "test")


def step_inputs(jepa: Jepa, plan_of: config.Config) -> tuple[torch.Tensor, list]:
    data = plan_of.data
    video = torch.randn(2, 3, data.num_frames, data.crop_px, data.crop_px, generator=torch.Generator().manual_seed(0))
    return video, plan(plan_of.masks, plan_of.grid).draw(2, 0, 0, 0, 1)


def changed(video: torch.Tensor, ids: torch.Tensor, model: config.Model) -> torch.Tensor:
    """The video with other pixels in the patches `ids` [B, K]."""
    patches = patchify(video, model)
    visible = torch.zeros(patches.pixels.shape[:2], dtype=torch.bool).scatter(1, ids, True)
    frames, p = (1 if video.shape[2] == 1 else model.tubelet_frames), model.patch_px
    grid = visible.unflatten(1, (patches.grid.t, patches.grid.h, patches.grid.w))
    pixels = grid.repeat_interleave(frames, 1).repeat_interleave(p, 2).repeat_interleave(p, 3)
    return torch.where(pixels[:, None], 3 * torch.randn_like(video) + 5, video)


@every_backbone
@pytest.mark.parametrize("num_frames", [1, 4])
def test_hidden_pixels_have_no_influence_and_visible_ones_have(name: str, num_frames: int) -> None:
    """In training mode, where BatchNorm lets clips of a batch meet: on context features, and on the predictions made of them."""
    run = settings(name, num_frames)
    jepa = build(run).train()
    video, (mask,) = step_inputs(jepa, run)
    grid = jepa.encoder.grid(*video.shape[2:])
    other = changed(video, mask.target_ids, run.model)
    assert not torch.equal(other, video)
    with torch.no_grad():
        context, same = jepa.encoder(video, mask.context_ids), jepa.encoder(other, mask.context_ids)
        assert torch.equal(context, same) and context.shape == (*mask.context_ids.shape, jepa.encoder.width)
        assert torch.equal(jepa.predict(context, mask, grid, 0), jepa.predict(same, mask, grid, 0))
        assert not torch.equal(jepa.targets(patchify(video, run.model), jepa.target_encoder), jepa.targets(patchify(other, run.model), jepa.target_encoder))
        assert not torch.allclose(jepa.encoder(changed(video, mask.context_ids[:, :1], run.model), mask.context_ids), context)


@every_backbone
def test_asking_for_all_tokens_one_by_one_is_asking_for_all(name: str) -> None:
    run = settings(name)
    encoder = build(run).encoder.eval()
    video, _ = step_inputs(build(run), run)
    ids = torch.stack([torch.randperm(run.grid.num_tokens) for _ in range(2)])
    with torch.inference_mode():
        whole, some = encoder(video), encoder(video, ids)
        expected = whole.gather(1, ids.unsqueeze(-1).expand_as(whole))
        torch.testing.assert_close(some, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(encoder(video), whole)  # frozen, it is a function of the video
        torch.testing.assert_close(encoder.intermediate(video, [-1])[0], whole)
        assert recipes.levels(encoder, "quarters")[-1] == encoder.depth - 1


@every_backbone
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_target_encoder_follows_and_each_measures_its_own_statistics(name: str, dtype: torch.dtype) -> None:
    run = settings(name)
    jepa = build(run)
    before = {key: tensor.clone() for key, tensor in jepa.target_encoder.state_dict().items()}
    step = TrainingStep(run, jepa, optim.make_optimizer(jepa, run.optim), dtype, 3)
    step(0, torch.randint(256, (2, 3, 4, run.data.crop_px, run.data.crop_px), dtype=torch.uint8))
    context, target = jepa.encoder.state_dict(), jepa.target_encoder.state_dict()
    weights = {key for key, _ in jepa.encoder.named_parameters()}
    for key, start in before.items():
        if key in weights:
            torch.testing.assert_close(target[key], 0.9 * start + 0.1 * context[key], atol=1e-6, rtol=1e-4)
        elif key.endswith("num_batches_tracked"):
            assert int(context[key]) == int(target[key]) == 1
        else:  # of the visible patches, and of whole frames
            assert not torch.equal(context[key], target[key]) and not torch.equal(target[key], start)
    assert (len(before) > len(weights)) == (name == "resnet")
    assert isinstance(step.shadow, ema.Shadow)


def test_a_backbone_refuses_the_settings_that_it_does_not_have() -> None:
    wrong: list[tuple[dict, str]] = [
        ({"pretrained": True}, "model.pretrained: backbone: vit has none, only timm; leave it out"),
        ({"encoder": {"step_size": 0.2}}, "model.encoder.step_size: backbone: vit has none, only energy"),
        ({**ENERGY, "positions": "rope"}, "model.positions: rope: backbone: energy adds its positions; set positions: sincos"),
        ({**ENERGY, "encoder": {"drop_path": 0.1}}, "model.encoder.drop_path: backbone: energy has none, only vit"),
        ({**MODELS["resnet"], "encoder": {"width": 48}}, "model.encoder: backbone: test_resnet has none, only vit and energy"),
        ({**MODELS["resnet"], "image_mode": "own"}, "model.image_mode: backbone: test_resnet has none"),
        ({**MODELS["timm_vit"], "level_norms": True}, "model.level_norms: backbone: test_vit has none, only vit"),
    ]
    for model, message in wrong:
        with pytest.raises(config.ConfigError, match=message):
            config.validate({"data": {"train": "x"}, "model": model, "optim": {"total_steps": 1}}, "test")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 4 pictures that stand still: their clips repeat them."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    build_index(folder, folder / "x.parquet", workers=1, progress=False)
    return folder / "x.parquet"


@pytest.mark.parametrize(("name", "num_frames"), [("energy", 4), ("resnet", 4), ("convnext", 1), ("timm_vit", 4)])
def test_runs_resume_bit_for_bit_and_their_files_give_the_same_features(name: str, num_frames: int, clips: Path, tmp_path: Path) -> None:
    data = {"data": {"train": str(clips), "num_frames": num_frames, "crop_px": 32, "global_batch": 2, "workers": 0}}
    whole, parts = (settings(name, run={"dir": str(tmp_path / folder), "device": "cpu", "precision": "fp32"}, **data) for folder in ("whole", "parts"))
    assert train(whole, progress=False) is not None
    assert train(parts, stop_at_step=2, progress=False) is None
    assert train(parts, progress=False) is not None
    video = torch.randn(2, 3, num_frames, 32, 32)
    for which in ("encoder", "target_encoder"):
        one, other = (own.read(tmp_path / folder, which) for folder in ("whole", "parts"))
        for networks in ("encoder", "predictor"):
            first, second = getattr(one, networks), getattr(other, networks)
            assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
        encoder = load_encoder(tmp_path / "whole", which=which)
        assert not encoder.training and torch.equal(encoder(video), load_encoder(tmp_path / "parts", which=which)(video))
    assert export.main([str(tmp_path / "whole"), "--to", "safetensors", "--out", str(tmp_path / "passed_on.safetensors")]) == 0
    assert torch.equal(load_encoder(tmp_path / "passed_on.safetensors")(video), encoder(video))
    with pytest.raises(UserError, match=rf"Hugging Face's V-JEPA 2 cannot express backbone: {MODELS[name]['backbone']} \(it is a ViT\)"):
        export.main([str(tmp_path / "whole"), "--to", "huggingface", "--out", str(tmp_path / "theirs"), "--num-frames", "4", "--crop-px", "32"])
    untrained = recipes.untrained(encoder)
    assert not torch.equal(untrained(video), encoder(video)) and isinstance(untrained, type(encoder)) and isinstance(untrained, nn.Module)


def test_a_name_that_timm_does_not_have_stops_a_run_before_its_folder_is_made(clips: Path, tmp_path: Path) -> None:
    run = settings("resnet", run={"dir": str(tmp_path / "run")}, data={"train": str(clips)}, model={"backbone": "resnt50", "patch_px": 8})
    with pytest.raises(UserError, match="did you mean resnet50"):
        train(run, progress=False)
    assert not (tmp_path / "run").exists()
