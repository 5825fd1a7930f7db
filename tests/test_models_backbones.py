"""What every backbone owes: hidden pixels have no influence, training resumes bit for bit, and files give the same
features.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from steps import batch_of, step_of

from data_prep.index import build_index
from vjepa import config, load_encoder
from vjepa.errors import UserError
from vjepa.interop import export
from vjepa.interop.weights import Weights
from vjepa.jepa import Jepa, build
from vjepa.masking.draw import plan
from vjepa.models import ema
from vjepa.models.encoder import patchify
from vjepa.probing import extractors
from vjepa.probing.subject import blocks
from vjepa.run_folder import RunFolder
from vjepa.training import checkpoint, optim
from vjepa.training.flops import step_flops
from vjepa.training.pretraining import train

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
        "data": {
            "train": "x.parquet",
            "num_frames": num_frames,
            "crop_px": 4 * model["patch_px"],
            "global_batch": 2,
            "workers": 0,
        },
        "masks": [{"kind": "random", "ratio": 0.5}],
        "model": model,
        "optim": {"total_steps": 3, "ema_decay": 0.9},
    }
    for section, values in tree.items():
        base[section] = {**base.get(section, {}), **values}
    return config.validate(base, "test")


def step_inputs(jepa: Jepa, plan_of: config.Config) -> tuple[torch.Tensor, list]:
    data = plan_of.data
    video = torch.randn(2, 3, *data.clip_size, generator=torch.Generator().manual_seed(0))
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
    """In training mode, where BatchNorm lets clips of a batch meet: on context features, and on the predictions made of
    them.
    """
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
        assert not torch.equal(
            jepa.targets(patchify(video, run.model)),
            jepa.targets(patchify(other, run.model)),
        )
        assert not torch.allclose(
            jepa.encoder(changed(video, mask.context_ids[:, :1], run.model), mask.context_ids), context
        )


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
        patches = patchify(video, run.model)
        longer = replace(
            patches, grid=replace(patches.grid, t=patches.grid.t + 1)
        )  # the clip as the start of a longer one, as a roll-out has it
        torch.testing.assert_close(encoder.encode(longer, ids), expected, atol=1e-5, rtol=1e-4)
        assert blocks("--levels", "quarters", encoder.depth)[-1] == encoder.depth - 1


@every_backbone
def test_frames_need_not_be_square(name: str) -> None:
    side = MODELS[name]["patch_px"]
    run = settings(name, data={"crop_px": [2 * side, 5 * side]})
    jepa, grid = build(run).eval(), run.grid
    assert (grid.h, grid.w) == (2, 5) == (jepa.encoder.grid(4, 2 * side, 5 * side).h, 5)
    video, masks = step_inputs(jepa, run)
    loss = jepa(video, masks)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and step_flops(run) > 0
    ids = torch.tensor([[3, 7, 12], [0, 9, 19]])
    hidden = torch.stack([torch.tensor([i for i in range(20) if i not in seen]) for seen in ids.tolist()])
    features = jepa.encoder.encode(patchify(video, run.model), ids)
    other = changed(video, hidden, run.model)
    assert not torch.equal(other, video)
    torch.testing.assert_close(jepa.encoder.encode(patchify(other, run.model), ids), features, atol=1e-5, rtol=1e-4)


@every_backbone
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_target_encoder_follows_and_each_measures_its_own_statistics(name: str, dtype: torch.dtype) -> None:
    run = settings(name, objective={"reversal": 0})  # which is a second batch
    jepa = build(run)
    before = {key: tensor.clone() for key, tensor in jepa.target_encoder.state_dict().items()}
    step = step_of(run, jepa, dtype, 3)
    step(0, batch_of(torch.randint(256, (2, 3, 4, run.data.crop_px, run.data.crop_px), dtype=torch.uint8)))
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
    assert isinstance(jepa.shadow, ema.Shadow)


def test_a_backbone_refuses_the_settings_that_it_does_not_have() -> None:
    wrong: list[tuple[dict, str]] = [
        ({"pretrained": True}, "model.pretrained: backbone: vit has none, only timm; leave it out"),
        ({"encoder": {"step_size": 0.2}}, "model.encoder.step_size: backbone: vit has none, only energy"),
        (
            {**ENERGY, "positions": "rope"},
            "model.positions: rope: backbone: energy adds its positions; set positions: sincos",
        ),
        ({**ENERGY, "encoder": {"drop_path": 0.1}}, "model.encoder.drop_path: backbone: energy has none, only vit"),
        (
            {**MODELS["resnet"], "encoder": {"width": 48}},
            "model.encoder: backbone: test_resnet has none, only vit and energy",
        ),
        ({**MODELS["resnet"], "image_mode": "own"}, "model.image_mode: backbone: test_resnet has none"),
        ({**MODELS["timm_vit"], "level_norms": True}, "model.level_norms: backbone: test_vit has none, only vit"),
    ]
    for model, message in wrong:
        with pytest.raises(config.ConfigError, match=message):
            config.validate({"data": {"train": "x"}, "model": model, "optim": {"total_steps": 1}}, "test")


@pytest.mark.parametrize(
    ("name", "num_frames"),
    [("energy", 4), ("energy", 1), ("resnet", 4), ("resnet", 1), ("convnext", 1), ("timm_vit", 4)],
)
def test_runs_resume_bit_for_bit_and_their_files_give_the_same_features(
    name: str, num_frames: int, tmp_path: Path
) -> None:
    run = settings(name, num_frames)
    clips = torch.randint(256, (3, 2, 3, num_frames, run.data.crop_px, run.data.crop_px), dtype=torch.uint8)
    (tmp_path / "config.yaml").write_text(config.dump(run))
    networks = []
    for stops in ([3], [2, 3]):
        for stop in stops:
            jepa = build(run)
            optimizer = optim.make_optimizer(jepa, run.optim)
            folder = RunFolder(tmp_path) if stop != stops[0] else RunFolder(tmp_path / "nothing yet")
            state = checkpoint.restore(folder, jepa, optimizer)
            step = step_of(run, jepa, torch.float32, 3, optimizer)
            for number in range(state.step, stop):
                step(number, batch_of(clips[number]))
            state.step = stop
            checkpoint.save(RunFolder(tmp_path), jepa, optimizer, state, keep=1)
        networks.append(jepa)
    whole, resumed = networks
    assert all(torch.equal(tensor, resumed.state_dict()[key]) for key, tensor in whole.state_dict().items())
    assert not any(
        torch.equal(one, other)
        for one, other in zip(whole.encoder.parameters(), build(run).encoder.parameters(), strict=True)
    )
    video = torch.randn(2, 3, num_frames, run.data.crop_px, run.data.crop_px)
    for which in ("encoder", "target_encoder"):
        encoder, trained = load_encoder(tmp_path, which=which), getattr(whole, which).eval()
        assert not encoder.training and torch.equal(encoder(video), trained(video))
        untrained = extractors.untrained(encoder, 0)
        assert type(untrained) is type(encoder) and not torch.equal(untrained(video), encoder(video))


def test_exports(tmp_path: Path) -> None:
    run = settings("resnet")
    jepa = build(run).eval()
    weights = Weights("trained", run.model, jepa.encoder.state_dict(), jepa.predictor.state_dict())
    assert export.export(weights, "safetensors", tmp_path / "resnet.safetensors", export.ClipSize(4, 32, 32)) == 0
    video = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(load_encoder(tmp_path / "resnet.safetensors")(video), jepa.encoder(video))
    with pytest.raises(
        UserError, match=r"trained: Hugging Face's V-JEPA 2 cannot express backbone: test_resnet \(it is a ViT\)"
    ):
        export.export(weights, "huggingface", tmp_path / "theirs", export.ClipSize(4, 32, 32))


def test_a_run_of_a_network_of_timm_from_end_to_end(tmp_path: Path) -> None:
    for number in range(2):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    build_index(tmp_path, tmp_path / "x.parquet", workers=1, progress=False)
    run = settings(
        "resnet",
        1,
        run={"dir": str(tmp_path / "run"), "device": "cpu", "precision": "fp32"},
        data={"train": str(tmp_path / "x.parquet")},
    )
    misspelt = run.model_copy(update={"model": run.model.model_copy(update={"backbone": "resnt50"})})
    with pytest.raises(UserError, match="did you mean resnet50"):
        train(misspelt, progress=False)
    assert not (tmp_path / "run").exists()
    summary = train(run, progress=False)
    assert summary is not None and summary["steps"] == 3
    assert load_encoder(tmp_path / "run" / "checkpoints" / "best.pth")(torch.randn(1, 3, 1, 32, 32)).shape == (
        1,
        16,
        48,
    )
