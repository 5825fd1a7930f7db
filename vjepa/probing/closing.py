"""The evidence that closes a run: what probes read from its encoder beside its baselines, and whether it collapsed."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from vjepa import config
from vjepa.data.plan_rows import Views
from vjepa.health import measures
from vjepa.models.encoder import Encoder
from vjepa.probing.banks import Bank, Extractor, InMemory, SampleViews
from vjepa.probing.baselines import kinds_of_features
from vjepa.probing.comparison import TRAINED, Comparison, ProbeResult, count_clips, measure, measure_chance
from vjepa.probing.datasets import ClipSource
from vjepa.probing.entries import to_dict, unreadable
from vjepa.probing.extractors import Readout
from vjepa.probing.protocol import Examples, Inputs, Mode, ProbeMethod
from vjepa.probing.splits import Split, read_splits
from vjepa.probing.tasks import of_run
from vjepa.ranks import ONE_RANK, Ranks

METHODS: Final[dict[Mode, ProbeMethod]] = {"knn": ProbeMethod("knn"), "linear": ProbeMethod("linear")}

# `train`, `selection` and `val`; the online probe has no val
Parts = Mapping[str, Split]
# name of a part -> kind of features -> bank
PartBanks = Mapping[str, Mapping[str, Bank]]


def evaluate_run(
    data: config.Data,
    wanted: config.Eval,
    encoder: Encoder,
    seed: int,
    step: int | None,
    device: torch.device,
    dtype: torch.dtype,
    ranks: Ranks = ONE_RANK,
) -> dict[str, Any]:
    """Measure the frozen `encoder` of `step` of a run as its settings `data` and `eval` say. seed: of the run.

    Returns what summary.json holds of it: {"measured": {"encoder": its name, "step": step}, "probes": {label: {"knn" |
    "linear": entry of `entries.to_dict`}}, "collapse": {"effective_rank", "feature_std", "num_features"} of val,
    "untrained": the same of the untrained encoder where that is a baseline, else None, "num_unreadable", "unreadable"}.
    ranks: processes that share the passes over the clips; the first one measures, the others return {}.
    Raises UserError as `read_splits` does, where no clip can be read, and for features that are not finite.
    """
    splits: dict[str, Split] = vars(read_splits(data, wanted.labels, wanted.group))
    readout = Readout((encoder.depth - 1,), ("pooled",), device, dtype, channels=data.channels)
    encoder = encoder.to(device).eval()
    extractors = kinds_of_features(encoder, "", readout, wanted.baselines, seed)
    banks, rows = split_banks(splits, data, wanted.batch, extractors, ranks), splits["val"].rows
    if ranks.rank:
        return {}
    return {
        "measured": {"encoder": wanted.encoder, "step": step},
        "probes": probe_labels(splits, banks, wanted),
        "collapse": collapse(banks["val"][TRAINED], rows),
        "untrained": collapse(banks["val"]["random_init"], rows) if "random_init" in banks["val"] else None,
        **unreadable(
            f"{split.index.row(clip_id).uri}: {reason}"
            for name, split in splits.items()
            for clip_id, reason in banks[name][TRAINED].failures
            if clip_id in split.rows
        ),
    }


def split_banks(
    splits: Parts,
    data: config.Data,
    batch: int,
    extractors: Mapping[str, Extractor],
    ranks: Ranks = ONE_RANK,
) -> PartBanks:
    """Pass once over the clips of each index; splits of one index share its banks. Extractors give `pooled`.

    ranks: processes that share the passes; all of them get all banks.
    """
    made: dict[Path, dict[str, Bank]] = {}
    for path, of_path in groupby(sorted(splits.values(), key=_index_path), _index_path):
        shared = list(of_path)
        rows = np.unique(np.concatenate([split.rows for split in shared]))
        source = ClipSource(shared[0].index, data)
        banks = InMemory(ranks).banks(SampleViews(source, rows, Views()), extractors, batch)
        made[path] = {kind: outputs["pooled"] for kind, outputs in banks.items()}
    return {name: made[_index_path(split)] for name, split in splits.items()}


def probe_labels(splits: Parts, banks: PartBanks, wanted: config.Eval) -> dict[str, dict[str, Any]]:
    """Measure every label by every probe: label -> `knn` | `linear` -> entry of `entries.to_dict`."""
    index = splits["val"].index
    groups = index.column(wanted.group)
    methods = {
        label: {mode: replace(method, task=task) for mode, method in METHODS.items()}
        for label, task in of_run(wanted, splits).items()
    }

    def trials(kind: str, label: str) -> dict[str, list[Examples]]:
        return {"": labelled(splits, banks, kind, label, groups)}

    def measured(kind: str, mode: Mode) -> dict[str, ProbeResult]:
        inputs = Inputs()
        return {label: measure(methods[label][mode], trials(kind, label), inputs=inputs)[0] for label in wanted.labels}

    def entry(label: str, mode: Mode) -> dict[str, Any]:
        parts = trials(TRAINED, label)
        kinds = {kind: found[kind, mode][label] for kind in banks["val"]}
        method = methods[label][mode]
        comparison = Comparison(kinds, measure_chance(method.task, parts), count_clips(parts))
        return to_dict(comparison, method, lambda clip_id: index.row(clip_id).uri)

    # side by side, the widest features first: most products are too small to share
    jobs = list(product(banks["val"], METHODS))
    widest_first = sorted(jobs, key=lambda job: -banks["val"][job[0]].values[0].numel())
    with threadpool_limits(1), ThreadPoolExecutor(torch.get_num_threads()) as threads:
        running = {job: threads.submit(measured, *job) for job in widest_first}
        found = {job: running[job].result() for job in jobs}
    return {label: {mode: entry(label, mode) for mode in METHODS} for label in wanted.labels}


def labelled(
    splits: Parts, banks: PartBanks, kind: str, label: str, groups: list[str | None] | None = None
) -> list[Examples]:
    """Take the clips of each split that have `label`, with their features of `kind`. groups: of the index of val."""
    return [
        Examples.of(
            banks[name][kind],
            split.rows,
            split.labels[label],
            f"{name}, {label}",
            groups if name == "val" else None,
        )
        for name, split in splits.items()
    ]


def collapse(bank: Bank, clip_ids: np.ndarray) -> dict[str, float]:
    """Measure whether the features of `clip_ids` still tell clips apart."""
    values = bank.values[torch.from_numpy(np.isin(bank.clip_ids, clip_ids))].float().flatten(1)
    return {
        "effective_rank": measures.effective_rank(values),
        "feature_std": measures.feature_std(values),
        "num_features": values.shape[1],
    }


def _index_path(split: Split) -> Path:
    return split.index.path
