"""Where fine-tuning starts: its settings, of the start and of the command line; the clips; the encoder and the head."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from vjepa import command, config
from vjepa.data.joined_index import open_index
from vjepa.data.plan_rows import Views
from vjepa.data.rand_augment import RandAugment
from vjepa.data.sources import Part, TrainSource
from vjepa.errors import UserError
from vjepa.interop import load, own
from vjepa.interop.meta import Hints
from vjepa.interop.weights import Weights
from vjepa.models.attentive_pool import AttentiveClassifier, AttentivePooler, LinearClassifier
from vjepa.models.encoder import Encoder
from vjepa.probing import datasets
from vjepa.probing.banks import SampleViews
from vjepa.probing.classifying import Network, labels_of, mean_tokens
from vjepa.probing.comparison import TRAINED
from vjepa.probing.datasets import ClipSource, Dataset, ImageSource, Request, Trial, is_images
from vjepa.probing.extractors import Readout, encoder_extractor, untrained, weights_hash
from vjepa.probing.linear_start import linear_start, read_out
from vjepa.probing.protocol import Examples, FittedProbe, ProbeMethod, attention_heads_of, fit_probe
from vjepa.probing.splits import Split, read_splits
from vjepa.probing.store import Store, default_folder
from vjepa.probing.subject import native_data, require
from vjepa.probing.task_classify import Classify
from vjepa.probing.tasks import check_run
from vjepa.run_folder import RunFolder

_PARTS: Final = ("train", "selection", "val")
_RATES: Final = ("clip_fps", "frame_step", "duration_s")
Tree = dict[str, Any]


def resolve(
    tree: Tree, model_path: str | None, dataset: Sequence[str] | None, from_scratch: bool = False
) -> config.FinetuneConfig:
    """Complete settings, as a file and overrides gave them, by the start and the rows of the data set.

    Clips are read as for the start, unless `data` says otherwise; rows are those whose split is train, selection and
    val. Raises UserError.
    """
    wanted = {**_section(tree, "finetune")}
    if model_path is not None:
        wanted["model_path"] = model_path
    if "model_path" not in wanted:
        raise UserError("--model_path: name the start, such as a run folder of vjepa.train")
    wanted |= {"from_scratch": True} if from_scratch else {}
    path = Path(wanted["model_path"])
    require(path)
    run = _section(tree, "run")
    above = RunFolder.above(path)
    stem = (above.path if above else path.resolve()).name.partition(".")[0]
    scratch = "_scratch" if wanted.get("from_scratch") else ""
    run.setdefault("dir", f"runs/{stem}_{wanted.get('label', 'label')}{scratch}")
    kept = RunFolder(Path(str(run["dir"]))).start
    weights = load.read(kept if kept.is_file() else path, hints=_hints(wanted, kept), predictor=False)
    optim = _section(tree, "optim")
    if optim.get("total_steps") is not None:  # it wins over the default of epochs
        optim = {"epochs": None, **optim}
    filled = {
        **tree,
        "optim": optim,
        "run": run,
        "finetune": wanted,
        "data": _data(_section(tree, "data"), native_data(path, weights), dataset),
        "model": _model(_section(tree, "model"), weights.model),
    }
    return config.validate_finetuning(filled, "vjepa.finetune")


def _section(tree: Mapping[str, Any], name: str) -> Tree:
    found = tree.get(name) or {}
    if not isinstance(found, dict):
        raise UserError(f"{name}: is a section of settings, got {found!r}")
    return dict(found)


def _hints(wanted: Mapping[str, Any], kept: Path) -> Hints:
    return Hints() if kept.is_file() else Hints(wanted.get("encoder"))


def _model(given: Mapping[str, Any], model: config.Model) -> Tree:
    """Take the networks of the start; what the backward pass keeps is the one choice that is left."""
    inner = given.get("encoder") or {}
    other = [f"model.{name}" for name in given if name != "encoder"]
    other += [f"model.encoder.{name}" for name in inner if name != "recompute"]
    if other:
        raise UserError(f"{other[0]}: the networks are those of the start; leave it out")
    tree: Tree = model.model_dump(mode="json")
    tree["encoder"] |= {"drop_path": 0.0, **inner}
    return tree


def _data(given: Tree, native: config.Data, dataset: Sequence[str] | None) -> Tree:
    """Say which rows are read, and how."""
    changes: Tree = {"prepare": "none", "mix": [], "labelled": None, "clips_per_video": 1, "clips_per_decode": 1}
    changes["actions"] = None  # of a world model
    if given.keys() & set(_RATES):
        changes |= dict.fromkeys(_RATES)
    tree = {**native.model_dump(mode="json"), **changes, **dict.fromkeys(_PARTS), **given}
    rows = {part: tree[part] if isinstance(tree[part], dict) else {"index": tree[part]} for part in _PARTS}
    index = list(dataset or _paths(rows["train"]))
    if not index:
        raise UserError("--dataset: name a clip index made by data_prep.index, with rows of split train and val")
    if is_images(index):
        return _image_data(tree, given, index)
    splits: set[str | None] | None = None
    for part, source in rows.items():
        place = _paths(source) or index
        if "where" not in source and source.get("index") is None:
            splits = splits or set(open_index(place).column("split"))
            if part not in splits and part != "selection":
                known = ", ".join(sorted(filter(None, splits))) or "none"
                raise UserError(
                    f"{', '.join(place)}: no rows with split={part} (splits: {known}); say which by "
                    f"data.{part}.where.COLUMN=VALUE"
                )
            source = {"where": {"split": part}} if part in splits else None
        tree[part] = source and {**source, "index": place if len(place) > 1 else place[0]}
    return tree


def _paths(source: Tree) -> list[str]:
    """List the indexes that a source names."""
    found = source.get("index") or []
    return [found] if isinstance(found, str) else list(found)


def _image_data(tree: Tree, given: Tree, names: Sequence[str]) -> Tree:
    """Say that the splits of an image data set are read, as clips of one frame. Raises UserError."""
    (name,) = names
    other = next((part for part in _PARTS if given.get(part) not in (None, name, {"index": name})), None)
    if other:
        raise UserError(f"data.{other}: is for clip indexes; {name} has its own labels and splits")
    if given.get("num_frames", 1) != 1:
        raise UserError(f"data.num_frames: {name} has images, which are clips of one frame; leave it out")
    return {**tree, "num_frames": 1, "train": {"index": name}, "val": {"index": name}, "selection": None}


def open_dataset(settings: config.FinetuneConfig) -> Dataset:
    """Open the labelled clips. Raises UserError where a part is missing, or shares clips with another one."""
    data, wanted = settings.data, settings.finetune
    if is_images(data.train.paths):
        dataset = datasets.open_dataset(data.train.paths, data, Request((wanted.label,), data_root=wanted.data_root))
        Classify().check(dataset.labels_of(wanted.label, dataset.trials[0].train), data.train.paths[0], learned=True)
        return dataset
    splits = read_splits(data, [wanted.label], wanted.group)
    parts: dict[str, Split] = vars(splits)
    check_run({wanted.label: Classify()}, parts)
    index = splits.train.index
    for name, split in parts.items():
        if split.index.path != index.path:
            raise UserError(
                f"data.{name}: {split.index.path} is another index than that of data.train; give rows of one"
            )
    labels, groups = index.column(wanted.label), index.column(wanted.group)
    trial = Trial("", *(split.rows for split in parts.values()))
    where = {name: source.where if (source := getattr(data, name)) else "a fifth of train" for name in parts}
    has_groups = any(group is not None for group in groups)
    return Dataset(ClipSource(index, data), {wanted.label: labels}, groups if has_groups else None, (trial,), where)


def classes_of(dataset: Dataset) -> tuple[str, ...]:
    """List the classes that there are to learn, sorted."""
    labels = labels_of(dataset)
    return tuple(sorted({str(labels[i]) for i in dataset.trials[0].train}))


def class_numbers(dataset: Dataset, classes: Sequence[str]) -> torch.Tensor:
    """Number the class of every clip id: int64 [R]; -1 where it has none that is learned."""
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([-1 if label is None else numbers.get(label, -1) for label in labels_of(dataset)])


def training_source(settings: config.FinetuneConfig, dataset: Dataset) -> TrainSource:
    """Give the clips to learn from: labelled rows of data.train that no selection holds out."""
    source = dataset.source
    if not isinstance(source, ClipSource | ImageSource):
        raise TypeError(f"{source} is neither a clip index nor an image data set")
    index = source.index if isinstance(source, ClipSource) else source.images.images
    wanted, parts = settings.finetune, (Part("data.train", index, dataset.trials[0].train),)
    change = RandAugment(wanted.rand_augment_ops, wanted.rand_augment_magnitude, settings.run.seed)
    return TrainSource("data.train", settings.data, parts, change if wanted.rand_augment_ops else None)


def read_start(settings: config.FinetuneConfig) -> Weights:
    """Read the start, or the copy of it that the run has; its predictor stays, for what is exported."""
    kept = settings.run.folder.start
    if kept.is_file():
        return load.read(kept)
    return load.read(settings.finetune.model_path, hints=Hints(settings.finetune.encoder))


def keep_start(weights: Weights, run: RunFolder) -> None:
    """Copy the start into the run, which then needs no other file; a copy that is there stays."""
    if not run.start.is_file():
        own.write(weights, run.start)


def build_encoder(settings: config.FinetuneConfig, weights: Weights) -> Encoder:
    """Make the encoder that learns: that of the start, or of the same shape at random weights of run.seed."""
    encoder = replace(weights, model=settings.model).build_encoder()
    return untrained(encoder, settings.run.seed) if settings.finetune.from_scratch else encoder


def build_head(
    settings: config.FinetuneConfig, width: int, classes: Sequence[str]
) -> LinearClassifier | AttentiveClassifier:
    """Make the head at small random weights of run.seed."""
    wanted = settings.finetune
    heads = wanted.head_heads or attention_heads_of(width)
    if width % heads:
        raise UserError(f"finetune.head_heads: {heads} do not divide the {width} features; give a divisor")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        head: LinearClassifier | AttentiveClassifier
        if wanted.head == "attentive":
            head = AttentiveClassifier(AttentivePooler(width, heads, depth=wanted.head_depth), len(classes))
        else:
            head = LinearClassifier(width, len(classes))
            nn.init.trunc_normal_(head.linear.weight, std=0.02)
            nn.init.zeros_(head.linear.bias)
    head.classes = tuple(classes)
    return head


def frozen_features(shown: bool) -> Store:
    """Open what keeps features of the frozen start: where vjepa.probe keeps its own, so that each is made once."""
    folder = default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    bar = partial(command.progress_bar, shown=shown, desc="features", leave=False)
    return Store(folder, "fp16", partial(tqdm.write, file=sys.stderr) if shown else lambda line: None, bar)


def start_head(
    settings: config.FinetuneConfig, network: Network, dataset: Dataset, classes: Sequence[str], shown: bool
) -> None:
    """Set the head of `network` to where a linear read-out of its frozen encoder stands, as chosen on selection."""
    trial, head = dataset.trials[0], network.head
    found: nn.Module | None
    if isinstance(head, AttentiveClassifier):
        parts = trial.train, trial.selection
        train, selection = (mean_tokens(network, dataset, ids, settings.test.batch) for ids in parts)
        task = Classify()
        targets = task.targets(train[1])
        found = linear_start(head.pooler, train[0], read_out(task, train[0], targets, *selection), settings.run.seed)
        names = targets.names.tolist()
    else:
        probe = _linear_probe(settings, network, dataset, shown)
        found, names = probe.head, probe.names.tolist()
    state = found.state_dict() if found else {}
    places = [list(classes).index(name) for name in names]
    for key in ("linear.weight", "linear.bias"):  # a class of which no clip could be read stays at 0
        wide = torch.zeros(len(classes), *state[key].shape[1:])
        wide[places] = state[key].float()
        state[key] = wide
    head.load_state_dict(state)


def _linear_probe(settings: config.FinetuneConfig, network: Network, dataset: Dataset, shown: bool) -> FittedProbe:
    """Fit the linear probe of vjepa.probe to the frozen encoder, on train and selection."""
    encoder, trial = network.encoder, dataset.trials[0]
    readout = Readout((encoder.depth - 1,), ("pooled",), network.device, network.dtype, channels=settings.data.channels)
    extractors = {TRAINED: encoder_extractor(encoder, weights_hash(encoder), readout)}
    samples = SampleViews(dataset.source, np.union1d(trial.train, trial.selection), Views())
    bank = frozen_features(shown).banks(samples, extractors, settings.test.batch)[TRAINED]["pooled"]
    train = Examples.of(bank, trial.train, labels_of(dataset), "train")
    selection = Examples.of(bank, trial.selection, labels_of(dataset), "selection")
    return fit_probe(ProbeMethod("linear"), train, selection, [])
