"""Pre-train from settings: check, learn, then measure what was learned."""

from __future__ import annotations

import hashlib
import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from vjepa import __version__, config, device, files
from vjepa.data.joined_index import are_shared
from vjepa.data.order import num_steps
from vjepa.data.plan_training import check_shares
from vjepa.data.sources import Part, open_sources
from vjepa.errors import UserError
from vjepa.health.verdict import Verdict, judge
from vjepa.interop import own
from vjepa.interop.teacher import keep_teacher, read_teacher
from vjepa.interop.weights import Weights
from vjepa.jepa import Jepa, build
from vjepa.masking.draw import plan
from vjepa.probing.closing import evaluate_run
from vjepa.probing.online import OnlineProbe
from vjepa.probing.splits import Split, fingerprint, read_splits
from vjepa.probing.tasks import check_run, of_run
from vjepa.ranks import ONE_RANK, Ranks
from vjepa.reporting import pictures, shown, tables
from vjepa.reporting.looking_back import Glass, look
from vjepa.reporting.writing import write_page
from vjepa.run_folder import Checkpoint
from vjepa.training import checkpoint, first_run, run_log
from vjepa.training.checkpoint import TrainingState
from vjepa.training.loop import TrainingRun, learn
from vjepa.training.monitor import HealthMonitor, read_clips
from vjepa.training.open_run import flat, open_run, sole_writer, versions
from vjepa.training.optim import make_optimizer
from vjepa.training.pretraining_start import start_from
from vjepa.training.resuming import check_precision, dtype_name, run_length
from vjepa.training.spread import Spread, kind_of
from vjepa.training.step import TrainingStep
from vjepa.training.team import Team, assemble, digest


def train(settings: config.Config, stop_at_step: int | None = None, progress: bool = True) -> dict[str, Any] | None:
    """Run or resume the training of `settings`, then measure it; return the summary, or None if it stopped early.

    `stop_at_step` saves and ends before that step, as SIGTERM does: the same call goes on later, bit for bit.
    Raises UserError for bad input, before anything is written where that can be known.
    """
    with assemble(settings) as team, ExitStack() as held:
        run, method = prepare(settings, progress, team)
        team.ranks.together(lambda: held.enter_context(sole_writer(run.folder)) if team.leads else None)
        return _go_on(run, method, stop_at_step, team)


def _go_on(
    run: TrainingRun[config.Config], method: Jepa, stop_at_step: int | None, team: Team
) -> dict[str, Any] | None:
    """Restore, learn up to `stop_at_step` or the end, and measure; see `train`."""
    settings = run.settings
    kind = team.ranks.together(lambda: kind_of(method, team, settings.parallel, run.device))
    spread = Spread(method if kind == "fsdp2" else method.to(run.device), team, kind, run.dtype)
    optimizer = make_optimizer(method, settings.optim)
    state = team.ranks.together(lambda: checkpoint.restore(run.folder, method, optimizer))
    method.memory = state.memory
    _check_alike(run, team, state)
    stop = run.total_steps if stop_at_step is None else min(stop_at_step, run.total_steps)
    if run.progress:
        where = f"{run.device}, {dtype_name(run.dtype)}"
        print(f"{run.folder.path}: step {state.step} of {run.total_steps}, {_describe_clips(run)}, {where}", flush=True)
    ended = _verdict(run, state).state in settings.monitor.stop_on
    if state.step < stop and not ended:
        team.ranks.together(lambda: check_precision(run, state))
        state.dtype = dtype_name(run.dtype)
        total, compiled = run.total_steps, settings.run.compile
        step = TrainingStep(method, optimizer, settings.optim, run.dtype, total, compiled, spread, settings.guard)
        ended = _learn(run, step, online_probe(run, method, spread), state, stop)
    if state.step < run.total_steps and not ended:
        if team.leads:
            steps = f"step {state.step} of {run.total_steps}"
            print(f"stopped at {steps}; the same command goes on from there", file=sys.stderr)
        return None
    team.ranks.wait()  # for the last checkpoint
    return conclude(run, method if kind != "fsdp2" else _networks(settings)[0].to(run.device), state, team.ranks)


def prepare(
    settings: config.Config,
    progress: bool,
    team: Team = Team(),  # noqa: B008 - it is frozen
) -> tuple[TrainingRun[config.Config], Jepa]:
    """Check everything that can be wrong before the first step, then open the run folder.

    The networks, on the CPU, are as the first step wants them, or a checkpoint is there to restore. Of several ranks
    the one that leads writes, and bad input of any ends all.
    """
    progress = progress and team.leads
    if settings.data.prepare != "none":
        team.ranks.together(lambda: first_run.write_data(settings.data, progress) if team.leads else None)
    run, method, weights = team.ranks.together(lambda: _check(settings, progress, team))
    team.ranks.together(lambda: _open(run, weights) if team.leads else None)
    return run, method


def _check(
    settings: config.Config, progress: bool, team: Team
) -> tuple[TrainingRun[config.Config], Jepa, Weights | None]:
    """Check settings and clips, and build the networks; nothing is written. Gives the weights of the teacher, too."""
    where, dtype = device.pick(settings.run)
    device.check_compiler(settings.run, where)
    if settings.monitor.wandb:
        run_log.check_wandb()
    sources = open_sources(settings.data)
    check_shares(sources, team.ranks.num, team.accumulate)
    if settings.data.val is not None:
        splits = read_splits(settings.data, settings.eval.labels, settings.eval.group)
        check_run(of_run(settings.eval, vars(splits)), vars(splits))
        measured = {"data.val": splits.val}
        measured |= {} if settings.data.selection is None else {"data.selection": splits.selection}
        for part, (name, split) in product([part for source in sources for part in source.parts], measured.items()):
            _refuse_shared(part, name, split)
    for grid in settings.grids.values():
        plan(settings.masks, grid)
    method, weights = _networks(settings)
    if settings.run.folder.latest is None:  # a run that goes on needs its own checkpoint alone
        if settings.run.init_from is not None:
            start_from(Path(settings.run.init_from), method)
        if settings.model.pretrained:
            method.load_pretrained()
    total = run_length(settings, sources)
    return TrainingRun(settings, settings.run.folder, sources, where, dtype, total, progress), method, weights


def _networks(settings: config.Config) -> tuple[Jepa, Weights | None]:
    """Build the networks of a run at their initialisation; give the weights of the teacher too, where it has one."""
    weights = read_teacher(settings.objective.teacher, settings.run.folder, settings.model, settings.data.sources)
    return build(settings, weights.build_encoder() if weights else None), weights


def _open(run: TrainingRun[config.Config], teacher: Weights | None) -> None:
    """Open the run folder, with its copy of the teacher."""
    folder = open_run(run.settings)
    if teacher:
        keep_teacher(teacher, folder)


def _check_alike(run: TrainingRun[config.Config], team: Team, state: TrainingState) -> None:
    """Compare what ranks need alike before they learn together. Raises UserError that names a difference."""
    if team.ranks.num == 1:
        return
    data = run.settings.data
    facts = flat(run.settings.model_dump(mode="json")) | versions() | {"vjepa": __version__}
    facts |= {"precision": dtype_name(run.dtype), "steps": run.total_steps, "step of the checkpoint": state.step}
    indexes = digest([path for source in (data.train, *data.mix) for path in source.paths])
    team.check_alike(facts | {"digest of the clip index": indexes})


def conclude(
    run: TrainingRun[config.Config],
    method: Jepa,
    state: TrainingState,
    ranks: Ranks = ONE_RANK,
) -> dict[str, Any]:
    """Measure the frozen encoder, write summary.json, the pictures and the page, print the closing table.

    What is measured is what best.pth holds: the best checkpoint, or the last where none was measured during training.
    A finished run is only shown again. ranks: processes that share the passes over clips; the first one does the rest.
    """
    path, evidence = run.folder.summary, _evidence(run.settings)
    summary = tables.read_summary(run.folder) if path.is_file() else {}
    is_old = bool(summary) and not _is_of(summary, state, evidence)
    if is_old and ranks.rank == 0:
        print(f"{path}: is of fewer steps, other clips, labels or eval settings; measured again", file=sys.stderr)
    unmeasured, unseen = ranks.agree((is_old or not summary, shown.read(run.folder.shown) is None))
    if unmeasured or unseen:
        measured = run.folder.best or run.folder.require()
        checkpoint.load_networks(measured, method)
        method.requires_grad_(False).eval()
        found = _measure(run, method, measured, ranks) if unmeasured else {}
        if ranks.rank == 0:
            rows = run_log.read_metrics(run.folder)
            if unmeasured:
                summary = _facts(run, state, rows) | found
                summary |= {"verdict": asdict(_verdict(run, state)), "ended_early": state.step < run.total_steps}
                summary |= {"evidence": evidence}
            _draw(run, method, rows, summary)
            own.write(own.read(measured.path, run.settings.eval.encoder), run.folder.best_file)
            files.write_json(path, summary)
    if ranks.rank == 0 and (unmeasured or unseen or not run.folder.page.is_file()):
        write_page(run.folder)
    if run.progress:
        print("\n" + tables.closing_table(summary))
        kept = "report.html, summary.json, metrics.jsonl, tensorboard/, pictures/, checkpoints/latest/"
        print(f"{run.folder.path}: {kept}")
    agreed: dict[str, Any] = ranks.agree(summary)
    return agreed


def _evidence(settings: config.Config) -> str | None:
    """Name by a hash what a run is measured by: clips, labels and settings; None where there is nothing to measure on.

    Labels, groups, baselines and encoder count; how often and on how many clips the online probe looked does not.
    """
    if settings.data.val is None:
        return None
    splits = read_splits(settings.data, settings.eval.labels, settings.eval.group)
    wanted = settings.eval.model_dump_json(exclude={"batch", "every_steps", "online_clips"})
    return hashlib.sha256(f"{wanted} {fingerprint(splits)}".encode()).hexdigest()


def _is_of(summary: dict[str, Any], state: TrainingState, evidence: str | None) -> bool:
    """Tell whether a summary is that of a run as it is now; earlier versions did not name their evidence."""
    return bool(summary["steps"] == state.step and summary.get("evidence", evidence) == evidence)


def _learn(
    run: TrainingRun[config.Config],
    step: TrainingStep[Jepa],
    probe: OnlineProbe | None,
    state: TrainingState,
    stop: int,
) -> bool:
    """Do the steps up to `stop`; tell whether `monitor.stop_on` ended the run before that."""
    settings = run.settings
    if step.team.leads:
        run.folder.summary.unlink(missing_ok=True)  # of a run that was ended, and goes on with another monitor.stop_on
    wandb = settings.model_dump(mode="json") if settings.monitor.wandb else None
    log = run_log.RunLog(run.folder, state.step, wandb, step.team.leads)
    clips = read_clips(settings) if settings.monitor.every_steps else torch.empty(0)
    monitor = HealthMonitor(settings, clips, step, log.rows, run.total_steps)
    learn(run, step, log, probe, monitor, state, stop)
    return monitor.ends_run


def _verdict(run: TrainingRun[config.Config], state: TrainingState) -> Verdict:
    """Judge what was logged up to the step of `state`."""
    rows = [row for row in run_log.read_metrics(run.folder) if row["step"] <= state.step]
    return judge(rows, run.total_steps)


def _refuse_shared(part: Part, name: str, split: Split) -> None:
    """Refuse clips to learn from that the encoder is chosen or measured on: those of `split`, called `name`."""
    shared = are_shared(part.index, part.rows, split.index, split.rows).sum()
    if shared:
        raise UserError(
            f"{part.name}: {shared} of its {len(part.rows)} clips are in {name} too; give other rows, e.g. where: "
            "{split: train}"
        )


def _steps_by_source(run: TrainingRun[config.Config]) -> list[int]:
    return num_steps(run.settings.run.seed, run.total_steps, run.settings.data.mix_ratios)


def _describe_clips(run: TrainingRun[config.Config]) -> str:
    """Say `2394 clips`, or for a mix the clips and the steps of each source."""
    if len(run.sources) == 1:
        return f"{run.sources[0].num_rows} clips"
    parts = zip(run.sources, _steps_by_source(run), strict=True)
    return ", ".join(f"{steps} steps on {source.num_rows} clips of {source.name}" for source, steps in parts)


def online_probe(run: TrainingRun[config.Config], method: Jepa, spread: Spread | None = None) -> OnlineProbe | None:
    """Make the probe that `eval.every_steps` asks for. spread: `method` over several ranks; None: it is here alone."""
    settings = run.settings
    if settings.eval.every_steps is None:
        return None
    encoder, seed = method.measured_encoder, settings.run.seed
    shared = (spread.team.steps, spread.whole) if spread else ()
    return OnlineProbe(settings.data, settings.eval, encoder, seed, run.device, run.dtype, *shared)


def _facts(run: TrainingRun[config.Config], state: TrainingState, rows: list[dict[str, float]]) -> dict[str, Any]:
    """Sum up the training itself."""
    rows = [row for row in rows if "loss" in row]  # not that of the untrained encoder
    losses = {int(row.get("source", 0)): row["loss"] for row in rows}  # the last of each source
    replaced = {run.sources[source].uri(clip_id): reason for source, clip_id, reason in state.replaced()}
    facts: dict[str, Any] = {
        "steps": state.step,
        "final_loss": losses.get(0, rows[-1]["loss"]),
        "clips_per_s": statistics.median(row["clips_per_s"] for row in rows),
        "num_replaced": state.num_replaced,
        "replaced": replaced,
    }
    if run.settings.data.mix:
        parts = enumerate(zip(run.sources, _steps_by_source(run), strict=True))
        facts["sources"] = [
            {"name": source.name, "clips": source.num_rows, "steps": steps, "final_loss": losses.get(number)}
            for number, (source, steps) in parts
        ]
    return facts


def _measure(run: TrainingRun[config.Config], method: Jepa, measured: Checkpoint, ranks: Ranks) -> dict[str, Any]:
    """Read the frozen encoder with probes, where there are clips to measure on."""
    settings = run.settings
    if settings.data.val is None:
        return {}
    encoder, seed = method.measured_encoder, settings.run.seed
    return evaluate_run(settings.data, settings.eval, encoder, seed, measured.step, run.device, run.dtype, ranks)


def _draw(run: TrainingRun[config.Config], method: Jepa, rows: list[dict[str, float]], summary: dict[str, Any]) -> None:
    """Look at a few clips through the encoder, keep what the page shows of them, and draw the pictures of the run."""
    settings = run.settings
    drawn = plan(settings.masks, settings.grid)
    kept = look(
        Glass(settings, method.measured_encoder, run.device, run.dtype),
        lambda num: drawn.draw(num, settings.run.seed, 0, 0, run.total_steps),
        summary,
    )
    shown.write(run.folder.shown, kept)
    terms = ["loss", "context", *settings.objective.weights]
    pictures.save_run_pictures(run.folder.pictures, rows, terms, kept)
