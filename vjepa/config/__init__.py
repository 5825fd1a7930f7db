"""Every setting of a run: typed, frozen, strict, one default each.

A run is described by one YAML file and overrides `section.key=value`; both go through the same validation. An
unknown key, a wrong type or an impossible value is a `ConfigError` with one line: the path of the key, what is
wrong, and the remedy. Counts of time are in steps unless the name says otherwise (`_s` seconds, `_px` pixels).
"""

from vjepa.config.channels import IMAGENET_MEAN, IMAGENET_STD, Channels
from vjepa.config.data import Data, MixedSource, Source
from vjepa.config.files import (
    changed,
    config_path,
    describe,
    describe_aliases,
    dump,
    explain,
    load,
    load_run,
    load_training,
    read_tree,
    validate,
    validate_finetuning,
    validate_world,
)
from vjepa.config.finetuning import Finetune, FinetuneConfig
from vjepa.config.masks import MASK_KINDS, IjepaMask, Mask, MultiblockMask, RandomMask, RatioMask, TubeMask
from vjepa.config.model import PRESETS, Backbone, EncoderSettings, Model, PredictorSettings, Transformer
from vjepa.config.monitor import HealthState, Monitor
from vjepa.config.objective import Objective
from vjepa.config.parallel import Guard, Parallel
from vjepa.config.section import ConfigError
from vjepa.config.settings import Config, Eval, Optim, Run
from vjepa.config.world import Planning, WorldConfig, WorldPredictor, WorldSettings

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MASK_KINDS",
    "PRESETS",
    "Backbone",
    "Channels",
    "Config",
    "ConfigError",
    "Data",
    "EncoderSettings",
    "Eval",
    "Finetune",
    "FinetuneConfig",
    "Guard",
    "HealthState",
    "IjepaMask",
    "Mask",
    "MixedSource",
    "Model",
    "Monitor",
    "MultiblockMask",
    "Objective",
    "Optim",
    "Parallel",
    "Planning",
    "PredictorSettings",
    "RandomMask",
    "RatioMask",
    "Run",
    "Source",
    "Transformer",
    "TubeMask",
    "WorldConfig",
    "WorldPredictor",
    "WorldSettings",
    "changed",
    "config_path",
    "describe",
    "describe_aliases",
    "dump",
    "explain",
    "load",
    "load_run",
    "load_training",
    "read_tree",
    "validate",
    "validate_finetuning",
    "validate_world",
]
