"""The method of fine-tuning: rates by layer, changes of clips, mixing, averages, each against a plain twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_runs import settings
from torch.nn import functional

from vjepa import config
from vjepa.data.augment import normalise
from vjepa.data.rand_augment import RandAugment
from vjepa.errors import UserError
from vjepa.finetuning import Finetuning, mix
from vjepa.models.attentive_pool import LinearClassifier
from vjepa.models.backbone import make_encoder
from vjepa.models.layer_order import freeze, layer_numbers, set_drop_path
from vjepa.records import ClipBatch
from vjepa.training.optim import make_optimizer, set_schedules
from vjepa.training.step import TrainingStep

pytestmark = pytest.mark.fast


def wanted(tmp_path, model: dict | None = None, **finetune) -> config.FinetuneConfig:
    base = settings(tmp_path / "clips.parquet", "x", **({"model": model} if model else {}))
    tree = {
        "run": {"dir": str(tmp_path / "run")},
        "data": base.data.model_dump(mode="json"),
        "model": base.model.model_dump(mode="json"),
        "optim": {"epochs": None, "total_steps": 10, "warmup_steps": 0},
        "finetune": {"model_path": "x", **finetune},
    }
    return config.validate_finetuning(tree, "test")


def method(wish: config.FinetuneConfig) -> Finetuning:
    torch.manual_seed(0)
    head = LinearClassifier(24, 3)
    return Finetuning(wish, make_encoder(wish.model), head, torch.tensor([0, 1, 2, -1, 0]))


def batch(num: int = 4) -> ClipBatch:
    rng = np.random.default_rng(0)
    video = torch.from_numpy(rng.integers(0, 256, (num, 3, 4, 16, 16), dtype=np.uint8))
    return ClipBatch(video, torch.tensor([0, 1, 2, 4][:num]))


def test_learning_rates_fall_layer_by_layer_from_the_head(tmp_path) -> None:
    wish = wanted(tmp_path, layer_decay=0.5, head_lr=3.0)
    model = method(wish)
    optimizer = make_optimizer(model, wish.optim, model.lr_scales())
    set_schedules(optimizer, wish.optim, 0, 10)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    lr = {name: rates[id(p)] / wish.optim.peak_lr for name, p in model.named_parameters()}
    assert lr["head.linear.weight"] == lr["head.linear.bias"] == 3.0
    assert lr["encoder.norm.weight"] == 1.0 and lr["encoder.blocks.1.attn.qkv.weight"] == 0.5
    assert lr["encoder.blocks.0.mlp.fc1.bias"] == 0.25 and lr["encoder.patch_embed.proj.weight"] == 0.125
    assert {group["weight_decay"] for group in optimizer.param_groups if not group["decayed"]} == {0.0}


def test_the_scale_of_a_rate_is_no_part_of_what_is_logged(tmp_path) -> None:
    wish = wanted(tmp_path, layer_decay=0.5, head_lr=3.0)
    model = method(wish)
    step = TrainingStep(model, make_optimizer(model, wish.optim, model.lr_scales()), wish.optim, torch.float32, 10)
    step(0, batch())
    assert step.scalars(0)["lr"] == pytest.approx(wish.optim.peak_lr)


@pytest.mark.parametrize("backbone", ["vit", "energy", "vit_tiny_patch16_224", "resnet18"])
def test_layers_are_numbered_without_a_gap_and_the_first_embeds(tmp_path, backbone: str) -> None:
    model = {
        "backbone": backbone,
        "patch_px": 16 if backbone.startswith("vit_") else 32 if backbone == "resnet18" else 8,
    }
    model |= {"positions": "sincos_uniform"}
    data = {"crop_px": 32}
    base = settings(
        tmp_path / "c.parquet",
        "x",
        model=model if backbone in ("vit", "energy") else {**model, "encoder": {}},
        data=data,
        objective={},
    )
    encoder = make_encoder(base.model)
    numbers = layer_numbers(encoder)
    assert numbers.keys() == dict(encoder.named_parameters()).keys()
    assert set(numbers.values()) == set(range(max(numbers.values()) + 1))
    first = [name for name, number in numbers.items() if number == 0]
    assert any(word in name for name in first for word in ("patch_embed", "conv1"))
    freeze(encoder, 1)
    assert {name for name, p in encoder.named_parameters() if not p.requires_grad} >= set(first)
    with pytest.raises(UserError, match="freeze_layers"):
        freeze(encoder, 1000)
    if backbone != "vit":
        with pytest.raises(UserError, match="drop_path"):
            set_drop_path(encoder, 0.1)


@pytest.mark.parametrize("backbone, chance", [("vit", 0.1), ("energy", 0.0)])
def test_blocks_are_skipped_unless_asked_otherwise_where_there_are_blocks(tmp_path, backbone, chance) -> None:
    model = {
        "backbone": backbone,
        "patch_px": 8,
        "positions": "sincos",
        "encoder": {"width": 24, "depth": 2, "heads": 2},
    }
    assert wanted(tmp_path, model).finetune.drop_path == chance
    assert wanted(tmp_path, model, drop_path=0.2).finetune.drop_path == 0.2


def test_rand_augment_is_a_function_of_seed_and_sample_and_changes_all_frames_alike() -> None:
    frame = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16), dtype=np.uint8))
    clip = frame.expand(-1, 4, -1, -1).contiguous()
    change, state = RandAugment(2, 20, seed=0), torch.get_rng_state()
    changed = [change(sample, clip) for sample in range(100, 106)]
    assert torch.equal(torch.get_rng_state(), state)  # nothing else is drawn
    for one, sample in zip(changed, range(100, 106), strict=True):
        assert one.dtype is torch.uint8 and one.shape == clip.shape
        assert torch.equal(one, one[:, :1].expand_as(one))
        assert torch.equal(change(sample, clip), one)
    assert not all(torch.equal(one, changed[0]) for one in changed)
    assert not all(torch.equal(RandAugment(2, 20, seed=1)(100 + i, clip), one) for i, one in enumerate(changed))


def test_mixup_shows_two_clips_by_the_shares_of_their_classes() -> None:
    wish = config.Finetune(model_path="x", mixup=0.8, cutmix=0.0)
    video, labels = torch.randn(4, 3, 2, 8, 8), torch.tensor([0, 1, 2, 0])
    mixed, shares = mix(video, labels, 3, wish, 0, 5)
    share = float(shares[1, 1])
    own = functional.one_hot(labels, 3).float()
    before = [3, 0, 1, 2]
    np.testing.assert_allclose(shares, share * own + (1 - share) * own[before], atol=1e-6)
    np.testing.assert_allclose(mixed, share * video + (1 - share) * video[before], atol=1e-5)
    again, _ = mix(video, labels, 3, wish, 0, 5)
    other, _ = mix(video, labels, 3, wish, 0, 6)
    assert torch.equal(again, mixed) and not torch.equal(other, mixed)


def test_cutmix_covers_a_box_of_every_frame_whose_area_is_the_share() -> None:
    wish = config.Finetune(model_path="x", mixup=0.0, cutmix=1.0)
    video, labels = torch.randn(4, 3, 2, 8, 8), torch.tensor([0, 1, 2, 1])
    mixed, shares = mix(video, labels, 3, wish, 0, 3)
    kept = (mixed == video).all(1)  # [B, T, S, S]
    assert torch.equal(kept[0, 0], kept[3, 1]) and torch.equal(
        mixed[~kept[:, None].expand_as(mixed)], video[[3, 0, 1, 2]][~kept[:, None].expand_as(mixed)]
    )
    assert float(shares[1, 1]) == pytest.approx(float(kept[0, 0].float().mean()), abs=1e-6)


def test_without_mixing_the_loss_is_the_cross_entropy_of_the_labels(tmp_path) -> None:
    wish = wanted(tmp_path, mixup=0.0, cutmix=0.0, rand_augment_ops=0, label_smoothing=0.0, drop_path=0.0)
    model = method(wish)
    model.begin(torch.float32, 10)
    terms = model.terms(batch(), 0)
    logits = model(normalise(batch().video, torch.float32))
    assert terms["loss"].item() == pytest.approx(functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).item())


def test_the_average_follows_the_networks_and_is_what_is_measured(tmp_path) -> None:
    wish = wanted(tmp_path, ema=True)
    model = method(wish)
    step = TrainingStep(model, make_optimizer(model, wish.optim, model.lr_scales()), wish.optim, torch.float32, 10)
    before = model.networks["target_head"].linear.weight.clone()
    step(0, batch())
    decay = wish.optim.ema_decay
    after = model.networks["target_head"].linear.weight
    np.testing.assert_allclose(after, decay * before + (1 - decay) * model.head.linear.weight.detach(), atol=1e-7)
    assert model.measured == (model.networks["target_encoder"], model.networks["target_head"])
    assert not model.measured[0].training and model.encoder.training
