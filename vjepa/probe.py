"""Measure a frozen encoder by a probe, beside its baselines, on a clip index or an image data set.

python -m vjepa.probe --model_path runs/demo --dataset clips.parquet --eval_mode attentive
python -m vjepa.probe --model_path runs/demo --dataset actions.parquet --eval_mode attentive --anticipation_s 1
--rollout both
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vjepa import command
from vjepa.errors import UserError

if TYPE_CHECKING:
    import torch

    from vjepa.config import Data
    from vjepa.data.time_order import Time
    from vjepa.models.encoder import Encoder
    from vjepa.probing.anticipation import RollOut
    from vjepa.probing.banks import Extractor
    from vjepa.probing.comparison import Comparison
    from vjepa.probing.datasets import Dataset
    from vjepa.probing.extractors import Readout
    from vjepa.probing.protocol import Mode, ProbeMethod

# the name on the command line -> the name in the code
MODES: Final[dict[str, Mode]] = {"knn": "knn", "linear_probe": "linear", "attentive": "attentive"}
BASELINES: Final = (
    "random_init",
    "pixels",
    "motion_energy",
    "shuffled_frames",
    "reversed_frames",
    "untrained_predictor",
)
# a result replaces an older one that agrees in these; older results of other versions lack those that `_save` adds
KEY: Final = ("dataset", "eval_mode", "label", "encoder")
# what a head needs to be used again: the features that it reads, and what its answers mean
OF_HEADS: Final = (*KEY, "fold", "model_path", "weights_hash", "levels", "data", "anticipation_s", "rollout")
_PUBLISHED_FRAMES: Final = 16  # of a clip of every published video probe but anticipation
# of the baselines that show clips to the trained encoder in another order
_ORDERS: Final[dict[str, Time]] = {"shuffled_frames": "shuffled", "reversed_frames": "reversed"}
_PUBLISHED_PX: Final = {"rotation": 224, "vjepa2": 256}


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    from vjepa.interop import probes  # after --help, which must not wait for it
    from vjepa.probing.comparison import TRAINED
    from vjepa.reporting import pictures, tables

    run = _run_of(Path(options.model_path))
    path = Path(options.out or Path(run or ".", "probe.json"))
    _results(path)  # a file that cannot take the result should show before the work
    measured = measure(options)
    if measured is None:  # number 0 goes on with the features that this process helped to make
        return 0
    dataset, comparison, result = measured
    stem = path.with_name(_stem(path, options, result["pool"]))
    trained = comparison.kinds[TRAINED]
    result["pictures"] = pictures.save_probe_pictures(stem, trained.scores, dataset.source, options.batch)
    chosen = [one.head for one in trained.fitted if one.head]
    result["chosen_heads"] = str(stem.with_name(f"{stem.name}.safetensors")) if chosen else None
    if chosen:
        probes.write_probes(Path(result["chosen_heads"]), chosen, {name: result[name] for name in OF_HEADS})
    _save(path, result)
    print(tables.probe_table(result))
    print(f"-> {path}")
    return 0


def _stem(path: Path, options: argparse.Namespace, pool: str | None) -> str:
    ahead = "" if options.anticipation_s is None else f"_{options.anticipation_s:g}s_ahead_{options.rollout}"
    pooled = "" if pool in (None, "mean") else f"_{pool.replace(':', '')}"
    return f"{path.stem}_{options.eval_mode}_{options.label}{pooled}{ahead}"


def measure(options: argparse.Namespace) -> tuple[Dataset, Comparison, dict[str, Any]] | None:
    """What was measured, and the result that goes into probe.json, from the options of the command line. Raises
    UserError with one line.

    Under torchrun the processes share the passes over the clips, then number 0 alone learns and measures; the others
    return None.
    """
    from vjepa import ranks
    from vjepa.data.plan_rows import Passes, Views
    from vjepa.probing import anticipation, comparison, datasets, entries, extractors, store
    from vjepa.probing.datasets_images import IMAGE_SETS

    path = Path(options.model_path)
    if not path.exists():
        runs = (
            [] if path.is_absolute() else sorted(Path("runs").glob(f"*/{path}"), key=lambda file: file.stat().st_mtime)
        )
        raise UserError(
            f"{path}: no such run folder, checkpoint or weights file" + (f"; there is {runs[-1]}" if runs else "")
        )
    encoder, which = _read_encoder(options)
    data, device, dtype = how_to_read(options, encoder)
    where = {name: getattr(options, name) for name in ("train", "selection", "val")}
    dataset = datasets.open_dataset(
        options.dataset, data, datasets.Request(options.label, options.group, options.fold, where, options.data_root)
    )
    if isinstance(dataset.source, datasets.ImageSource):
        data = data.model_copy(update={"num_frames": 1})
    if options.anticipation_s is not None:
        dataset = anticipation.ahead(dataset, options.anticipation_s)
    reading = _reading(options, encoder, data, device, dtype)
    method = _method(options, reading)
    roll_out = _roll_out(options, encoder.to(device), data)
    sha256 = extractors.weights_hash(encoder)
    with ExitStack() as stack:
        mine = stack.enter_context(ranks.join())
        if options.no_cache and mine.num > 1:
            raise UserError(
                "--no-cache: processes that share the work share a folder of features; name it with --cache"
            )
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory())
            if options.no_cache
            else options.cache or store.default_folder()
        )
        _make_folder(folder)
        features = store.Store(
            folder,
            options.feature_dtype,
            _say if mine.rank == 0 else lambda line: None,
            _watch("features", mine.rank == 0),
            mine,
        )
        looks = comparison.Looks(
            Passes(options.train_passes, options.seed) if options.train_passes else Views(),
            Views(options.num_clips, options.num_crops),
        )
        made = _recipes(options, encoder, roll_out, sha256, reading, single_frames=data.num_frames == 1)
        if mine.rank:
            comparison.features(dataset, made, looks, features, options.batch)
            return None
        found = comparison.compare(dataset, made, method, looks, features, options.batch, _watch("heads"))
        result = {
            "dataset": options.dataset if options.dataset in IMAGE_SETS else str(Path(options.dataset).absolute()),
            "eval_mode": options.eval_mode,
            "label": options.label,
            "encoder": which,
            "fold": options.fold,
            "anticipation_s": options.anticipation_s,
            "rollout": options.rollout if options.anticipation_s is not None else None,
            "time_slots": roll_out.time_slots(data) if roll_out else None,
            "model_path": str(path.absolute()),
            "step": _step(path),
            **entries.to_dict(found, method, dataset.source.uri),
            **entries.unreadable(f"{dataset.source.uri(clip_id)}: {reason}" for clip_id, reason in found.failures),
            "views": {"learn": str(looks.learn), "test": str(looks.test)},
            "data": {
                name: getattr(data, name) for name in ("num_frames", "clip_fps", "frame_step", "duration_s", "crop_px")
            },
            "levels": options.levels,
            "pool": None if method.mode == "attentive" else str(reading.pooling),
            "data_hash": dataset.data_hash,
            "weights_hash": sha256,
            "where": dataset.where,
        }
    return dataset, found, result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vjepa.probe",
        description="Measure a frozen encoder by a probe, beside its baselines.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    whole, count = command.number(int, least=0), command.number(int, least=1)
    from_0, above_0 = command.number(float, least=0), command.number(float, above=0)

    def add(name: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", *([f"--{name.replace('_', '-')}"] if "_" in name else []), **options)

    add(
        "model_path",
        required=True,
        metavar="PATH",
        help="run or checkpoint folder, exported or published file, Hugging Face folder",
    )
    add(
        "dataset",
        required=True,
        metavar="DATA",
        help="clip index made by data_prep.index; digits, cifar10, cifar100, imagenet; or a folder of images",
    )
    add(
        "eval_mode",
        required=True,
        choices=list(MODES),
        help="k nearest neighbours; a linear head; or heads that attend to all tokens",
    )
    add("encoder", choices=command.ENCODERS, help=command.ENCODER_HELP)
    add("label", default="label", metavar="COLUMN", help="column to predict (default: label)")
    add(
        "group",
        default="group",
        metavar="COLUMN",
        help="column whose equal rows stay together in selection and in the bootstrap (default: group)",
    )
    add("train", metavar="COL=V[,V2]", help="rows to learn from (default: split=train)")
    add(
        "selection",
        metavar="COL=V[,V2]",
        help="rows to choose settings on (default: split=selection if there are any, else a fifth of train)",
    )
    add("val", metavar="COL=V[,V2]", help="rows to measure on (default: split=val)")
    add(
        "fold",
        metavar="COLUMN",
        help="cross-validation: measure on the rows of each value in turn, learn and choose on the others",
    )
    add("data_root", metavar="DIR", help="folder of an image data set that is known by name")
    add("num_frames", type=count, help="frames of a clip (default: as the run was trained; 16 for other encoders)")
    add(
        "clip_fps",
        type=above_0,
        help="their rate (default: as the run was trained; the whole video for other encoders)",
    )
    add("frame_step", type=count, help="every n-th frame instead")
    add("crop_px", type=count, help="side of the crop (default: as the encoder was trained)")
    add(
        "num_clips",
        type=count,
        default=1,
        help="clips of a video to choose and measure on, evenly in time; their answers are averaged (default: 1)",
    )
    add("num_crops", type=count, default=1, help="crops of each, evenly along the longer side (default: 1)")
    add(
        "train_passes",
        type=whole,
        default=0,
        metavar="N",
        help="random clips and crops of each video to learn from (default: 0, the central one)",
    )
    add(
        "levels",
        default="last",
        help="blocks whose features are read: last, quarters, or numbers such as 5,11 (default: last)",
    )
    add(
        "pool", default="mean", metavar="HOW",
        help="k-NN and linear probe, which read: the mean of all tokens; slots, the mean of each time slot; grid "
        "or grid:G,\n"
        "of each of 4x4 or GxG cells of each time slot; or all, every token in its place (default: mean)",
    )  # fmt: skip
    add("baselines", default="all", metavar="NAMES", help=f"all, none, or some of {','.join(BASELINES)} (default: all)")
    add(
        "anticipation_s", type=from_0, metavar="S",
        help="action anticipation: each row of the index ends where an action starts (in a manifest for "
        "data_prep.index:\n"
        "end_s, and start_s as far back as may be seen, or none); the clip ends so many seconds before it",
    )  # fmt: skip
    add(
        "rollout", default="none", choices=["none", "predictor", "both"],
        help="anticipation: tokens that the predictor expects to follow, until the action starts, beside those of the\n"
        "encoder; both: measured with and without (default: none)",
    )  # fmt: skip
    add(
        "k",
        metavar="K[,K2]",
        type=command.numbers(count),
        help="k-NN: neighbours to choose from (default: 1,5,10,20,50)",
    )
    add("head", default="logistic", choices=["logistic", "ridge"], help="linear probe: the loss (default: logistic)")
    add(
        "batch_norm",
        default="yes",
        choices=["yes", "no"],
        help="linear probe: features standardised by train (default: yes)",
    )
    add(
        "depth",
        type=int,
        default=1,
        choices=[1, 2, 3, 4],
        help="attentive: 1 for cross-attention alone, 4 with 3 blocks before it (default: 1)",
    )
    add(
        "probe_heads",
        type=count,
        help="attentive: attention heads (default: 16, or the next fewer that divide the width)",
    )
    add(
        "lr",
        metavar="X[,Y]",
        type=command.numbers(above_0),
        help="attentive: learning rates to choose from (default: 5e-3,3e-3,1e-3,3e-4,1e-4)",
    )
    add(
        "weight_decay",
        metavar="X[,Y]",
        type=command.numbers(from_0),
        help="attentive: weight decays to choose from (default: .01,.1,.4,.8)",
    )
    add("epochs", type=count, default=20, help="attentive: passes over train (default: 20)")
    add("probe_batch", type=count, help="attentive: clips per step (default: 256, or a sixteenth of train)")
    add("seed", type=whole, default=0, help="attentive: initial weights and order; augmented passes (default: 0)")
    add("batch", type=count, default=64, help="views per forward pass of the encoder (default: 64)")
    add("workers", type=whole, help="processes that decode (default: as the run was trained, 2)")
    add("device", choices=["auto", "cpu", "cuda", "mps"], help="default: as the run was trained, auto")
    add("precision", choices=["auto", "fp32", "bf16"], help="default: as the run was trained, auto")
    add("cache", metavar="DIR", help="where features are kept (default: $XDG_CACHE_HOME/vjepa/features)")
    parser.add_argument("--no-cache", "--no_cache", action="store_true", help="keep no features after the command")
    add("feature_dtype", default="fp16", choices=["fp16", "bf16"], help="of stored features (default: fp16)")
    add(
        "out",
        metavar="FILE",
        help="where the result goes (default: RUN/probe.json, or probe.json here); results of other probes in it "
        "are kept",
    )
    return parser


def _read_encoder(options: argparse.Namespace) -> tuple[Encoder, str]:
    """The frozen encoder, and which it is, `encoder` or `target_encoder`."""
    from vjepa.interop import load, meta

    weights = load.read(options.model_path, hints=meta.Hints(options.encoder), predictor=False)
    return weights.build_encoder(), weights.which


def how_to_read(options: argparse.Namespace, encoder: Encoder) -> tuple[Data, torch.device, torch.dtype]:
    """How clips are read, and where and in which precision the encoder runs: as its run was trained, else as it was
    published; options win.
    """
    from pydantic import ValidationError

    from vjepa import config, device

    run = _run_of(Path(options.model_path))
    trained = config.load(str(run / "config.yaml")) if run else None
    data = (
        trained.data
        if trained
        else config.Data(
            train=config.Source(index=""), num_frames=_native_frames(encoder), crop_px=_native_px(options, encoder)
        )
    )
    given = {
        name: getattr(options, name)
        for name in ("num_frames", "clip_fps", "frame_step", "crop_px", "workers")
        if getattr(options, name) is not None
    }
    if {"clip_fps", "frame_step"} & given.keys():
        given = {"clip_fps": None, "frame_step": None, "duration_s": None, **given}
    try:
        data = config.Data.model_validate({**data.model_dump(), "prepare": "none", "mix": [], **given})
        encoder.model.grid(data.num_frames, data.crop_px, data.crop_px)
    except (ValidationError, config.ConfigError) as error:
        words = " ".join(f"--{name} {value}" for name, value in given.items() if value is not None)
        problem = config.explain(error) if isinstance(error, ValidationError) else error
        raise UserError(f"{words or options.model_path}: {problem}") from None
    if data.crop_px % encoder.model.patch_px:
        raise UserError(f"--crop_px {data.crop_px}: is not a whole number of patches of {encoder.model.patch_px} px")
    where = trained.run if trained else config.Run()
    where = where.model_copy(
        update={name: getattr(options, name) for name in ("device", "precision") if getattr(options, name)}
    )
    return data, *device.pick(where)


def _native_frames(encoder: Encoder) -> int:
    model = encoder.model
    if model.positions == "sincos_2d":
        return 1
    return model.sincos_grid[0] * model.tubelet_frames if model.sincos_grid else _PUBLISHED_FRAMES


def _native_px(options: argparse.Namespace, encoder: Encoder) -> int:
    """Of a Hugging Face folder what its config says; else what the positions tell."""
    model, config_path = encoder.model, Path(options.model_path, "config.json")
    if config_path.is_file():
        settings = json.loads(config_path.read_text(encoding="utf-8"))
        size = settings.get("crop_size", settings.get("image_size"))
        if isinstance(size, int):
            return size
    cells = model.sincos_grid[1] if model.sincos_grid else model.rope_grid
    return cells * model.patch_px if cells else _PUBLISHED_PX[model.rope]


def _reading(
    options: argparse.Namespace, encoder: Encoder, data: Data, device: torch.device, dtype: torch.dtype
) -> Readout:
    """What is read of the encoder. Raises UserError for blocks that it does not have, and for a pooling that its tokens
    or the probe do not have.
    """
    from vjepa.models.pooling import Pooling
    from vjepa.probing import extractors

    pooling = Pooling.parse(options.pool, encoder.grid(data.num_frames, data.crop_px, data.crop_px))
    attentive = MODES[options.eval_mode] == "attentive"
    if attentive and pooling.kind != "mean":
        raise UserError(f"--pool {options.pool}: attentive heads read all tokens in their places; leave it out")
    if options.rollout != "none" and pooling.kind != "mean":
        raise UserError(
            f"--pool {options.pool}: a roll-out has time slots of its own, so only means are read beside each "
            "other; leave --pool or --rollout out"
        )
    return extractors.Readout(
        extractors.levels(encoder, options.levels),
        ("tokens", "pooled") if attentive else ("pooled",),
        device,
        dtype,
        pooling,
    )


def _method(options: argparse.Namespace, reading: Readout) -> ProbeMethod:
    from vjepa.probing import knn, sweep
    from vjepa.probing.protocol import ProbeMethod

    grid = sweep.Grid(
        options.lr or sweep.LEARNING_RATES,
        options.weight_decay or sweep.WEIGHT_DECAYS,
        options.epochs,
        options.probe_batch,
        options.seed,
    )
    return ProbeMethod(
        mode=MODES[options.eval_mode],
        choices=options.k or knn.K_CHOICES,
        head=options.head,
        batch_norm=options.batch_norm == "yes",
        pooling=reading.pooling,
        depth=options.depth,
        attention_heads=options.probe_heads,
        grid=grid,
        device=reading.device,
        dtype=reading.dtype,
    )


def _roll_out(options: argparse.Namespace, encoder: Encoder, data: Data) -> RollOut | None:
    """What --rollout asks for, on the device of `encoder`. Raises UserError for a model without a predictor, or one
    that cannot reach so far.
    """
    from vjepa import config, load_predictor
    from vjepa.probing.anticipation import RollOut

    if options.rollout == "none":
        return None
    if options.anticipation_s is None:
        raise UserError(f"--rollout {options.rollout}: says what follows until an action; give --anticipation_s too")
    try:
        predictor = load_predictor(options.model_path, which=options.encoder)
    except UserError as error:
        raise UserError(
            f"{error}; --rollout {options.rollout} needs one: name a run, checkpoint or training file, or "
            "give --rollout none"
        ) from None
    run = _run_of(Path(options.model_path))
    trained_frames = config.load(str(run / "config.yaml")).data.num_frames if run else _native_frames(encoder)
    device = next(encoder.parameters()).device
    return RollOut.of(encoder, predictor.to(device), data, options.anticipation_s, trained_frames)


def _recipes(
    options: argparse.Namespace,
    encoder: Encoder,
    roll_out: RollOut | None,
    sha256: str,
    reading: Readout,
    *,
    single_frames: bool,
) -> dict[str, Extractor]:
    """Kind of features -> how clips become them; `trained` first. Single images have no order of time.

    With --rollout predictor, whatever uses the encoder has the roll-out too; with both, one kind of its own has it.
    """
    from vjepa import config
    from vjepa.probing import extractors
    from vjepa.probing.comparison import ROLLOUT, TRAINED

    names = (
        BASELINES
        if options.baselines == "all"
        else ()
        if options.baselines == "none"
        else tuple(options.baselines.split(","))
    )
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise UserError(
            f"--baselines {options.baselines}: no baseline {unknown[0]!r}; give all, none, or some of "
            f"{','.join(BASELINES)}"
        )
    if single_frames:
        names = tuple(name for name in names if name in ("random_init", "pixels"))
    run = _run_of(Path(options.model_path))
    seed = config.load(str(run / "config.yaml")).run.seed if run else 0
    everywhere = roll_out if options.rollout == "predictor" else None

    def recipe(time: Time = "forward") -> Extractor:
        if everywhere:
            return everywhere.extractor(reading, time)
        return extractors.encoder_extractor(encoder.to(reading.device), sha256, reading, time)

    made = {TRAINED: recipe()}
    if options.rollout == "both" and roll_out:
        made[ROLLOUT] = roll_out.extractor(reading)
    for name in names:
        if name in extractors.PLAIN:
            made[name] = extractors.plain_extractor(name)
        elif name == "random_init":
            if everywhere:
                untrained = replace(
                    everywhere.with_untrained_predictor(),
                    encoder=extractors.untrained(encoder, seed).to(reading.device),
                )
                made[name] = untrained.extractor(reading)
            else:
                made[name] = extractors.untrained_extractor(encoder, reading, seed)
        elif name == "untrained_predictor":
            if roll_out:
                made[name] = roll_out.with_untrained_predictor().extractor(reading)
        else:
            made[name] = recipe(_ORDERS[name])
    return made


def _run_of(path: Path) -> Path | None:
    """The run folder that `path` is, or lies in as a checkpoint or a file of one."""
    path = path.resolve()
    return next(
        (
            folder
            for folder in (path, *path.parents[:3])
            if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()
        ),
        None,
    )


def _step(path: Path) -> int | None:
    """The step of a checkpoint, `checkpoints/step-00000123`, or of the newest of a run; None for an encoder of another
    kind.
    """
    run = _run_of(path)
    if run is None:
        return None
    resolved = path.resolve() if path.resolve() != run else (run / "checkpoints" / "latest").resolve()
    names = [name.removeprefix("step-") for name in resolved.parts if name.startswith("step-")]
    return int(names[-1]) if names and names[-1].isdigit() else None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: features cannot be kept there ({error.strerror}); name another folder with --cache, "
            "or give --no-cache"
        ) from None


def _say(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)  # above a bar, not into it


def _watch(what: str, shown: bool = True) -> Any:
    def watch(batches: Iterable[Any]) -> Iterable[Any]:
        bar: Iterable[Any] = command.progress_bar(batches, shown=shown, desc=what, leave=False)
        return bar

    return watch


def _results(path: Path) -> list[dict[str, Any]]:
    """The results in the file `path`, none where there is no such file. Raises UserError for a file of another kind."""
    if not path.exists():
        return []
    try:
        results: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        if all(set(KEY) <= set(result) for result in results):
            return results
    except (OSError, ValueError, TypeError):
        pass
    raise UserError(f"{path}: not a list of probe results; move it away, or give another --out")


def _save(path: Path, result: dict[str, Any]) -> None:
    """Put `result` into the list in the file `path`, in place of one with the same key; all at once or not at all."""
    keys = (*KEY, "pool", "fold", "anticipation_s", "rollout", "model_path")
    unsaid = {"model_path": result["model_path"], "pool": "mean" if result["pool"] else None}
    others = [old for old in _results(path) if any(old.get(key, unsaid.get(key)) != result[key] for key in keys)]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps([*others, result], indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    command.run(main)
