"""Report a measurement of `vjepa.probe`: probe.json, its pictures, the heads that were chosen, and the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vjepa.interop.probes import write_probes
from vjepa.probing import dense, measuring, results
from vjepa.probing.comparison import TRAINED, ProbeResult
from vjepa.probing.settings import ProbeSettings
from vjepa.reporting import pictures, tables
from vjepa.run_folder import RunFolder

# what a head needs to be used again: the features that it reads, and what its answers mean
_OF_HEADS: Final = (
    *results.KEY, "task", "fold", "model_path", "weights_hash", "levels", "data", "anticipation_s", "rollout"
)  # fmt: skip


def measure_and_report(settings: ProbeSettings) -> str | None:
    """Measure what the options ask for, write it into probe.json, and give the table to print. Raises UserError.

    Under torchrun the first process alone has something to report; the others give None.
    """
    run = RunFolder.above(settings.model_path)
    path = settings.out or Path(run.path if run else ".", "probe.json")
    results.read(path)  # a file that cannot take the result should show before the work
    if settings.eval_mode in ("dense", "propagate"):
        entry = dense.measure(settings)
        results.save(path, entry)
        return f"{tables.masks_table(entry)}\n-> {path}"
    measured = measuring.measure(settings)
    if measured is None:
        return None
    work, compared = measured
    reports = []
    for label, found in compared.items():
        result, trained = measuring.result(settings, work, label, found), found.kinds[TRAINED]
        stem = path.with_name(_stem(path, settings, result))
        result["pictures"] = pictures.save_probe_pictures(stem, trained.scores, work.dataset.source, settings.batch)
        result["chosen_heads"] = _write_heads(stem.with_name(f"{stem.name}.safetensors"), trained, result)
        results.save(path, result)
        reports.append(tables.probe_table(result))
    between = "\n\n"
    return f"{between.join(reports)}\n-> {path}"


def _stem(path: Path, settings: ProbeSettings, result: Mapping[str, Any]) -> str:
    """Name what lies beside probe.json of one measurement."""
    pool, task = result["pool"], result["task"]
    ahead = "" if settings.anticipation_s is None else f"_{settings.anticipation_s:g}s_ahead_{settings.rollout}"
    pooled = "" if pool in (None, "mean") else f"_{pool.replace(':', '')}"
    read = "" if task == "classify" else f"_{task}"
    return f"{path.stem}_{settings.eval_mode}_{result['label']}{read}{pooled}{ahead}"


def _write_heads(path: Path, trained: ProbeResult, result: dict[str, Any]) -> str | None:
    """Write the chosen heads of the encoder, one for each trial; give the path, or None where the probe has none."""
    heads = [one.head for one in trained.fitted if one.head]
    if not heads:
        return None
    write_probes(path, heads, {name: result[name] for name in _OF_HEADS})
    return str(path)
