"""The health of a run while it trains: fixed clips under fixed masks, measured now and then, and a verdict on it.

It draws nothing and changes nothing: a run with it and one without learn the same, bit for bit. What it has seen is in
metrics.jsonl, from which a resumed run reads it back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from vjepa import config
from vjepa.data.joined_index import open_index
from vjepa.data.loader import eval_loader
from vjepa.errors import NotFinite
from vjepa.health import measures
from vjepa.health.verdict import Row, holds_its_best, judge
from vjepa.objectives.prediction import prediction_loss
from vjepa.records import Observed
from vjepa.training.step import ObservedMethod, TrainingStep

_FEWEST_CLIPS: Final = 2
_MOST_NUMBERS: Final = 1 << 22  # of targets that are measured: of more, every n-th feature


class HealthMonitor:
    """Measure the same clips at the steps that `monitor.every_steps` names, and judge all that was logged so far."""

    def __init__(
        self,
        settings: config.Config,
        clips: Tensor,
        step: TrainingStep[ObservedMethod],
        rows: Sequence[Row],
        total_steps: int,
    ) -> None:
        """Watch `step` on uint8 clips [B, 3, T, H, W]; fewer than two are not measured.

        rows: of metrics.jsonl up to the step that the run goes on from.
        """
        self.settings, self.clips, self.step, self.total_steps = settings, clips, step, total_steps
        self.is_held_out = settings.data.selection is not None
        self.verdict = judge(rows, total_steps)

    def measure_at(self, step: int) -> dict[str, float]:
        """Measure at a step (0: before the first one), or give nothing where it is not one to measure at.

        Raises NotFinite where features are not finite any more, which no measure is defined for.
        """
        every = self.settings.monitor.every_steps
        if every is None or (step % every and step != self.total_steps) or len(self.clips) < _FEWEST_CLIPS:
            return {}
        size = self.settings.data.global_batch
        loss = "held_out_loss" if self.is_held_out else "fixed_loss"
        with self.step.spread.whole():
            observed = join([self.step.observe(part) for part in torch.split(self.clips, size)])
            networks = self._networks(step)
        _refuse_infinite(observed, step)
        found = measure(observed, self.settings.objective, loss) | networks
        return {f"health/{name}": value for name, value in found.items() if math.isfinite(value)}

    def judge(self, rows: Sequence[Row]) -> bool:
        """Judge the rows of metrics.jsonl so far; tell whether the verdict is another one now."""
        before, self.verdict = self.verdict, judge(rows, self.total_steps)
        return before.state != self.verdict.state

    def is_best(self, rows: Sequence[Row], save_every_steps: int) -> bool:
        """Tell whether the checkpoint of the last row is the best one so far: the newest of those that LiDAR does not
        tell to be worse. Never where the online probe says which is best.

        Only steps that save a checkpoint whatever happens count, so that a run that was interrupted has the same best.
        """
        step = int(rows[-1]["step"]) if rows else 0
        is_saved = step == self.total_steps or step % save_every_steps == 0
        return self.settings.eval.every_steps is None and is_saved and holds_its_best(rows, self.total_steps)

    @property
    def ends_run(self) -> bool:
        """Tell whether the verdict is one of `monitor.stop_on`."""
        return self.verdict.state in self.settings.monitor.stop_on

    def _networks(self, step: int) -> dict[str, float]:
        """Compare the encoders, and say how long their difference lasts."""
        networks, found = self.step.method.networks, {}
        if {"encoder", "target_encoder"} <= networks.keys():
            found["encoder_distance"] = measures.encoder_distance(networks["encoder"], networks["target_encoder"])
        decay = self.step.method.scalars(step).get("ema_decay")
        return found | ({} if decay is None else {"ema_half_life_steps": measures.ema_half_life(decay)})


def read_clips(settings: config.Config) -> Tensor:
    """Read the clips that are measured, uint8 [B, 3, T, H, W]: evenly among the rows, from the middle of each.

    Those that cannot be read are left out.
    """
    data = settings.data
    source = data.selection or data.train
    index = open_index(source.paths)
    rows = index.select(source.where)
    num = settings.monitor.clips or min(max(data.global_batch // 2, 16), 64)
    places = np.unique(np.linspace(0, len(rows) - 1, min(num, len(rows))).astype(int))
    batches = eval_loader(index, rows[places], data, min(num, 8), data.workers)
    return torch.cat([batch.video for batch in batches])


def join(parts: list[Observed]) -> Observed:
    """Join what was observed of several clips; of many numbers, every n-th feature of targets and predictions."""
    every = math.ceil(sum(part.targets.numel() for part in parts) / _MOST_NUMBERS)
    contexts = {block: torch.cat([part.contexts[block] for part in parts]) for block in parts[0].contexts}
    targets = torch.cat([part.targets[..., ::every] for part in parts])
    sets = zip(*(part.predictions for part in parts), strict=True)
    predictions = tuple(torch.cat([tokens[..., ::every] for tokens in one]) for one in sets)
    return Observed(contexts, targets, predictions, parts[0].target_ids)


def _refuse_infinite(observed: Observed, step: int) -> None:
    for tokens in (*observed.contexts.values(), observed.targets, *observed.predictions):
        if not bool(torch.isfinite(tokens).all()):
            raise NotFinite(
                f"features are not finite after step {step}; lower optim.lr or set optim.clip_grad. The last "
                "checkpoint is untouched"
            )


def measure(observed: Observed, objective: config.Objective, loss_name: str) -> dict[str, float]:
    """Measure all that a method showed; loss_name: what the loss of prediction is logged as."""
    last = observed.contexts[max(observed.contexts)]
    features = last.mean(dim=1)
    views = last - last.mean(dim=0)  # which mask it was, the same for every clip, is no difference of views
    found = {
        "effective_rank": measures.effective_rank(features),
        "feature_std": measures.feature_std(features),
        "mean_cosine": measures.mean_cosine(features),
        "lidar": measures.lidar(views),
        "lidar_half": measures.half_interval(measures.lidar, views),
        "spread": measures.spread(observed.targets, objective.loss, objective.huber_delta),
        "position_share": measures.position_share(observed.targets),
    }
    pooled = {f"context_{block}": seen.mean(dim=1) for block, seen in observed.contexts.items()}
    pooled["target"] = observed.targets.float().mean(dim=1)
    for number, tokens in enumerate(observed.predictions):
        pooled[f"prediction_{number}"] = tokens.float().mean(dim=1)
    for name, values in pooled.items():
        found[f"rank_{name}"] = measures.effective_rank(values)
        found[f"std_{name}"] = measures.feature_std(values)
    return found | prediction_measures(observed, objective, loss_name)


def prediction_measures(observed: Observed, objective: config.Objective, loss_name: str) -> dict[str, float]:
    """Compare predictions with targets, by mask set and in the mean, and with the constants that know no clip."""
    if not observed.predictions:
        return {}
    distance = (objective.loss, objective.huber_delta)
    constants = [measures.best_constant(observed.targets, *distance, by_place=by_place) for by_place in (False, True)]
    by_set = []
    for ids, tokens in zip(observed.target_ids, observed.predictions, strict=True):
        guesses = [tokens, *(constant[:, ids] for constant in constants)]
        wanted = observed.targets[:, ids]
        by_set.append(
            [float(prediction_loss(objective.loss, guess, wanted, None, objective.huber_delta)) for guess in guesses]
        )
    loss, constant, place_constant = np.mean(by_set, axis=0).tolist()
    found = {f"{loss_name}_{number}": losses[0] for number, losses in enumerate(by_set) if len(by_set) > 1}
    skills = {"skill": measures.skill(loss, constant), "place_skill": measures.skill(loss, place_constant)}
    return {loss_name: loss, **found, **skills}
