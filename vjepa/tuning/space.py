"""What is searched: the settings that decide whether a run learns, each with a range around what the config has.

A knob is a number of its own, not always a setting: the EMA is searched by its half-life as a share of the run, so that
a value found in short runs means the same in a long one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from vjepa import config
from vjepa.health.measures import ema_half_life

LR: Final = "optim.lr"
HALF_LIFE: Final = "ema_half_life_share"
MASK_RATIO: Final = "masks.ratio"
WEIGHTS: Final = ("view_invariance", "vicreg_variance", "vicreg_covariance", "sigreg")
MISSING: Final = {"vicreg_variance": 1.0, "vicreg_covariance": 0.5}  # what a config without any of them is tried with

_LR_FACTOR: Final = 10**1.5
_WEIGHT_FACTOR: Final = 10.0
_HALF_LIVES: Final = (0.01, 1.0)  # of the run
_RATIOS: Final = (0.5, 0.95)


@dataclass(frozen=True)
class Knob:
    """Hold what is searched: a number from `low` to `high`, by its logarithm or as it is.

    own: what the config has; 0, below the range, for a weight that it lacks.
    """

    name: str
    low: float
    high: float
    own: float
    is_log: bool

    def clamp(self, value: float) -> float:
        """Move a value into the range."""
        return min(max(value, self.low), self.high)

    def at(self, share: float) -> float:
        """Give the value at `share`, 0 to 1, of the way through the range."""
        if not self.is_log:
            return self.low + share * (self.high - self.low)
        return self.clamp(self.low * (self.high / self.low) ** share)


def knobs(settings: config.Config, total_steps: int) -> list[Knob]:
    """List what can be searched of a config whose run has `total_steps`.

    Learning rate; half-life of the EMA, where there is one that moves; weights of the terms that keep features apart,
    those that the config has, or MISSING; the ratio of the mask sets, where all
    have one and it does not change.
    """
    found = [_around(LR, settings.optim.peak_lr, _LR_FACTOR)]
    if settings.objective.targets == "ema" and 0 < settings.optim.ema_decay < 1:
        share = ema_half_life(settings.optim.ema_decay) / total_steps
        low, high = _HALF_LIVES
        found.append(Knob(HALF_LIFE, min(low, share), max(high, share), share, True))
    found += _weights(settings)
    ratio = _common_ratio(settings)
    if ratio is not None:
        found.append(Knob(MASK_RATIO, min(_RATIOS[0], ratio), max(_RATIOS[1], ratio), ratio, False))
    return found


def with_values(settings: config.Config, values: Mapping[str, float], total_steps: int) -> config.Config:
    """Give `settings` with the values of knobs, as far as `values` names them; the run has `total_steps`.

    Both ends of an EMA that stays as it is are moved; one that ends at another decay keeps its end.
    """
    tree: dict[str, Any] = settings.model_dump(mode="json")
    for name, value in values.items():
        if name == HALF_LIFE:
            _set_decay(tree["optim"], 0.5 ** (1 / (value * total_steps)))
        elif name == MASK_RATIO:
            tree["masks"] = [{**mask, "ratio": value} if "ratio" in mask else mask for mask in tree["masks"]]
        else:
            section, key = name.split(".")
            tree[section][key] = value
    return config.validate(tree, ", ".join(f"{name}={value:.4g}" for name, value in values.items()))


def _weights(settings: config.Config) -> list[Knob]:
    objective = settings.objective
    given = {name: getattr(objective, name) for name in WEIGHTS if getattr(objective, name)}
    compares = all(data.global_batch > 1 for data in settings.data.sources.values())
    if not given and objective.targets == "ema" and compares:
        around = [_around(f"objective.{name}", weight, _WEIGHT_FACTOR) for name, weight in MISSING.items()]
        return [replace(knob, own=0.0) for knob in around]
    return [_around(f"objective.{name}", weight, _WEIGHT_FACTOR) for name, weight in given.items()]


def _around(name: str, own: float, factor: float) -> Knob:
    return Knob(name, own / factor, own * factor, own, True)


def _set_decay(optim: dict[str, Any], decay: float) -> None:
    if optim["final_ema_decay"] == optim["ema_decay"]:
        optim["final_ema_decay"] = decay
    optim["ema_decay"] = decay


def _common_ratio(settings: config.Config) -> float | None:
    ratios = {(mask.ratio, mask.final_ratio) for mask in settings.masks if isinstance(mask, config.RatioMask)}
    ratio, final = ratios.pop() if len(ratios) == 1 else (None, None)
    return ratio if final is None else None
