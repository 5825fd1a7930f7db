"""`model.input: changes`: what an encoder sees is how a clip changes, never what stands still."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vjepa import config
from vjepa.jepa import build
from vjepa.models.backbone import make_encoder
from vjepa.models.encoder import LEAST_CHANGE, patchify

pytestmark = pytest.mark.fast
SHAPE = {"encoder": {"width": 24, "depth": 2, "heads": 2}, "predictor": {"width": 24, "depth": 1, "heads": 2}}
MODELS: dict[str, dict] = {
    "vit": {"patch_px": 4, **SHAPE},
    "energy": {"backbone": "energy", "positions": "sincos", "patch_px": 4, **SHAPE},
    "resnet": {"backbone": "test_resnet", "patch_px": 8},
    "timm_vit": {"backbone": "test_vit", "patch_px": 16},
}


def model(name: str = "vit", **settings: object) -> config.Model:
    return config.Model.model_validate({"input": "changes", **MODELS[name], **settings})


def clips(px: int = 16, frames: int = 6) -> torch.Tensor:
    return torch.randn(2, 3, frames, px, px, generator=torch.Generator().manual_seed(0))


def twin(video: np.ndarray) -> np.ndarray:
    """Frame by frame and clip by clip, in float64."""
    found = np.zeros(video.shape)
    for number, clip in enumerate(video.astype(np.float64)):
        differences = [clip[:, frame + 1] - clip[:, frame] for frame in range(clip.shape[1] - 1)]
        size = max(np.sqrt(np.mean([np.mean(difference**2) for difference in differences])), LEAST_CHANGE)
        for frame, difference in enumerate(differences):
            found[number, :, frame] = difference / size
    return found


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_patches_are_those_of_the_changes(scale: float) -> None:
    video = scale * clips()
    video[1, :, 3:] = video[
        1, :, 3:4
    ]  # which stands still from there on, and so is of another size than the other clip
    settings = model()
    patches, expected = (
        patchify(video, settings),
        patchify(torch.from_numpy(twin(video.numpy())).float(), model(input="frames")),
    )
    torch.testing.assert_close(patches.pixels, expected.pixels, atol=1e-5, rtol=1e-4)
    assert patches.grid == expected.grid and patches.taps == expected.taps
    assert bool(patches.pixels.abs().max() < 1) == (scale == 1e-4)  # what is all but frozen stays small
    assert patchify(video.bfloat16(), settings).pixels.dtype is torch.bfloat16


def test_what_stands_still_gives_the_features_of_nothing() -> None:
    encoder = make_encoder(model()).eval()
    still = clips()[:, :, :1].expand(-1, -1, 6, -1, -1)
    assert torch.equal(encoder(still), encoder(torch.zeros_like(still)))


@pytest.mark.parametrize("name", MODELS)
def test_no_backbone_sees_a_standing_scene_or_the_contrast(name: str) -> None:
    torch.manual_seed(0)
    encoder = make_encoder(model(name)).eval()
    video = clips(32)
    scene = 3 * torch.randn(2, 3, 1, 32, 32)
    with torch.inference_mode():
        features = encoder(video)
        for other in (video + scene, 0.3 * video, 2 * video - scene):
            torch.testing.assert_close(encoder(other), features, atol=2e-4, rtol=1e-3)
            torch.testing.assert_close(
                encoder.intermediate(other, [0])[0], encoder.intermediate(video, [0])[0], atol=2e-4, rtol=1e-3
            )
        assert not torch.allclose(encoder(video.flip(2)), features, atol=1e-2)
        frames = make_encoder(model(name, input="frames")).eval()
        frames.load_state_dict(encoder.state_dict())
        assert not torch.allclose(frames(video + scene), frames(video), atol=1e-2)


@pytest.mark.parametrize("targets", ["ema", "pixels"])
def test_training_sees_no_standing_scene_either(targets: str) -> None:
    """Neither in the context nor in what it predicts."""
    tree = {
        "data": {"train": "x", "num_frames": 6, "crop_px": 16},
        "optim": {"total_steps": 1},
        "objective": {"targets": targets},
    }
    run = config.validate(
        {**tree, "eval": {"encoder": "encoder"}, "model": {"input": "changes", **MODELS["vit"]}}, "test"
    )
    jepa, video = build(run).eval(), clips()
    scene = 3 * torch.randn(2, 3, 1, 16, 16)
    first, other = (jepa.targets(patchify(one, jepa.encoder.model)) for one in (video, video + scene))
    torch.testing.assert_close(first, other, atol=1e-3, rtol=1e-3)


def test_a_single_frame_has_no_change() -> None:
    with pytest.raises(
        config.ConfigError,
        match=r"^a single frame has no changes, which model\.input: changes needs; give 2 frames or more",
    ):
        patchify(clips(frames=1), model(image_mode="repeat"))
    tree = {"data": {"train": "x", "num_frames": 1}, "optim": {"total_steps": 1}, "model": {"input": "changes"}}
    with pytest.raises(config.ConfigError, match=r"^test: data\.num_frames: a single frame has no change"):
        config.validate(tree, "test")
    mix = [{"index": "i", "ratio": 0.1}, {"index": "i", "ratio": 0.1, "num_frames": 1}]
    with pytest.raises(config.ConfigError, match=r"^test: data\.mix\.1\.num_frames: a single frame has no change"):
        config.validate({**tree, "data": {"train": "x", "mix": mix}}, "test")
