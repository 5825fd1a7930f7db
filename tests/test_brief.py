"""The config and the commands with which the project was asked for, as they were written."""

import hashlib
import json
import pickle

import numpy as np
import pytest
import yaml
from PIL import Image
from torchvision import datasets

from data_prep.index import build_index
from vjepa import config, probe, train
from vjepa.errors import UserError

CONFIG = """
backbone: vit_base_patch16_224
mask_ratio: 0.5
batch_size: 256
learning_rate: 1e-4
epochs: 100
ema_decay: 0.99
loss_type: huber
"""
# a network of the same kind that is small enough for a test
SMALL = [
    "backbone=test_vit",
    "batch_size=4",
    "epochs=2",
    "data.crop_px=32",
    "data.workers=0",
    "optim.warmup_steps=0",
    "run.device=cpu",
    "run.precision=fp32",
]
SMALL += ["model.predictor={width: 24, depth: 1, heads: 2}"]


@pytest.fixture
def index(tmp_path):
    """An index of 8 images in folders of their classes."""
    rng = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "images" / "train" / f"n0000000{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(40, 48, 3), dtype=np.uint8)).save(path)
    build_index(tmp_path / "images", tmp_path / "images.parquet", workers=1, progress=False)
    return tmp_path / "images.parquet"


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """The files of CIFAR-10, of 20 images each, where the probe looks for them."""
    folder, rng = tmp_path / "cache" / "vjepa" / "datasets" / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    classes = [f"class {number}" for number in range(10)]

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch():
        labels = list(range(10)) * 2
        pixels = rng.integers(64, size=(20, 3072)) + 19 * np.array(labels)[:, None]  # brighter from class to class
        return {"data": pixels.astype(np.uint8), "labels": labels}

    monkeypatch.setattr(
        datasets.CIFAR10, "train_list", [write(f"data_batch_{number}", batch()) for number in range(1, 6)]
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [write("test_batch", batch())])
    name, md5 = write("batches.meta", {"label_names": classes})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.fast
def test_the_config_is_shipped_and_alone_makes_an_image_run(tmp_path) -> None:
    (tmp_path / "alone.yaml").write_text(CONFIG)
    alone, shipped = (
        config.load(str(tmp_path / "alone.yaml"), ["data.train=x.parquet"]),
        config.load("configs/imagenet_vit.yaml"),
    )
    for settings in (alone, shipped):
        assert (settings.data.num_frames, settings.data.crop_px, settings.data.global_batch) == (1, 224, 256)
        assert (settings.model.backbone, settings.masks[0].ratio, settings.objective.loss) == (
            "vit_base_patch16_224",
            0.5,
            "huber",
        )
        assert (settings.optim.lr, settings.optim.epochs, settings.optim.ema_decay, settings.grid.num_tokens) == (
            1e-4,
            100,
            0.99,
            196,
        )
    assert (
        config.load(str(tmp_path / "alone.yaml"), ["data.train=x.parquet", "data.num_frames=16"]).data.num_frames == 16
    )
    written = yaml.safe_load(config.config_path("imagenet_vit").read_text())
    assert yaml.safe_load(CONFIG).items() <= written.items()


def test_the_commands_run_as_written(index, cifar10, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError,
        match=r"data/imagenet/index.parquet: no such clip index; `python -m data_prep.index FOLDER .*ImageNet's train/",
    ):
        train.main(["--config", "configs/imagenet_vit.yaml", *SMALL])
    assert train.main(["--config", "configs/imagenet_vit.yaml", f"data.train={index}", *SMALL]) == 0
    assert (
        json.loads((tmp_path / "runs" / "imagenet_vit" / "summary.json").read_text())["steps"] == 4
    )  # 2 epochs of 2 batches

    words = ["--model_path", "checkpoints/best.pth", "--dataset", "cifar10", "--eval_mode"]
    with pytest.raises(
        UserError, match=r"checkpoints/best.pth: no such .*; there is runs/imagenet_vit/checkpoints/best.pth"
    ):
        probe.main([*words, "knn"])
    monkeypatch.chdir(tmp_path / "runs" / "imagenet_vit")
    for mode in ("linear_probe", "knn"):
        assert probe.main([*words, mode]) == 0
    for result in json.loads((tmp_path / "runs" / "imagenet_vit" / "probe.json").read_text()):
        assert result["num_clips"]["val"] == 20 and result["data"] == {**result["data"], "num_frames": 1, "crop_px": 32}
        assert (
            result["scores"]["top1"]["value"] > result["chance"]["accuracy"]
            and {"random_init", "pixels"} == result["baselines"].keys()
        )
    assert "cifar10" in capsys.readouterr().out
