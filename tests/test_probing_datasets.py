"""Image data sets: what is in them, how they are cut, and how they reach an encoder."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from data_prep.index import build_index
from vjepa import config, probe
from vjepa.data.augment import Crop, crop_resize
from vjepa.data.images import ReadImages
from vjepa.data.plan_rows import RowPlan, Views
from vjepa.data.reader import Reader
from vjepa.errors import UserError
from vjepa.probing.datasets_images import hash_split, open_images
from vjepa.training.pretraining import train


@pytest.fixture
def folder(tmp_path):
    """folder("a/train/cat", 5, ...) writes so many noisy pictures of 12x20 px into each folder, and returns their
    common root.
    """

    def make(*places):
        rng = np.random.default_rng(0)
        for place, count in places:
            (tmp_path / place).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(256, size=(12, 20, 3), dtype=np.uint8)).save(tmp_path / place / f"{i}.png")
        return tmp_path

    return make


@pytest.mark.fast
def test_digits_are_cut_once_and_for_all():
    digits = open_images("digits")
    assert len(digits.images) == len(digits.labels) == 1797 and digits.names == tuple("0123456789")
    sizes = {name: len(rows) for name, rows in digits.splits.items()}
    assert sizes == {"train": 1078, "selection": 360, "val": 359}
    assert sorted(np.concatenate(list(digits.splits.values()))) == list(range(1797))
    assert digits.splits["val"][:5].tolist() == [0, 1, 4, 7, 14]
    picture = digits.images.read(0)
    assert (
        picture.shape == (8, 8, 3)
        and picture.dtype == np.uint8
        and picture.max() > 230
        and (picture == picture[..., :1]).all()
    )
    for rows in digits.splits.values():  # every class in its share
        counts = np.unique([digits.labels[i] for i in rows], return_counts=True)[1]
        assert len(counts) == 10 and counts.max() - counts.min() <= 8
    assert digits.data_hash == open_images("digits").data_hash


@pytest.mark.fast
def test_a_cut_depends_on_the_pictures_and_not_on_their_order_and_keeps_equal_ones_together():
    rng = np.random.default_rng(0)
    keys = [bytes([value]) * 8 for value in rng.integers(60, size=200)]
    labels = [str(key[0] % 3) for key in keys]
    shares = {"train": 0.6, "selection": 0.2, "val": 0.2}
    splits = hash_split(keys, labels, shares)
    keys_of = {name: {keys[i] for i in rows} for name, rows in splits.items()}
    assert (
        not keys_of["train"] & keys_of["val"]
        and not keys_of["train"] & keys_of["selection"]
        and not keys_of["val"] & keys_of["selection"]
    )
    order = rng.permutation(200)
    again = hash_split([keys[i] for i in order], [labels[i] for i in order], shares)
    assert {name: sorted(order[rows].tolist()) for name, rows in again.items()} == {
        name: rows.tolist() for name, rows in splits.items()
    }


def reader_of(found, rows, crop_px, batch, num_crops=1):
    data = config.Data(train="x", num_frames=1, crop_px=crop_px)
    return Reader(RowPlan(found.images, rows, data, batch, Views(1, num_crops)), ReadImages(found.images))


@pytest.mark.fast
def test_images_become_clips_of_one_frame():
    digits = open_images("digits")
    rows = digits.splits["val"][:10]
    reader = reader_of(digits, rows, 32, 4)
    assert len(reader.plan) == 3
    batches = [reader[k] for k in range(3)]
    assert torch.cat([batch.clip_ids for batch in batches]).tolist() == rows.tolist()
    video = torch.cat([batch.video for batch in batches])
    assert video.shape == (10, 3, 1, 32, 32) and video.dtype == torch.uint8
    assert torch.equal(
        video[3], crop_resize(digits.images.read(int(rows[3]))[None], Crop((0, 0, 8, 8), (32, 32)), (32, 32))
    )
    assert reader.plan.batch_bytes == batches[0].video.numel()
    assert torch.equal(pickle.loads(pickle.dumps(reader))[1].video, batches[1].video)  # noqa: S301


@pytest.mark.fast
def test_crops_lie_side_by_side_and_a_damaged_image_is_named(folder):
    root = folder(("train/cat", 3), ("train/dog", 3), ("val/cat", 1), ("val/dog", 1))
    (root / "val/dog/0.png").write_bytes(b"no picture")
    found = open_images(str(root))
    batch = reader_of(found, found.splits["val"], 12, 8, num_crops=2)[0]
    cat, dog = found.splits["val"].tolist()
    assert batch.clip_ids.tolist() == [cat, cat]
    picture = torch.from_numpy(found.images.read(cat)).permute(2, 0, 1)
    assert torch.equal(batch.video[0, :, 0], picture[:, :, :12]) and torch.equal(
        batch.video[1, :, 0], picture[:, :, 8:]
    )
    assert [row for row, _ in batch.failures] == [dog] and "cannot identify image" in batch.failures[0][1]
    (root / "val/cat/0.png").write_bytes(b"no picture")
    empty = reader_of(found, found.splits["val"], 12, 8)[0]
    assert empty.video.shape == (0, 3, 1, 12, 12) and len(empty.failures) == 2


@pytest.mark.fast
def test_a_folder_with_train_and_val_keeps_them_and_selection_is_held_out_of_train(folder):
    root = folder(("train/cat", 10), ("train/dog", 10), ("val/cat", 2), ("val/eel", 1))
    found = open_images(str(root))
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 16, "selection": 4, "val": 3}
    assert found.names == ("cat", "dog", "eel")
    assert all("/train/" in found.images.paths[i] for name in ("train", "selection") for i in found.splits[name])
    assert all("/val/" in found.images.paths[i] for i in found.splits["val"])
    for path, label in zip(found.images.paths, found.labels, strict=True):
        assert f"/{label}/" in path
    Image.new("RGB", (9, 9)).save(root / "val/eel/0.png")
    assert open_images(str(root)).data_hash != found.data_hash


@pytest.mark.fast
def test_a_folder_of_classes_is_cut_by_the_names_of_its_files(folder, tmp_path_factory):
    root = folder(("cat", 10), ("dog", 20))
    found = open_images(str(root))
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 18, "selection": 6, "val": 6}
    for hidden in (".ipynb_checkpoints/0.png", "cat/._0.png"):
        (root / hidden).parent.mkdir(exist_ok=True)
        shutil.copy(root / "cat/0.png", root / hidden)
    assert open_images(str(root)).names == ("cat", "dog") and open_images(str(root)).data_hash == found.data_hash
    moved = shutil.copytree(root, tmp_path_factory.mktemp("moved") / "x")
    assert {name: rows.tolist() for name, rows in open_images(str(moved)).splits.items()} == {
        name: rows.tolist() for name, rows in found.splits.items()
    }
    assert open_images(str(moved)).data_hash == found.data_hash


@pytest.mark.fast
def test_imagenet_is_such_a_folder(folder):
    root = folder(("train/n01", 5), ("train/n02", 5), ("val/n01", 1), ("val/n02", 1))
    assert {name: len(rows) for name, rows in open_images("imagenet", root).splits.items()} == {
        "train": 8,
        "selection": 2,
        "val": 2,
    }


@pytest.mark.fast
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_keeps_its_test_set(monkeypatch, tmp_path, name):
    class Fake:
        classes = ("plane", "car")

        def __init__(self, root, train, download):
            rng = np.random.default_rng(train)
            self.data = rng.integers(256, size=(40 if train else 10, 32, 32, 3), dtype=np.uint8)
            self.targets = rng.integers(2, size=len(self.data)).tolist()

    monkeypatch.setattr(datasets, name.upper(), Fake)
    found = open_images(name, tmp_path)
    assert found.splits["val"].tolist() == list(range(40, 50)) and found.names == ("plane", "car")
    assert (
        sorted([*found.splits["train"], *found.splits["selection"]]) == list(range(40))
        and 7 <= len(found.splits["selection"]) <= 9
    )
    np.testing.assert_array_equal(found.images.read(42), Fake("", False, True).data[2])


@pytest.mark.fast
def test_what_cannot_be_downloaded_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: (_ for _ in ()).throw(OSError("no route to host\n")))
    with pytest.raises(
        UserError, match=r"CIFAR10: not in .*no route to host.*unpack https.*cifar-10-batches-py/ with --data_root"
    ) as error:
        open_images("cifar10", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.fast
def test_bad_folders_are_one_line(folder, tmp_path):
    root = folder(("half/train/cat", 3), ("flat", 3), ("few/cat", 1), ("few/dog", 1), ("empty/cat", 0))
    for name, data_root, message in (
        ("imagenet", None, "--data_root"),
        ("imagenet", root, "no folders train/ and val/"),
        (root / "nowhere", None, "no such folder of images; the data sets known by name are digits, cifar10"),
        (root / "half", None, "has train/ but not both"),
        (root / "flat", None, "no folders of classes"),
        (root / "empty", None, "no image in the folders"),
        (root / "few", None, "too few images to have some in"),
        (root / "few", root, "is for digits, cifar10"),
    ):
        with pytest.raises(UserError, match=message) as error:
            open_images(str(name), data_root)
        assert "\n" not in str(error.value)


@pytest.fixture
def tiny_run(folder, tmp_path):
    """A run of three steps on still images."""
    build_index(folder(("stills", 8)) / "stills", tmp_path / "stills.parquet", workers=1, progress=False)
    tree = {
        "run": {"dir": str(tmp_path / "run"), "device": "cpu", "precision": "fp32"},
        "data": {
            "train": str(tmp_path / "stills.parquet"),
            "num_frames": 1,
            "crop_px": 16,
            "global_batch": 4,
            "workers": 0,
        },
        "model": {
            "patch_px": 8,
            "encoder": {"width": 24, "depth": 2, "heads": 2},
            "predictor": {"width": 12, "depth": 1, "heads": 2},
        },
        "masks": [{"kind": "random", "ratio": 0.5}],
        "optim": {"total_steps": 3},
    }
    train(config.validate(tree, "test"))
    return tmp_path / "run"


@pytest.mark.parametrize("mode", ["knn", "linear_probe"])
def test_the_probe_command_measures_a_trained_run_on_digits(tiny_run, tmp_path, mode):
    out = tmp_path / "probe.json"
    words = [
        "--model_path",
        str(tiny_run),
        "--dataset",
        "digits",
        "--eval_mode",
        mode,
        "--cache",
        str(tmp_path / "cache"),
        "--out",
        str(out),
    ]
    assert probe.main(words) == 0
    (result,) = json.loads(out.read_text())
    assert result["num_clips"] == {"train": 1078, "selection": 360, "val": 359}
    assert result["dataset"] == "digits" and set(result["baselines"]) == {"random_init", "pixels"}
    assert (
        result["accuracy"] > 0.5 > result["chance"]["accuracy"]
        and result["baselines"]["pixels"]["top1"]["value"] > 0.95
    )
    assert len(result["scores"]["per_class"]) == 10 and result["scores"]["top5"]["value"] >= result["accuracy"]


@pytest.mark.parametrize("words", [["imagenet"], ["imagenet", "--data_root", "/nowhere"], ["/nowhere"]])
def test_the_probe_command_refuses_missing_data_with_one_line(tiny_run, words):
    with pytest.raises(UserError) as error:
        probe.main(["--model_path", str(tiny_run), "--eval_mode", "knn", "--dataset", *words])
    assert "\n" not in str(error.value)
