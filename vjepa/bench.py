"""`python -m vjepa.bench [CONFIG.yaml] [section.key=value ...]`: how fast a config trains and loads here, and what
limits it.

`--loader`: how near reading clips comes to its decoder alone, and what other starts, or copies of the videos, bring.
"""

from __future__ import annotations

import json
import resource
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from vjepa import command, config
from vjepa.errors import UserError
from vjepa.records import ClipBatch

if TYPE_CHECKING:
    import torch

    from vjepa.training.step import TrainingStep

WARM_STEPS = 3
PEAK_SIZES = {
    "cpu": (1024, 2048, 4096),
    "mps": (2048, 4096),
    "cuda": (4096, 8192),
}  # square matrices; the fastest size is the peak


def bench(settings: config.Config, num_steps: int) -> dict[str, Any]:
    """Medians of `num_steps` warm steps on noise, of as many batches of the loader where data.train exists, and of both
    together.

    Utilisation is the model's arithmetic per second over the peak of matrix products, measured here in the same dtype.
    """
    import torch

    from vjepa import device

    where, dtype = device.pick(settings.run)
    device.check_compiler(settings.run, where)
    step, flops = training_step(settings, where, dtype)
    data = settings.data
    size = (data.global_batch, 3, data.num_frames, data.crop_px, data.crop_px)
    noise = torch.randint(256, size, dtype=torch.uint8).to(where)
    batch = ClipBatch(noise, torch.arange(len(noise)))
    peak = matmul_peak(where, dtype)
    train_s = median_seconds(lambda number: step(number, batch), num_steps, where)
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
        "peak_memory_bytes": peak_memory_bytes(where),
        "loader_clips_per_s": None,
        "together_clips_per_s": None,
    }
    if Path(data.train.index).is_file():
        report |= loader_report(settings, step, num_steps)
    return report


def training_step(settings: config.Config, where: torch.device, dtype: torch.dtype) -> tuple[TrainingStep, int]:
    """The step of `settings` as training would run it, and its model FLOPs."""
    from vjepa.interop.teacher import read_teacher
    from vjepa.jepa import build
    from vjepa.masking.draw import plan
    from vjepa.training import flops, optim
    from vjepa.training.step import TrainingStep

    teacher = read_teacher(settings)
    model = build(settings, teacher.build_encoder() if teacher else None).to(where)
    total = settings.optim.total_steps or 1000
    masks = plan(settings.masks, settings.grid).draw(settings.data.global_batch, settings.run.seed, 0, 0, total)
    step = TrainingStep(
        model, optim.make_optimizer(model, settings.optim), settings.optim, dtype, total, settings.run.compile
    )
    return step, flops.step_flops(settings, settings.grid, masks, teacher.model if teacher else None)


def median_seconds(run: Callable[[int], Any], times: int, where: torch.device) -> float:
    """Median duration of `run(number)`, after a few that do not count."""
    return alternating_medians({"": run}, times, where)[""]


def alternating_medians(runs: Mapping[str, Callable[[int], Any]], times: int, where: torch.device) -> dict[str, float]:
    """Median duration in seconds of each `run(number)`, in turns, after a few that do not count.

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
    """Now, for `seconds_between`: on a GPU, when it has done all that was asked of it before."""
    import torch

    if where.type != "cuda":
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(start: Any, end: Any) -> float:
    """From one `moment` to another; waits until a GPU has reached it."""
    if isinstance(end, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def matmul_peak(where: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest square matrix product."""
    import torch

    def product(size: int) -> float:
        left, right = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))
        return 2 * size**3 / median_seconds(lambda _: left @ right, 5, where)

    return max(product(size) for size in PEAK_SIZES[where.type])


def peak_memory_bytes(where: torch.device) -> int:
    """Most memory so far: allocated on the GPU, or resident in this process with all its libraries."""
    import torch

    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def loader_report(settings: config.Config, step: TrainingStep, num_steps: int) -> dict[str, float]:
    """Clips per second of the loader alone, then of loading and training together."""
    from vjepa.data.loader import train_loader
    from vjepa.data.sources import open_sources

    sources = open_sources(settings.data)
    rates = {}
    for name, use in (("loader_clips_per_s", None), ("together_clips_per_s", step)):
        batches = iter(
            train_loader(
                sources,
                settings.data,
                settings.run.seed,
                range(WARM_STEPS + num_steps),
                pin_memory=step.device.type == "cuda",
            )
        )

        def one(number: int, batches: Any = batches, use: TrainingStep | None = use) -> None:
            batch = next(batches)
            if use is not None:
                use(number, batch)

        # workers run ahead while the first batches are awaited, so that a mean over all, not a median, is honest here
        for number in range(WARM_STEPS):
            one(number)
        started = perf_counter()
        for number in range(WARM_STEPS, WARM_STEPS + num_steps):
            one(number)
        rates[name] = num_steps * settings.data.global_batch / (perf_counter() - started)
    return rates


def table(report: dict[str, Any]) -> str:
    """The report for a reader."""
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
    """The report of `--loader` for a reader."""
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


def main(arguments: Sequence[str]) -> int:
    parser = command.config_parser(
        "bench",
        "Measure the training step and the loader of a config on this machine; choose batch size and workers by it.",
    )
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps and batches to measure (default: 20)")
    parser.add_argument(
        "--loader",
        action="store_true",
        help="measure only how clips are read: beside the bare decoder, and by starts at keyframes",
    )
    parser.add_argument(
        "--against",
        metavar="other.parquet",
        help="with --loader: beside another index too, such as that of transcoded copies",
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args(arguments)
    if options.against and not options.loader:
        raise UserError("--against needs --loader: the training step reads no clips")
    settings = command.read_config(options)
    if options.print_config:
        print(config.dump(settings), end="")
        return 0
    num_steps = max(1, options.steps)
    if options.loader:
        from vjepa.data.speed import loader_speed

        report = loader_speed(settings.data, settings.run.seed, num_steps, options.against)
        print(json.dumps(report) if options.json else loader_table(report, options.against))
    else:
        report = bench(settings, num_steps)
        print(json.dumps(report) if options.json else table(report))
    return 0


if __name__ == "__main__":
    command.run(main)
