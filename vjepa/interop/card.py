"""The card that goes with every export: Markdown as Hugging Face has it, of what the files of a run say, no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

import yaml

from vjepa import __version__, files
from vjepa.run_folder import RunFolder

_UNKNOWN: Final = "not known: the file is not here"
_FIRST: Final = {"classify": "top1", "regress": "r2", "multilabel": "map"}  # of baselines, by the task
_KINDS: Final = {"random_init": "the same network untrained", "pixels": "pixels", "motion_energy": "motion energy"}
_USE: Final = {
    "safetensors": (
        'import vjepa\n\nencoder = vjepa.load_encoder("{name}")\nfeatures = encoder(video)  # [B, 3, T, H, W]'
    ),
    "huggingface": ('from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("{name}")'),
    "onnx": 'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{name}")',
}


def card_path(out: Path, to: str) -> Path:
    """Name the card of an export: README.md in a folder, else beside the file, with its name."""
    return out / "README.md" if to == "huggingface" else out.with_name(f"{out.name}.md")


def model_card(source: Path, out: Path, to: str, clip: str, about: str, difference: float) -> str:
    """Write the card of `source`, a run or any file of weights, exported to `out`.

    clip: size of the clips that it was checked on. about: what was exported, in words. difference: the largest of its
    answers from those of the source.
    """
    run = RunFolder.above(source)
    facts = _Facts(run) if run else None
    parts = [
        _front(to),
        f"# {_plain(out.stem)}",
        f"{_plain(about)} Written by vjepa {__version__} as {to}; on a random clip of {clip} it differs from its "
        f"source by at most {difference:.2g}.",
        f"## Use\n\n```python\n{_USE[to].format(name=out.name)}\n```",
        *(facts.parts() if facts else [f"## Recipe\n\nNot known: {_plain(source.name)} lies in no run folder."]),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(facts)),
    ]
    return "\n\n".join(parts) + "\n"


def _front(to: str) -> str:
    """Write the block of facts that Hugging Face reads. A licence is for the owner of the weights to give."""
    library = "transformers" if to == "huggingface" else "vjepa"
    tags = ["video", "self-supervised-learning", "v-jepa", "feature-extraction"]
    facts = {"library_name": library, "pipeline_tag": "feature-extraction", "tags": tags}
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}---"


class _Facts:
    """Hold what a run folder says of its networks."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.summary, self.environment = _json(run.summary), _json(run.environment)

    def parts(self) -> Iterator[str]:
        """Yield data, recipe, and what was measured."""
        yield "## Data\n\n" + "\n".join(f"- {line}" for line in self._data())
        commit = self.environment.get("commit") or "not known"
        steps = self.summary.get("steps", "not known, the run has not ended")
        recipe = self.run.config.read_text(encoding="utf-8")
        fence = "`" * max(3, 1 + max((len(line) for line in recipe.split("\n") if set(line) == {"`"}), default=0))
        yield f"## Recipe\n\nSteps: {steps}. Commit: {_plain(str(commit))}.\n\n{fence}yaml\n{recipe.strip()}\n{fence}"
        yield self._measured()

    def _data(self) -> Iterator[str]:
        """Name the clips by hashes: of each clip index, and of what the run was measured on."""
        named = yaml.safe_load(self.run.config.read_text(encoding="utf-8")).get("data", {})
        for part in ("train", "selection", "val"):
            index = (named.get(part) or {}).get("index")
            for path in [index] if isinstance(index, str) else index or []:
                yield f"{part}: `{_plain(str(path))}`, sha256 of the clip index {files.sha256(Path(path)) or _UNKNOWN}"
        if self.summary.get("evidence"):
            yield f"clips, labels and settings of the probes: sha256 {self.summary['evidence']}"

    def _measured(self) -> str:
        probes, kinds = self.summary.get("probes", {}), self.summary.get("kinds", {})
        if not probes and not kinds:
            return "## Measured\n\nNothing: the run has no closing report."
        rows = [*_probe_rows(probes), *((name, "", _share(one["top1"])) for name, one in kinds.items())]
        lines = [f"| {_plain(what)} | {_plain(who)} | {value} |" for what, who, value in rows]
        measured = self.summary.get("measured", {})
        said = "Frozen features, {encoder} of step {step}; 95 % intervals.".format(**measured) if measured else ""
        return "\n".join(["## Measured", "", said, "", "| what | features | value |", "|---|---|---|", *lines])


def _probe_rows(probes: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield label and probe, kind of features, value with interval."""
    for label, entries in probes.items():
        for probe, entry in entries.items():
            measure = entry.get("measure", "accuracy")
            what = f"{label}, {probe}, {measure}"
            yield what, "trained", _share({"value": entry[measure], "low": entry["low"], "high": entry["high"]})
            for kind, one in entry["baselines"].items():
                yield what, _KINDS.get(kind, kind), _share(one[_FIRST[entry.get("task", "classify")]])
            chance = entry["chance"]
            yield what, "chance", _share({"value": chance[measure], "low": chance["low"], "high": chance["high"]})


def _limits(facts: _Facts | None) -> Iterator[str]:
    """Yield what the numbers do not say."""
    yield "It was checked on clips of the size named above; other rates, shapes and kinds of video were not measured."
    yield "Features carry what the training clips carry, biases included; nobody has looked at who is in them."
    yield "The licence of the weights follows that of the training clips; this card gives none."
    if facts and (verdict := facts.summary.get("verdict")):
        yield f"Verdict of the monitor: {_plain(verdict['state'].replace('_', ' '))}, {_plain(verdict['rule'])}."
    if facts and facts.summary.get("num_replaced"):
        yield f"{facts.summary['num_replaced']} training clips could not be read and were replaced by others."
    if facts and not facts.summary:
        yield "The run has not ended: these are weights of a checkpoint on the way."


def _share(share: Mapping[str, float] | None) -> str:
    if share is None or share["value"] is None:
        return "not defined"
    return f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}]"


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _plain(words: str) -> str:
    """Keep words from being Markdown or HTML: one line, with no bars, ticks or tags."""
    return escape(" ".join(words.split()), quote=False).replace("|", "\\|").replace("`", "'")
