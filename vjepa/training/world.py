"""Train a world model from settings: check, keep features of frames, learn, then measure how far it sees ahead."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from vjepa import config, device, files
from vjepa.data.actions import measured_actions
from vjepa.data.joined_index import are_shared, open_index
from vjepa.data.loader import eval_loader
from vjepa.data.plan_rows import Views
from vjepa.data.plan_training import TrainPlan
from vjepa.data.sources import Part, open_sources
from vjepa.data.tracks import Tracks
from vjepa.errors import UserError
from vjepa.interop import own, world
from vjepa.models.action_predictor import normed
from vjepa.probing.extractors import untrained, weights_hash
from vjepa.ranks import refuse_several
from vjepa.reporting import pictures, worlds
from vjepa.training import checkpoint, first_run, run_log
from vjepa.training.checkpoint import TrainingState
from vjepa.training.loop import TrainingRun, learn
from vjepa.training.open_run import open_run, sole_writer
from vjepa.training.optim import make_optimizer
from vjepa.training.pretraining import train
from vjepa.training.resuming import check_precision, dtype_name, run_length
from vjepa.training.step import TrainingStep
from vjepa.training.team import Team
from vjepa.training.world_features import FrameSource, KeptFrames, keep_frames, kept_batches
from vjepa.world_model import WorldModel

_MEASURED_FRAMES: Final = 8192  # whose covariance the head of vectors begins with, at least where there are so many
_EVAL_BATCH: Final = 64  # clips of data.val at a time
_EVAL_CLIPS: Final = 8  # of a row of data.val, evenly in time


@dataclass(frozen=True)
class WorldRun(TrainingRun[config.WorldConfig]):
    """Hold what a run has to do, and the features of all frames where they are kept."""

    kept: KeptFrames | None = None

    def loader(self, steps: range, team: Team) -> Iterable[Any]:
        """Load the micro-batches of `steps`: of kept features where there are any, else of decoded clips."""
        if self.kept is None:
            return super().loader(steps, team)
        settings, num = self.settings, team.accumulate
        plan = TrainPlan(self.sources, settings.data, settings.run.seed, team.ranks.rank, team.ranks.num, num)
        return kept_batches(plan, self.kept, range(steps.start * num, steps.stop * num))


def train_world(
    settings: config.WorldConfig, stop_at_step: int | None = None, progress: bool = True
) -> dict[str, Any] | None:
    """Run or resume the training of a world model; return the summary, or None if it stopped early.

    Its encoder is trained first where `world.pretrain` says how and it is not there yet. `stop_at_step` saves and ends
    before that step: the same call goes on later, bit for bit. Raises UserError for bad input.
    """
    refuse_several("vjepa.train of a world model")
    if not _pretrained(settings, progress):
        return None
    run, method = prepare(settings, progress)
    with sole_writer(run.folder):
        return _go_on(run, method, stop_at_step)


def _pretrained(settings: config.WorldConfig, progress: bool) -> bool:
    """Train the encoder, where there is something left to train; tell whether it is done."""
    wish = settings.world
    if wish.pretrain is None or settings.run.folder.start.is_file():
        return True
    wanted = config.load(wish.pretrain, [f"run.dir={wish.model_path}"])
    if wanted.run.folder.summary.is_file():
        return True
    return train(wanted, progress=progress) is not None


def prepare(settings: config.WorldConfig, progress: bool) -> tuple[WorldRun, WorldModel]:
    """Check everything that can be wrong before the first step, then open the run folder."""
    where, dtype = device.pick(settings.run)
    device.check_compiler(settings.run, where)
    if settings.data.prepare != "none":
        first_run.write_data(settings.data, progress)
    sources = open_sources(settings.data)
    (part,) = sources[0].parts
    _refuse_shared(settings, part)
    weights = world.read_encoder(settings)
    encoder = weights.build_encoder()
    if settings.world.from_scratch:
        encoder = untrained(encoder, settings.run.seed)
    index = open_index(settings.data.train.paths)
    tracks = Tracks(measured_actions(index, part.rows, settings.data), index.tracks.state)
    method = world.build(settings, encoder, tracks).to(where)
    total = run_length(settings, sources)
    folder = open_run(settings, settings.EVIDENCE)
    if not folder.start.is_file():
        own.write(weights, folder.start)
    files.write_text(folder.tracks, tracks.to_json())
    return WorldRun(settings, folder, sources, where, dtype, total, progress), method


def _refuse_shared(settings: config.WorldConfig, part: Part) -> None:
    """Refuse rows to learn from that are measured on. Raises UserError."""
    if settings.data.val is None:
        return
    index = open_index(settings.data.val.paths)
    shared = are_shared(part.index, part.rows, index, index.select(settings.data.val.where)).sum()
    if shared:
        raise UserError(f"data.train: {shared} of its {len(part.rows)} clips are in data.val too; give other rows")


def _go_on(run: WorldRun, method: WorldModel, stop_at_step: int | None) -> dict[str, Any] | None:
    """Restore, learn up to `stop_at_step` or the end, and measure; see `train_world`."""
    settings = run.settings
    optimizer = make_optimizer(method, settings.optim)
    state = checkpoint.restore(run.folder, method, optimizer)
    stop = run.total_steps if stop_at_step is None else min(stop_at_step, run.total_steps)
    if run.progress:
        told = f"{run.sources[0].num_rows} rows, {run.device}, {dtype_name(run.dtype)}"
        print(f"{run.folder.path}: step {state.step} of {run.total_steps}, {told}", flush=True)
    if state.step < stop:
        check_precision(run, state)
        state.dtype = dtype_name(run.dtype)
        if settings.world.keep_features:
            frames = FrameSource(open_index(settings.data.train.paths), run.sources[0].parts[0].rows, settings.data)
            run = replace(run, kept=keep_frames(method, weights_hash(method.encoder), frames, settings, run.progress))
        step = TrainingStep(
            method, optimizer, settings.optim, run.dtype, run.total_steps, settings.run.compile, guard=settings.guard
        )
        if method.head is not None and state.step == 0:
            method.head.begin(_first_features(run, method))
        run.folder.summary.unlink(missing_ok=True)
        judge = Foresight(run, method) if settings.world.eval_every_steps else None
        learn(run, step, run_log.RunLog(run.folder, state.step), judge, None, state, stop)
    if state.step < run.total_steps:
        print(
            f"stopped at step {state.step} of {run.total_steps}; the same command goes on from there", file=sys.stderr
        )
        return None
    return conclude(run, method, state)


@torch.no_grad()
def _first_features(run: WorldRun, method: WorldModel) -> Tensor:
    """Read the features of the first batches as the head of vectors does: [N, h, w, D]."""
    found, num = list[Tensor](), 0
    for batch in run.loader(range(run.total_steps), Team()):
        found.append(normed(method.read(batch)[0]).flatten(0, 1))
        num += len(found[-1])
        if num >= _MEASURED_FRAMES:
            break
    return torch.cat(found)


class Foresight:
    """Measure predictions on data.val during training; the checkpoint with the least error is the best."""

    def __init__(self, run: WorldRun, method: WorldModel) -> None:
        self.run, self.method = run, method

    def measure_at(self, step: int) -> dict[str, float]:
        """Measure at every `world.eval_every_steps` and at the end: the relative error of each step ahead."""
        every = self.run.settings.world.eval_every_steps
        if every is None or (step % every and step != self.run.total_steps):
            return {}
        self.method.train(False)
        found = foresight(self.method, self.run.settings)
        self.method.train()
        last = len(found["predicted"])
        return {f"val_error_{last}": found["predicted"][-1] / max(found["copied"][-1], 1e-12)}

    def merit(self, found: dict[str, float]) -> float:
        return -next(iter(found.values()))


def foresight(method: WorldModel, settings: config.WorldConfig) -> dict[str, list[float]]:
    """Measure on clips of data.val the errors of predictions 1, 2, ... steps ahead of their first frame.

    Gives of each step ahead the mean squared error of `predicted`, of `copied`, the first frame taken for all others,
    and of `shuffled`, predicted by the actions of other clips.
    """
    source = settings.data.val
    if source is None:
        raise ValueError("there are no clips to measure on")
    index = open_index(source.paths)
    rows, sums = index.select(source.where), list[Tensor]()
    views = Views(num_clips=_EVAL_CLIPS)
    for batch in eval_loader(index, rows, settings.data, _EVAL_BATCH // _EVAL_CLIPS, settings.data.workers, views):
        if len(batch.video) and batch.actions is not None:
            sums.append(_errors(method, batch))
    means = torch.stack(sums).mean(dim=0)
    return {name: row.tolist() for name, row in zip(("predicted", "copied", "shuffled"), means, strict=True)}


@torch.no_grad()
def _errors(method: WorldModel, batch: Any) -> Tensor:
    """Give the mean squared errors of `foresight` of one batch: [3, T - 1]."""
    features, actions, states = method.read(batch)
    latents = method.latents_of(features)

    def rolled(actions: Tensor) -> Tensor:
        shown = None if states is None else states[:, :1]
        found, past = method.predictor.go_on(latents[:, :1], actions[:, :1], shown)
        return method.roll_out(found[:, 0], past, actions[:, 1:], states, actions.shape[1])

    kinds = (rolled(actions), latents[:, :1].expand_as(latents[:, 1:]), rolled(actions.roll(1, dims=0)))
    return torch.stack([(kind - latents[:, 1:]).square().mean(dim=(0, 2, 3, 4)).cpu() for kind in kinds])


def conclude(run: WorldRun, method: WorldModel, state: TrainingState) -> dict[str, Any]:
    """Measure the best checkpoint on data.val, write summary.json and the loss curve; a finished run is shown again."""
    folder, settings = run.folder, run.settings
    measured = folder.best or folder.require()
    checkpoint.load_networks(measured, method)
    method.requires_grad_(False).eval()
    rows = run_log.read_metrics(folder)
    summary: dict[str, Any] = {
        "steps": state.step,
        "final_loss": rows[-1]["loss"],
        "measured": {"step": measured.step},
        "num_replaced": state.num_replaced,
        "actions": asdict(method.actions),
        "foresight": foresight(method, settings) if settings.data.val else None,
    }
    folder.pictures.mkdir(exist_ok=True)
    pictures.loss_curve(folder.pictures / "loss_curve.png", rows, ["loss", "prediction", "roll_out", "inverse", "goal"])
    files.write_json(folder.summary, summary)
    if run.progress:
        print("\n" + worlds.closing_table(summary))
        print(f"{folder.path}: plan in it with python -m vjepa.plan {folder.path}")
    return summary
