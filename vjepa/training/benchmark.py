"""How fast the training step and the loader of a config are on this machine, and what limits them."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch

from vjepa import config, device
from vjepa.data.loader import train_loader
from vjepa.data.sources import open_sources
from vjepa.data.speed import loader_speed
from vjepa.interop.teacher import read_teacher
from vjepa.interop.weights import Weights
from vjepa.jepa import Jepa, build
from vjepa.records import ClipBatch
from vjepa.training import optim
from vjepa.training.flops import step_flops
from vjepa.training.step import TrainingStep

WARM_STEPS: Final = 3
# square matrices; the fastest size is the peak
PEAK_SIZES: Final = {"cpu": (1024, 2048, 4096), "mps": (2048, 4096), "cuda": (4096, 8192)}


def bench(settings: config.Config, num_steps: int) -> dict[str, Any]:
    """Measure medians of `num_steps` warm steps on noise, and where data.train exists as many batches of the loader,
    alone and with the steps.

    Utilisation is the model's arithmetic per second over the peak of matrix products, measured here in the same dtype.
    """
    where, dtype = device.pick(settings.run)
    device.check_compiler(settings.run, where)
    data = settings.data
    teacher = read_teacher(settings.objective.teacher, settings.run.folder, settings.model, data.sources)
    step = training_step(settings, where, dtype, teacher)
    shape = (data.global_batch, data.channels.num, *data.clip_size)
    noise = torch.randint(256, shape, dtype=torch.uint8).to(where)
    batch = ClipBatch(noise, torch.arange(len(noise)))
    peak = matmul_peak(where, dtype)
    train_s = median_seconds(lambda number: step(number, batch), num_steps, where)
    memory = peak_memory_bytes(where)
    flops = step_flops(settings, teacher.model if teacher else None)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "global_batch": data.global_batch,
        "tokens_per_clip": settings.grid.num_tokens,
        "workers": data.workers,
        "steps": num_steps,
        "step_ms": 1000 * train_s,
        "train_clips_per_s": data.global_batch / train_s,
        "train_tokens_per_s": data.global_batch * settings.grid.num_tokens / train_s,
        "model_flops_per_step": flops,
        "achieved_flops_per_s": flops / train_s,
        "peak_flops_per_s": peak,
        "utilisation": flops / train_s / peak,
        "peak_memory_bytes": memory,
        "loader_clips_per_s": None,
        "together_clips_per_s": None,
    }
    if all(Path(path).is_file() for path in data.train.paths):
        report |= loader_report(settings, step, num_steps)
    return report


def bench_loader(settings: config.Config, num_batches: int, against: str | None) -> dict[str, Any]:
    """Measure how clips are read, beside the bare decoder and starts at keyframes. against: another index."""
    return loader_speed(settings.data, settings.run.seed, num_batches, against)


def training_step(
    settings: config.Config, where: torch.device, dtype: torch.dtype, teacher: Weights | None = None
) -> TrainingStep[Jepa]:
    """Make the step of `settings` as training runs it. teacher: that of `objective.teacher`."""
    model = build(settings, teacher.build_encoder() if teacher else None).to(where)
    optimizer, total = optim.make_optimizer(model, settings.optim), settings.optim.total_steps or 1000
    return TrainingStep(model, optimizer, settings.optim, dtype, total, settings.run.compile, guard=settings.guard)


def median_seconds(run: Callable[[int], Any], times: int, where: torch.device) -> float:
    """Measure the median duration of `run(number)`, after a few that do not count."""
    return alternating_medians({"": run}, times, where)[""]


def alternating_medians(runs: Mapping[str, Callable[[int], Any]], times: int, where: torch.device) -> dict[str, float]:
    """Measure the median duration in seconds of each `run(number)`, in turns, after a few that do not count.

    A GPU is waited for at the end alone: the host prepares the next step while it works, as in training.
    """
    spans: dict[str, list[tuple[Any, Any]]] = {name: [] for name in runs}
    for number in range(WARM_STEPS + times):
        for name, run in runs.items():
            started = moment(where)
            run(number)
            spans[name].append((started, moment(where)))
    return {
        name: statistics.median(seconds_between(*span) for span in measured[WARM_STEPS:])
        for name, measured in spans.items()
    }


def moment(where: torch.device) -> Any:
    """Mark now, for `seconds_between`: on a GPU, when it has done all that was asked of it before."""
    if where.type == "mps":
        torch.mps.synchronize()
    if where.type != "cuda":
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(start: Any, end: Any) -> float:
    """Measure from one `moment` to another; waits until a GPU has reached it."""
    if isinstance(end, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def matmul_peak(where: torch.device, dtype: torch.dtype) -> float:
    """Measure FLOP/s of the fastest square matrix product."""

    def product(size: int) -> float:
        left, right = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))
        return 2 * size**3 / median_seconds(lambda _: left @ right, 5, where)

    return max(product(size) for size in PEAK_SIZES[where.type])


def peak_memory_bytes(where: torch.device) -> int:
    """Read the most memory so far: allocated on the GPU, or resident in this process with all its libraries.

    MPS knows no maximum, but it keeps what it has freed: what its driver holds now comes near it.
    """
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where)
    if where.type == "mps":
        return torch.mps.driver_allocated_memory()
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def loader_report(settings: config.Config, step: TrainingStep[Jepa], num_steps: int) -> dict[str, float]:
    """Measure clips per second of the loader alone, then of loading and training together."""
    runs: dict[str, Callable[[int, ClipBatch], Any]] = {
        "loader_clips_per_s": lambda number, batch: None,
        "together_clips_per_s": step,
    }
    return {name: _clips_per_s(settings, num_steps, step.device.type == "cuda", use) for name, use in runs.items()}


def _clips_per_s(
    settings: config.Config, num_steps: int, pin_memory: bool, use: Callable[[int, ClipBatch], Any]
) -> float:
    """Measure a mean over all warm steps: workers run ahead at the start, so a median would flatter."""
    steps = range(WARM_STEPS + num_steps)
    sources = open_sources(settings.data)
    loader = train_loader(sources, settings.data, settings.run.seed, steps, pin_memory=pin_memory)
    started = 0.0
    for number, batch in zip(steps, loader, strict=False):
        use(number, batch)
        if number == WARM_STEPS - 1:
            started = perf_counter()
    return num_steps * settings.data.global_batch / (perf_counter() - started)


def table(report: dict[str, Any]) -> str:
    """Write the report for a reader."""
    giga = {key: report[key] / 1e9 for key in ("model_flops_per_step", "achieved_flops_per_s", "peak_flops_per_s")}
    lines = [
        f"{report['device']}, {report['threads']} threads, {report['dtype']}; {report['global_batch']} clips "
        f"of {report['tokens_per_clip']} tokens",
        f"step        {report['step_ms']:.1f} ms, median of {report['steps']}",
        f"speed       {report['train_clips_per_s']:.2f} clips/s, {report['train_tokens_per_s']:.0f} tokens/s",
        f"arithmetic  {giga['model_flops_per_step']:.1f} GFLOP a step, {giga['achieved_flops_per_s']:.1f} GFLOP/s: "
        f"{100 * report['utilisation']:.0f} % of the {giga['peak_flops_per_s']:.1f} GFLOP/s of matrix products here",
        f"memory      {report['peak_memory_bytes'] / 2**30:.2f} GiB at most",
    ]
    if report["loader_clips_per_s"] is not None:
        loader = f"{report['loader_clips_per_s']:.1f} clips/s with {report['workers']} workers"
        lines.append(f"loader      {loader}; with training {report['together_clips_per_s']:.1f} clips/s")
    else:
        lines.append("loader      not measured: data.train has no index here")
    return "\n".join(lines)


def loader_table(report: dict[str, Any], against: str | None) -> str:
    """Write the report of `--loader` for a reader."""
    rest_ms = report["clip_ms"] - report["decode_ms"] - report["crop_ms"]
    lines = [
        f"loader      {report['loader_clips_per_s']:.1f} clips/s in one process, {report['loader_ratio']:.0%} "
        "of the decoder alone "
        f"({report['bare_clips_per_s']:.1f} clips/s); medians of {report['batches']} batches of "
        f"{report['global_batch']}",
        f"a clip      {report['clip_ms']:.2f} ms: decoding {report['decode_ms']:.2f}, crop and resize "
        f"{report['crop_ms']:.2f}, all else {rest_ms:.2f}",
    ]
    if report["keyframe_ratio"] is not None:
        lines.append(
            f"starts      data.start=keyframe gives {report['keyframe_ratio']:.2f}x the clips/s of uniform starts"
        )
    if report["against_ratio"] is not None:
        lines.append(f"against     {against} gives {report['against_ratio']:.2f}x the clips/s")
    return "\n".join(lines)
