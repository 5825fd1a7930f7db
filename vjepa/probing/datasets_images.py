"""Image data sets for probes: digits, CIFAR, ImageNet, and any folder with a folder of images for each class.

digits     scikit-learn's 1,797 handwritten digits of 8x8 px; comes with scikit-learn
cifar10    from torchvision, which downloads it once; also cifar100
imagenet   unpacked, with the folders train/ and val/
FOLDER     train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg alone
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vjepa import files
from vjepa.data.images import ArrayImages, FileImages, Images, handwritten_digits
from vjepa.errors import UserError

_DOWNLOAD_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True)
class ImageSet:
    """Hold a labelled image data set, cut into rows to learn from, to choose on, and to measure on.

    labels: the class of each image. names: the classes, in the order of the data set.
    splits: train, selection, val -> numbers of images, int64 [n], ascending, disjoint.
    data_hash: hex; of pixels and labels, or of a folder of the names and sizes of its files.
    """

    name: str
    images: Images
    labels: tuple[str, ...]
    names: tuple[str, ...]
    splits: dict[str, np.ndarray]
    data_hash: str


def open_images(name: str, data_root: str | Path | None = None) -> ImageSet:
    """Open one of IMAGE_SETS, or the folder of images `name`.

    data_root: the folder that holds CIFAR or ImageNet, or that CIFAR is downloaded to; None: the cache folder of the
    user (ImageNet: required). Raises UserError with one line where it is not there and cannot be downloaded, or where
    no split would have an image.
    """
    if name in IMAGE_SETS:
        return IMAGE_SETS[name](name, Path(data_root) if data_root else None)
    if data_root:
        raise UserError(
            f"--data_root {data_root}: is for {', '.join(IMAGE_SETS)}; a folder of images is named by --dataset alone"
        )
    return _folder(name, Path(name))


def _digits(name: str, data_root: Path | None) -> ImageSet:
    images, digits = handwritten_digits()
    grey = (images * (255 / 16)).round().astype(np.uint8)
    labels = [str(label) for label in digits]
    keys = [hashlib.sha256(picture.tobytes()).digest() for picture in grey]
    pixels = np.repeat(grey[..., None], 3, axis=3)
    splits = hash_split(keys, labels, {"train": 0.6, "selection": 0.2, "val": 0.2})
    names = tuple(sorted(set(labels)))
    return ImageSet(name, ArrayImages(name, pixels), tuple(labels), names, splits, _hash_pixels(pixels, labels))


def _cifar(name: str, data_root: Path | None) -> ImageSet:
    loader = getattr(_torchvision(), name.upper())
    root = data_root or files.cache_folder() / "datasets"
    train, val = (_downloaded(loader, root, is_train) for is_train in (True, False))
    names = tuple(train.classes)
    labels = [names[i] for i in (*train.targets, *val.targets)]
    pixels = np.concatenate([train.data, val.data])
    keys = [hashlib.sha256(picture.tobytes()).digest() for picture in train.data]
    splits = _held_out(keys, labels) | {"val": np.arange(len(train.data), len(pixels))}
    return ImageSet(name, ArrayImages(name, pixels), tuple(labels), names, splits, _hash_pixels(pixels, labels))


def _torchvision() -> Any:
    from torchvision import datasets  # it takes a second, which a clip index need not wait for

    return datasets


def _downloaded(loader: Any, root: Path, is_train: bool) -> Any:
    """Open a torchvision data set in `root`, downloaded where it is not there yet."""
    before = socket.getdefaulttimeout()
    # torchvision sets none, and would wait for ever on a network that swallows packets
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
    try:
        return loader(str(root), train=is_train, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{loader.__name__}: not in {root}, and cannot be downloaded ({reason}); "
            f"unpack {loader.url} there, or name the folder that holds {loader.base_folder}/ with --data_root"
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def _imagenet(name: str, data_root: Path | None) -> ImageSet:
    if data_root is None:
        raise UserError(
            "imagenet: needs an account at https://image-net.org to be downloaded; name the folder that "
            "holds train/ and val/ with --data_root"
        )
    if not ((data_root / "train").is_dir() and (data_root / "val").is_dir()):
        raise UserError(
            f"{data_root}: no folders train/ and val/; unpack ImageNet there, a folder for each class "
            "(torchvision.datasets.ImageNet does it)"
        )
    return _folder(name, data_root)


IMAGE_SETS: Final[dict[str, Callable[[str, Path | None], ImageSet]]] = {
    "digits": _digits,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagenet": _imagenet,
}


def _folder(name: str, root: Path) -> ImageSet:
    """Open train/, val/ and perhaps selection/ with a folder for each class, or folders of classes alone."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder of images; the data sets known by name are {', '.join(IMAGE_SETS)}")
    parts = [part for part in ("train", "selection", "val") if (root / part).is_dir()]
    if parts and not {"train", "val"} <= set(parts):
        raise UserError(
            f"{root}: has {parts[0]}/ but not both train/ and val/; name them so, or give a folder with a "
            "folder for each class"
        )
    paths: list[str] = []
    labels: list[str] = []
    splits: dict[str, np.ndarray] = {}
    for part in parts or ["."]:
        found = _listed(root / part)
        splits[part] = np.arange(len(paths), len(paths) + len(found))
        paths += [path for path, _ in found]
        labels += [label for _, label in found]
    relative = [Path(path).relative_to(root).as_posix() for path in paths]
    keys = [hashlib.sha256(path.encode()).digest() for path in relative]
    if not parts:
        splits = hash_split(keys, labels, {"train": 0.6, "val": 0.2, "selection": 0.2})
    elif "selection" not in parts:
        splits |= _held_out(keys[: len(splits["train"])], labels)
    for part, rows in splits.items():
        if not len(rows):
            raise UserError(f"{root}: too few images to have some in {part}; give 5 or more of each class")
    files = [f"{path} {os.stat(full).st_size}" for path, full in zip(relative, paths, strict=True)]
    data_hash = hashlib.sha256("\n".join(files).encode()).hexdigest()
    return ImageSet(name, FileImages(tuple(paths)), tuple(labels), tuple(sorted(set(labels))), splits, data_hash)


def _listed(root: Path) -> list[tuple[str, str]]:
    """List (path, class) of every image under `root`/CLASS, but what is hidden (`.ipynb_checkpoints`, `._a.jpg`)."""
    try:
        folder = _torchvision().ImageFolder(str(root), allow_empty=True)
    except FileNotFoundError:
        raise UserError(f"{root}: no folders of classes; images lie in {root}/CLASS/") from None
    seen = [
        (path, folder.classes[number])
        for path, number in folder.samples
        if not any(part.startswith(".") for part in Path(path).relative_to(root).parts)
    ]
    if not seen:
        raise UserError(f"{root}: no image in the folders of its classes")
    return seen


def _held_out(keys: Sequence[bytes], labels: Sequence[str]) -> dict[str, np.ndarray]:
    """Cut the first len(keys) images into train and selection: a fifth of each class is held out."""
    return hash_split(keys, labels[: len(keys)], {"train": 0.8, "selection": 0.2})


def hash_split(keys: Sequence[bytes], labels: Sequence[str], shares: dict[str, float]) -> dict[str, np.ndarray]:
    """Give each split its share of each class, in the order of the hashes `keys`: name -> int64 [n], ascending.

    Equal keys, such as those of equal pictures, stay together; the order of the images plays no part.
    """
    members: dict[str, dict[bytes, list[int]]] = {}
    for i, (key, label) in enumerate(zip(keys, labels, strict=True)):
        members.setdefault(label, {}).setdefault(key, []).append(i)
    splits: dict[str, list[int]] = {name: [] for name in shares}
    ends = np.cumsum(list(shares.values()))
    for by_key in members.values():
        for place, key in enumerate(sorted(by_key)):
            split = int(np.searchsorted(ends, (place + 0.5) / len(by_key)))
            splits[list(shares)[split]] += by_key[key]
    return {name: np.array(sorted(rows), dtype=np.int64) for name, rows in splits.items()}


def _hash_pixels(pixels: np.ndarray, labels: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{pixels.shape} {' '.join(labels)}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
