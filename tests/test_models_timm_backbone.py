"""Networks of timm as encoders: beside timm itself, and what names and patch sizes get."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from vjepa import config
from vjepa.errors import UserError
from vjepa.interop.weights import Weights
from vjepa.jepa import build
from vjepa.models import timm_backbone
from vjepa.models.backbone import encoder_width, make_encoder
from vjepa.models.encoder import Encoder
from vjepa.models.timm_backbone import TimmMap, TimmVit


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def encoder(backbone: str, patch_px: int, **settings: object) -> Encoder:
    return make_encoder(config.Model(backbone=backbone, patch_px=patch_px, **settings)).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit3"]
)  # a class token; three registers, positions of patches alone
def test_a_vit_gives_the_tokens_of_timm(name: str) -> None:
    vit = encoder(name, 16)
    assert isinstance(vit, TimmVit) and vit.depth == len(vit.network.blocks)
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    theirs.reset_classifier(0, "")
    theirs.load_state_dict(vit.network.state_dict())
    cfg = theirs.pretrained_cfg
    raw = torch.rand(2, 3, 48, 64)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    ours = normalised(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    expected = theirs.forward_intermediates(
        normalised(cfg["mean"], cfg["std"]), [1, vit.depth - 1], norm=True, output_fmt="NLC", intermediates_only=True
    )
    for found, wanted in zip(vit.intermediate(ours[:, :, None], [1, -1]), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert expected[1].shape == (2, 12, vit.width)


@pytest.mark.parametrize(
    ("name", "patch_px", "stage"), [("test_resnet", 8, 2), ("test_convnext", 32, -1), ("test_efficientnet", 16, 3)]
)
def test_a_cnn_gives_the_map_whose_stride_is_the_patch(name: str, patch_px: int, stage: int) -> None:
    cnn = encoder(name, patch_px)
    assert isinstance(cnn, TimmMap)
    theirs = timm.create_model(name, features_only=True).eval()
    theirs.load_state_dict(cnn.network.state_dict(), strict=False)
    mean, std = (torch.tensor(theirs.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    frame = torch.randn(2, 3, 2 * patch_px, 3 * patch_px)
    colours = (
        torch.tensor(timm.data.IMAGENET_DEFAULT_STD).view(3, 1, 1) * frame
        + torch.tensor(timm.data.IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
        - mean
    ) / std
    expected = theirs(colours)[stage].flatten(2).transpose(1, 2)
    torch.testing.assert_close(cnn(frame[:, :, None]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "patch_px"), [("test_resnet", 8), ("test_vit", 16)])
def test_clips_are_read_frame_by_frame_and_a_tubelet_is_the_mean_of_its_frames(name: str, patch_px: int) -> None:
    network = encoder(name, patch_px)
    video = torch.randn(2, 3, 4, 2 * patch_px, 2 * patch_px)
    frames = torch.stack([network(video[:, :, [number]]) for number in range(4)], dim=1)  # [B, T, h w, D]
    torch.testing.assert_close(network(video), frames.unflatten(1, (2, 2)).mean(2).flatten(1, 2), atol=1e-5, rtol=1e-4)


def test_all_parameters_that_are_trained_have_a_gradient() -> None:
    """One that later maps alone need stays out of the optimizer."""
    cnn = make_encoder(config.Model(backbone="test_efficientnet", patch_px=16))
    cnn(torch.randn(1, 3, 1, 64, 64)).sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in cnn.parameters())
    assert not all(parameter.requires_grad for parameter in cnn.parameters())


def test_networks_with_tables_that_no_file_holds_are_whole_after_loading() -> None:
    """Files are read into networks on the meta device, where such tables would be lost."""
    model = config.Model(backbone="test_vit3", patch_px=16)
    first = make_encoder(model).eval()
    second = Weights("", model, first.state_dict()).build_encoder()
    assert not any(buffer.is_meta for buffer in second.buffers())
    video = torch.randn(1, 3, 2, 32, 32)
    torch.testing.assert_close(second(video), first(video))


def test_initial_weights_are_a_function_of_the_seed_whether_or_not_the_name_was_looked_up() -> None:
    tree = {
        "data": {"train": "x.parquet", "crop_px": 32},
        "model": {"backbone": "test_resnet", "patch_px": 8},
        "optim": {"total_steps": 1},
    }
    settings = config.validate(tree, "test")
    timm_backbone.look_up.cache_clear()
    first, second = build(settings), build(settings)
    assert all(torch.equal(one, second.state_dict()[key]) for key, one in first.state_dict().items())


@pytest.mark.parametrize(
    ("name", "patch_px", "message"),
    [
        ("resnt50", 32, r"model.backbone: timm \S+ has no 'resnt50'; did you mean resnet50"),
        ("enrgy", 16, "did you mean energy"),
        ("resnet50.nope", 32, r"model.backbone: Invalid pretrained tag \(nope\) for resnet50"),
        (
            "test_resnet",
            14,
            "model.patch_px: maps of test_resnet have strides of 2, 4, 8, 16, 32 px, not 14; set "
            "model.patch_px to one of them",
        ),
        ("test_vit", 8, "model.patch_px: test_vit has patches of 16 px, not 8; set model.patch_px: 16"),
        (
            "test_vit_relpos",
            16,
            r"model.backbone: test_vit_relpos does not map frames of any size \(.*\); take a CNN, or a plain ViT",
        ),
        (
            "inception_v3",
            8,
            "model.backbone: inception_v3 makes 1x1 cells of 4x4 patches of 8 px, which cannot be tokens",
        ),
    ],
)
def test_what_timm_does_not_have_is_one_line(name: str, patch_px: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        encoder_width(config.Model(backbone=name, patch_px=patch_px))
    assert "\n" not in str(caught.value)


def test_timm_is_imported_only_where_a_run_uses_it() -> None:
    """It takes a second."""
    code = (
        "import sys; from vjepa import config; from vjepa.models.backbone import encoder_width, make_encoder; "
        "make_encoder(config.Model()), encoder_width(config.Model()); print('timm' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "False"


def pretrained(**settings: object) -> config.Config:
    model = {"backbone": "test_resnet", "patch_px": 8, "pretrained": True}
    return config.validate(
        {"data": {"train": "x.parquet", "crop_px": 32}, "model": model, "optim": {"total_steps": 1}, **settings}, "test"
    )


def test_published_weights_start_both_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(model: nn.Module, **_: object) -> None:
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.5)

    monkeypatch.setattr("timm.models._builder.load_pretrained", fill)
    jepa = build(pretrained())
    assert not any(torch.all(parameter == 0.5) for parameter in jepa.encoder.parameters())
    jepa.load_pretrained()
    for network in (jepa.encoder, jepa.target_encoder):
        assert all(torch.all(parameter == 0.5) for parameter in network.parameters())


def test_published_weights_out_of_reach_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError,
        match=r"model.pretrained: the weights of test_resnet cannot be fetched \(.+\); set model.pretrained: false",
    ) as caught:
        build(pretrained()).load_pretrained()
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"run.init_from: model.pretrained names other weights"):
        pretrained(run={"init_from": "runs/x"})
