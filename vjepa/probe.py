"""Measure the frozen encoder of a run on a labelled clip index.

python -m vjepa.probe --model_path runs/demo --dataset clips.parquet --eval_mode knn
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vjepa import command, config
from vjepa.errors import UserError

if TYPE_CHECKING:
    from vjepa.probing.evidence import Probe

# the name on the command line -> the name in reports
MODES: dict[str, Probe] = {"knn": "knn", "linear_probe": "linear"}
# a result replaces an older one that agrees in these
KEY = ("dataset", "eval_mode", "label", "encoder")


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    path = Path(options.out or Path(options.model_path, "probe.json"))
    if not Path(options.model_path).is_dir():
        raise UserError(f"{options.model_path}: no such run folder")
    _results(path)  # a file that cannot take the result should show before the work
    result = measure(options)
    _save(path, result)
    print(
        f"{result['eval_mode']} {result['label']}: accuracy {result['accuracy']:.3f} [{result['low']:.3f}, {result['high']:.3f}] "
        f"on {result['num_clips']['val']} clips, chance {result['chance']['accuracy']:.3f} ({options.encoder}, step {result['step']}) -> {path}"
    )
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The result that goes into probe.json, from the options of the command line. Raises UserError with one line."""
    from vjepa.probing import evidence, features, metrics
    from vjepa.training import checkpoint, device

    data = _sources(options)
    encoder, trained_with = checkpoint.load_run(Path(options.model_path), options.encoder)
    settings = trained_with.model_copy(update={"data": trained_with.data.model_copy(update=data)})
    where, dtype = device.pick(settings.run)
    extractors = {"trained": features.encode(encoder.to(where), where, dtype)}
    splits = vars(evidence.read_splits(settings.data, [options.label]))
    extracted = {name: evidence.extract_split(split, settings, extractors)["trained"] for name, split in splits.items()}
    prepared = evidence.prepare(MODES[options.eval_mode], extracted)
    parts = evidence.label_parts(prepared, {name: split.labels for name, split in splits.items()}, options.label)
    accuracy, setting = evidence.measure(MODES[options.eval_mode], parts, options.label)
    return {
        "dataset": str(Path(options.dataset).absolute()),
        "eval_mode": options.eval_mode,
        "label": options.label,
        "encoder": options.encoder,
        "step": _step(Path(options.model_path)),
        **accuracy.to_dict(),
        "chance": metrics.chance(parts["train"].classes, parts["val"].classes).to_dict(),
        "chosen": {"k" if options.eval_mode == "knn" else "C": setting},
        "num_clips": {name: len(part.classes) for name, part in parts.items()},
        "num_unreadable": sum(len(part.failures) for part in extracted.values()),
        "where": {name: source.where if source else "a fifth of train" for name, source in data.items()},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vjepa.probe", description="Measure the frozen encoder of a run on a labelled clip index.")

    def add(name: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", *([f"--{name.replace('_', '-')}"] if "_" in name else []), **options)

    add("model_path", required=True, metavar="RUN", help="run folder")
    add("dataset", required=True, metavar="INDEX", help="clip index (Parquet) made by data_prep.index")
    add("eval_mode", required=True, choices=list(MODES), help="k nearest neighbours, or logistic regression")
    add("label", default="label", metavar="COLUMN", help="column to predict (default: label)")
    add("train", metavar="COL=V[,V2]", help="rows to learn from (default: split=train)")
    add("selection", metavar="COL=V[,V2]", help="rows to choose k or C on (default: split=selection if there are any, else a fifth of train)")
    add("val", metavar="COL=V[,V2]", help="rows to measure on (default: split=val)")
    add("encoder", default="encoder", choices=["encoder", "target_encoder"], help="which encoder of the run (default: encoder)")
    add("out", metavar="FILE", help="where the result goes (default: RUN/probe.json); results of other probes in it are kept")
    return parser


def _sources(options: argparse.Namespace) -> dict[str, config.Source | None]:
    """The rows of `data.train`, `data.selection` and `data.val` that the options name."""
    from vjepa.data.clip_index import ClipIndex

    index = ClipIndex.open(options.dataset)
    splits = {value for value in index.column("split") if value is not None}
    sources: dict[str, config.Source | None] = {}
    for name in ("train", "selection", "val"):
        given = getattr(options, name)
        if given is None and name not in splits:
            if name != "selection":
                found = f"its splits are {', '.join(sorted(splits))}" if splits else "it has no splits"
                raise UserError(f"{options.dataset}: no rows with split={name} ({found}); say which with --{name} COLUMN=VALUE")
            sources[name] = None
        else:
            sources[name] = config.Source(index=options.dataset, where=_where(given or f"split={name}", name))
    return sources


def _where(text: str, option: str) -> dict[str, str | int | list[str | int]]:
    """`COL=V1,V2` as the `where` of a source."""
    column, equals, values = text.partition("=")
    if not (column and equals and values):
        raise UserError(f"--{option} {text}: rows are written COLUMN=VALUE or COLUMN=VALUE1,VALUE2")
    return {column: list(values.split(","))}


def _step(run: Path) -> int:
    """The step of the newest checkpoint, `checkpoints/step-00000123`, to which `latest` points."""
    return int((run / "checkpoints" / "latest").resolve().name.removeprefix("step-"))


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
    others = [old for old in _results(path) if any(old[key] != result[key] for key in KEY)]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps([*others, result], indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    command.run(main)
