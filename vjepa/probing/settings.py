"""What `vjepa.probe` and `vjepa.extract` are asked: a field for each option. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from vjepa.command import ENCODER_HELP, Option
from vjepa.errors import UserError

BASELINES: Final = (
    "random_init",
    "pixels",
    "motion_energy",
    "shuffled_frames",
    "reversed_frames",
    "untrained_predictor",
)
_AS_TRAINED: Final = "default: as the run was trained, auto"


@dataclass(frozen=True, kw_only=True)
class SubjectSettings:
    """Name a frozen encoder and how its clips are read; None: as its run was trained, else as it was published."""

    model_path: Annotated[
        Path, Option("run or checkpoint folder, exported or published file, Hugging Face folder", "PATH")
    ]
    encoder: Annotated[Literal["encoder", "target_encoder"] | None, Option(ENCODER_HELP)] = None
    num_frames: Annotated[
        int | None, Option("frames of a clip (default: as the run was trained; 16 for other encoders)", "T", least=1)
    ] = None
    clip_fps: Annotated[
        float | None,
        Option("their rate (default: as the run was trained; the whole video for other encoders)", "F", above=0),
    ] = None
    frame_step: Annotated[int | None, Option("every n-th frame instead", "N", least=1)] = None
    crop_px: Annotated[
        tuple[int, ...] | None,
        Option("side of a clip, or height and width (default: as the encoder was trained)", "S|H,W", least=1),
    ] = None
    fit: Annotated[
        Literal["crop", "squash", "pad"] | None,
        Option(
            "frames of another shape: the centre alone; the whole, squashed; or the whole within a border (default: as "
            "the run was trained; crop for other encoders)"
        ),
    ] = None
    workers: Annotated[
        int | None, Option("processes that decode (default: as the run was trained, 2)", "N", least=0)
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"] | None, Option(_AS_TRAINED)] = None
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, Option(_AS_TRAINED)] = None


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(SubjectSettings):
    """Ask for a measurement."""

    dataset: Annotated[
        tuple[str, ...],
        Option(
            "clip index made by data_prep.index, or several, read as one; digits, cifar10, cifar100, imagenet; or a "
            "folder of images",
            "DATA[,DATA]",
        ),
    ]
    eval_mode: Annotated[
        Literal["knn", "linear_probe", "attentive", "dense", "propagate"],
        Option(
            "k nearest neighbours; a linear head; heads that attend to all tokens; of masks that the index names: a "
            "linear map of each cell (dense), or the first frame's masks carried on by features alone (propagate)"
        ),
    ]
    # which rows
    label: Annotated[
        tuple[str, ...],
        Option(
            "column to predict; several with commas between them share one pass over the clips; dense, propagate: the "
            "column that names masks (then the default is things)",
            "COLUMN[,COLUMN]",
        ),
    ] = ("label",)
    task: Annotated[
        Literal["auto", "classify", "regress", "multilabel"],
        Option(
            "what the label is: a class; a number, measured by R2; or classes with | between them, measured by mAP; "
            "auto: as the column looks"
        ),
    ] = "auto"
    group: Annotated[
        str, Option("column whose equal rows stay together in selection and in the bootstrap", "COLUMN")
    ] = "group"
    train: Annotated[str | None, Option("rows to learn from (default: split=train)", "COL=V[,V2]")] = None
    selection: Annotated[
        str | None,
        Option(
            "rows to choose settings on (default: split=selection if there are any, else a fifth of train)",
            "COL=V[,V2]",
        ),
    ] = None
    val: Annotated[str | None, Option("rows to measure on (default: split=val)", "COL=V[,V2]")] = None
    fold: Annotated[
        str | None,
        Option("cross-validation: measure on the rows of each value in turn, learn and choose on the others", "COLUMN"),
    ] = None
    data_root: Annotated[str | None, Option("folder of an image data set that is known by name", "DIR")] = None
    # how they are seen, and what is read of the encoder
    num_clips: Annotated[
        int, Option("clips of a video to choose and measure on, evenly in time; their answers are averaged", least=1)
    ] = 1
    num_crops: Annotated[int, Option("crops of each, evenly along the longer side (fit: crop)", least=1)] = 1
    train_passes: Annotated[
        int, Option("random clips and crops of each video to learn from; 0: the central one", "N", least=0)
    ] = 0
    levels: Annotated[str, Option("blocks whose features are read: last, quarters, or numbers such as 5,11")] = "last"
    pool: Annotated[
        str,
        Option(
            "k-NN and linear probe, which read: the mean of all tokens; slots, the mean of each time slot; grid or "
            "grid:G, of each of 4x4 or GxG cells of each time slot; or all, every token in its place",
            "HOW",
        ),
    ] = "mean"
    baselines: Annotated[str, Option(f"all, none, or some of {','.join(BASELINES)}", "NAMES")] = "all"
    anticipation_s: Annotated[
        float | None,
        Option(
            "action anticipation: each row of the index ends where an action starts (in a manifest for "
            "data_prep.index: end_s, and start_s as far back as may be seen, or none); the clip ends so many seconds "
            "before it",
            "S",
            least=0,
        ),
    ] = None
    rollout: Annotated[
        Literal["none", "predictor", "both"],
        Option(
            "anticipation: tokens that the predictor expects to follow, until the action starts, beside those of the "
            "encoder; both: measured with and without"
        ),
    ] = "none"
    # how probes learn
    k: Annotated[
        tuple[int, ...] | None, Option("k-NN: neighbours to choose from (default: 1,5,10,20,50)", "K[,K2]", least=1)
    ] = None
    head: Annotated[
        Literal["logistic", "ridge"] | None, Option("linear probe: the loss (default: logistic; of numbers ridge)")
    ] = None
    class_weights: Annotated[
        Literal["none", "balanced"],
        Option(
            "balanced: every class counts as much, whatever its clips, in the loss, in votes, and in what is chosen"
        ),
    ] = "none"
    shots: Annotated[
        tuple[int, ...] | None,
        Option(
            "measure too what is learned from so many train clips of each class alone, of numbers from so many over "
            "their range",
            "N[,M]",
            least=1,
        ),
    ] = None
    shot_draws: Annotated[int, Option("draws of those clips, of which mean and interval are told", "N", least=1)] = 5
    batch_norm: Annotated[Literal["yes", "no"], Option("linear probe: features standardised by train")] = "yes"
    depth: Annotated[
        Literal[1, 2, 3, 4], Option("attentive: 1 for cross-attention alone, 4 with 3 blocks before it")
    ] = 1
    probe_heads: Annotated[
        int | None, Option("attentive: attention heads (default: 16, or the next fewer that divide the width)", least=1)
    ] = None
    lr: Annotated[
        tuple[float, ...] | None,
        Option("attentive: learning rates to choose from (default: 5e-3,3e-3,1e-3,3e-4,1e-4)", "X[,Y]", above=0),
    ] = None
    weight_decay: Annotated[
        tuple[float, ...] | None,
        Option("attentive: weight decays to choose from (default: .01,.1,.4,.8)", "X[,Y]", least=0),
    ] = None
    max_steps: Annotated[
        int, Option("attentive: steps at most; heads stop where selection gets no better", least=1)
    ] = 10_000
    probe_batch: Annotated[
        int | None, Option("attentive: clips per step (default: 256, or a sixteenth of train)", least=1)
    ] = None
    seed: Annotated[
        int, Option("attentive: initial weights and order; augmented passes; draws of --shots", least=0)
    ] = 0
    cells: Annotated[
        int, Option("dense, propagate: cells of a token along a side, each seen by a pass of its own", "N", least=1)
    ] = 2
    most_clips: Annotated[
        int, Option("dense, propagate: clips of each part at most, evenly among them", "N", least=1)
    ] = 200
    # where the work is done, and where things are kept
    batch: Annotated[int, Option("views per forward pass of the encoder", least=1)] = 64
    cache: Annotated[
        Path | None, Option("where features are kept (default: $XDG_CACHE_HOME/vjepa/features)", "DIR")
    ] = None
    no_cache: Annotated[bool, Option("keep no features after the command")] = False
    feature_dtype: Annotated[Literal["fp16", "bf16"], Option("of stored features")] = "fp16"
    out: Annotated[
        Path | None,
        Option(
            "where the result goes (default: RUN/probe.json, or probe.json here); results of other probes in it are "
            "kept",
            "FILE",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(SubjectSettings):
    """Ask for the features of an index. Raises UserError for options that exclude each other."""

    dataset: Annotated[
        tuple[str, ...],
        Option("clip index (Parquet) made by data_prep.index, or several, read as one", "INDEX[,INDEX]"),
    ]
    out: Annotated[Path, Option("FILE.safetensors, FILE.parquet, or a folder of safetensors parts", "OUT")]
    pool: Annotated[
        str,
        Option(
            "mean of the tokens of a clip, of its time slots (slots), of a grid in each (grid, grid:G), or all tokens",
            "HOW",
        ),
    ] = "mean"
    level: Annotated[str, Option("features after which blocks, such as 2,5,-1", "last|LIST")] = "last"
    num_clips: Annotated[int, Option("clips of each video, evenly in time", "N", least=1)] = 1
    window_s: Annotated[
        float | None,
        Option("instead: windows that slide over each video; num_frames are spread over one", "S", above=0),
    ] = None
    stride_s: Annotated[float | None, Option("from the start of a window to that of the next", "S", above=0)] = None
    where: Annotated[
        list[str] | None, Option("rows of the index; may be given for several columns (default: all)", "COL=V[,V2]")
    ] = None
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], Option("of what is stored")] = "fp32"
    precision: Annotated[
        Literal["auto", "fp32", "bf16"] | None,
        Option("of the encoder (default: fp32 for --dtype fp32, else as the run was trained, auto)"),
    ] = None
    batch: Annotated[int, Option("clips that the encoder gets at a time", "N", least=1)] = 16
    shard: Annotated[
        str | None, Option("do part I of N, from 1 (default: all, or the share of the rank under torchrun)", "I/N")
    ] = None
    format: Annotated[str | None, Option("of --model_path (default: recognised)", "FORMAT")] = None

    def __post_init__(self) -> None:
        if (self.window_s is None) != (self.stride_s is None):
            raise UserError("--window-s and --stride-s: give both, or neither")
        if self.window_s is not None and self.num_clips != 1:
            raise UserError("--num-clips: windows say how many clips a video has; leave it out")
        if self.dtype == "bf16" and self.out.suffix == ".parquet":
            raise UserError("--dtype bf16: Parquet has no such numbers; use fp16 or fp32, or a .safetensors file")
