"""Features of a clip index by a frozen encoder, as safetensors or Parquet.

python -m vjepa.extract --model_path runs/demo --dataset clips.parquet --out features.parquet

One row for each clip that can be read, in the order of the index: `row` (of the index), `clip` (its number in its
video), `start_s`, `end_s`, `uri`, the label columns, and `features`: [D], or with another --pool than mean [P, D], of P
places; with --level 2,5 `features_2` and `features_5`. What was done is in the metadata of the file. Stop it at any
time: the same command goes on where it was. With --shard, or under torchrun, processes share the work; the last one to
end makes the file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vjepa import command, probe
from vjepa.data.row_filter import parse_where
from vjepa.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vjepa.config import Data
    from vjepa.data.clip_index import ClipIndex
    from vjepa.data.plan_windows import CutVideos
    from vjepa.models.encoder import Encoder
    from vjepa.models.pooling import Pooling
    from vjepa.probing.feature_files import Parts

DTYPES: Final = ("fp32", "bf16", "fp16")
_NUM_PARTS: Final = (
    64  # at least, where there are clips enough: a finished part is never computed again, and processes share parts
)
_CLIPS_PER_PART: Final = (16, 4096)
_PART_BYTES: Final = 256 << 20


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if (options.window_s is None) != (options.stride_s is None):
        raise UserError("--window-s and --stride-s: give both, or neither")
    if options.window_s is not None and options.num_clips != 1:
        raise UserError("--num-clips: windows say how many clips a video has; leave it out")
    if options.dtype == "bf16" and options.out.suffix == ".parquet":
        raise UserError("--dtype bf16: Parquet has no such numbers; use fp16 or fp32, or a .safetensors file")
    if options.dtype == "fp32" and options.precision is None:
        options.precision = "fp32"
    print(extract(options))
    return 0


def extract(options: argparse.Namespace) -> str:
    """Do the share of this process; returns what to tell. Raises UserError with one line."""
    from vjepa.data.clip_index import ClipIndex

    share = _share(options.shard)
    index = ClipIndex.open(options.dataset)
    selected = index.select(
        parse_where(options.where, "where")
    )  # what is wrong so far should show before seconds of loading

    import vjepa
    from vjepa.data.plan_windows import Cut, CutVideos
    from vjepa.probing import feature_files

    encoder = vjepa.load_encoder(options.model_path, options.format, which=options.encoder)
    data, device, computed = probe.how_to_read(options, encoder)
    encoding = _Encoding.of(encoder, options, data, device, computed)
    videos = CutVideos.of(index, selected, data, Cut(options.num_clips, options.window_s, options.stride_s))
    clips_per_part = _clips_per_part(len(videos), encoding.clip_bytes)
    plan = _plan(options, encoding, videos, clips_per_part)
    out, writer = options.out, feature_files.WRITERS.get(options.out.suffix)
    if writer and out.exists():
        found = feature_files.read_metadata(out)
        feature_files.refuse_other_plan(out, plan, found)
        lacking = len(json.loads(found["unreadable"]))
        return f"{out}: complete already" + (
            f", without {lacking} videos that could not be read; remove it to try them again" if lacking else ""
        )
    parts = feature_files.Parts(
        out.with_name(f"{out.name}.parts") if writer else out, plan, -(-len(videos) // clips_per_part)
    )
    columns = _Columns.of(index, selected)
    mine = [part for part in parts.missing() if part % share[1] == share[0]]
    _fill(parts, mine, clips_per_part, videos, columns, encoding, options)
    with parts.alone():
        if writer and out.exists():  # another process was quicker
            parts.remove()
            return f"{out}: complete"
        missing = parts.missing()
        if missing:
            there = parts.num_parts - len(missing)
            return (
                f"{parts.folder}: {there} of {parts.num_parts} parts are there; the other shards, or this command "
                "without --shard, make the rest"
            )
        rows, unreadable = parts.rows(), parts.unreadable()
        for row, reason in unreadable.items():
            print(f"row {row}, {index.row(row).uri}: {reason}", file=sys.stderr)
        parts.tidy()
        if not len(rows):
            raise UserError(
                f"{options.dataset}: none of its {len(selected)} videos could be read; is the disk there? "
                f"Remove {parts.folder} to try again"
            )
        if writer:
            writer(out, parts, columns.texts)
            parts.remove()
    left_out = (
        f"; {len(videos) - len(rows)} clips of {len(unreadable)} videos cannot be read and are left out"
        if unreadable
        else ""
    )
    return f"{out}: {len(rows)} clips of {len(set(rows.tolist()))} videos, {encoding} each{left_out}"


@dataclass(frozen=True)
class _Encoding:
    """From clips to what is stored of them. depths: blocks after which features are read; None: the last, normed as in
    training.
    """

    encoder: Encoder
    depths: tuple[int, ...] | None
    pooling: Pooling
    stored: torch.dtype
    computed: torch.dtype
    device: torch.device

    @classmethod
    def of(
        cls, encoder: Encoder, options: argparse.Namespace, data: Data, device: torch.device, computed: torch.dtype
    ) -> _Encoding:
        import torch

        from vjepa.models.pooling import Pooling

        pooling = Pooling.parse(options.pool, encoder.grid(data.num_frames, data.crop_px, data.crop_px))
        stored = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.dtype]
        return cls(encoder.to(device), _depths(options.level, encoder.depth), pooling, stored, computed, device)

    @property
    def names(self) -> list[str]:
        return ["features"] if self.depths is None else [f"features_{depth}" for depth in self.depths]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the features of one clip at one level."""
        return (self.encoder.width,) if self.pooling.kind == "mean" else (self.pooling.num_places, self.encoder.width)

    @property
    def clip_bytes(self) -> int:
        return math.prod(self.shape) * len(self.names) * self.stored.itemsize

    def __str__(self) -> str:
        levels = "the last level" if self.depths is None else f"levels {', '.join(map(str, self.depths))}"
        return f"{' x '.join(map(str, self.shape))} {str(self.stored).removeprefix('torch.')} numbers of {levels}"

    def __call__(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 [B, 3, T, S, S] -> [B, D], or [B, P, D], by name. Raises UserError for features that are no numbers."""
        import torch

        from vjepa.data.augment import normalise

        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.computed, enabled=self.computed is not torch.float32),
        ):
            clips = normalise(video.to(self.device), self.computed)
            levels = [self.encoder(clips)] if self.depths is None else self.encoder.intermediate(clips, self.depths)
        found = {}
        for name, tokens in zip(self.names, levels, strict=True):
            values = self.pooling(tokens).reshape(-1, *self.shape).to(self.stored).cpu()
            if not torch.isfinite(values).all():
                raise UserError(
                    f"{name}: features hold NaN or infinity; the encoder has diverged, use an earlier "
                    "checkpoint, or --dtype fp32"
                )
            found[name] = values
        return found


@dataclass(frozen=True)
class _Columns:
    """What is stored of a row beside its features. texts: column -> one value per row of the index; widths: bytes of
    the longest that is selected.
    """

    texts: dict[str, list[str | None]]
    widths: dict[str, int]
    label_ids: list[str | None]

    @classmethod
    def of(cls, index: ClipIndex, selected: np.ndarray) -> _Columns:
        from vjepa.data.clip_index import SCHEMA, resolve

        names = ["label", "split", "group", *(name for name in index.names if name not in SCHEMA.names)]
        folder = str(index.path.parent)
        texts: dict[str, list[str | None]] = {"uri": [resolve(str(uri), folder) for uri in index.column("uri")]}
        texts |= {name: index.column(name) for name in names}
        widths = {
            name: max(1, *(len((values[row] or "").encode()) for row in selected)) for name, values in texts.items()
        }
        return cls(texts, widths, index.column("label_id"))

    def of_rows(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        import torch

        from vjepa.probing.feature_files import text_tensor

        found = {
            name: text_tensor([values[row] for row in rows], self.widths[name]) for name, values in self.texts.items()
        }
        ids = [int(self.label_ids[row] or -1) for row in rows]
        return {**found, "label_id": torch.tensor(ids, dtype=torch.int64)}


def _fill(
    parts: Parts,
    numbers: Sequence[int],
    clips_per_part: int,
    videos: CutVideos,
    columns: _Columns,
    encoding: _Encoding,
    options: argparse.Namespace,
) -> None:
    """Make the parts `numbers` from one pass over their clips."""
    from vjepa.data.loader import plan_loader
    from vjepa.data.plan_windows import WindowPlan

    spans = [range(part * clips_per_part, min(len(videos), (part + 1) * clips_per_part)) for part in numbers]
    batches = [[span[first : first + options.batch] for first in range(0, len(span), options.batch)] for span in spans]
    loader = iter(plan_loader(WindowPlan(videos, [batch for part in batches for batch in part]), videos.data))
    with command.progress_bar(shown=True, total=sum(map(len, spans)), unit="clip", desc="features") as bar:
        for part, of_part in zip(numbers, batches, strict=True):
            made = []
            unreadable: dict[int, str] = {}
            for batch in of_part:
                read = next(loader)
                made.append((read.clip_ids, encoding(read.video)))
                unreadable |= {int(videos.rows[clip]): reason for clip, reason in read.failures}
                bar.update(len(batch))
            parts.write(part, _tensors(made, videos, columns), unreadable)


def _tensors(
    made: Sequence[tuple[torch.Tensor, dict[str, torch.Tensor]]], videos: CutVideos, columns: _Columns
) -> dict[str, torch.Tensor]:
    """The tensors of a part from the clips, int64 [B], and the features of its batches."""
    import torch

    clips = torch.cat([ids for ids, _ in made]).numpy()
    rows, times_s = videos.rows[clips], torch.from_numpy(videos.times_s(clips.tolist()))
    features = {name: torch.cat([found[name] for _, found in made]) for name in made[0][1]}
    numbers = {"row": torch.from_numpy(rows), "clip": torch.from_numpy(videos.numbers[clips])}
    return {**numbers, "start_s": times_s[:, 0], "end_s": times_s[:, 1], **columns.of_rows(rows.tolist()), **features}


def _plan(options: argparse.Namespace, encoding: _Encoding, videos: CutVideos, clips_per_part: int) -> dict[str, Any]:
    """All that the features depend on. Equal plans give equal files, whatever the number of processes."""
    from vjepa.probing import extractors

    data = videos.data
    frames = {
        name: getattr(data, name)
        for name in ("num_frames", "clip_fps", "frame_step", "duration_s", "padding", "crop_px")
    }
    return {
        "format": "vjepa.extract 1",
        "model_path": str(options.model_path),
        "weights_sha256": extractors.weights_hash(encoding.encoder),
        "encoder": encoding.encoder.model.model_dump(mode="json"),
        "dataset": str(videos.index.path),
        "dataset_sha256": hashlib.sha256(videos.index.path.read_bytes()).hexdigest(),
        "where": parse_where(options.where, "where"),
        "views": {**frames, "crop": "centre", **asdict(videos.cut)},
        "level": "last" if encoding.depths is None else list(encoding.depths),
        "pool": str(encoding.pooling),
        "shape": list(encoding.shape),
        "grid": asdict(encoding.pooling.grid),
        "dtype": options.dtype,
        "computed_in": str(encoding.computed).removeprefix("torch."),
        "clips_per_part": clips_per_part,
    }


def _clips_per_part(num_clips: int, clip_bytes: int) -> int:
    """Depends on nothing that may differ from process to process, or the next time."""
    least, most = _CLIPS_PER_PART
    return max(1, min(max(least, -(-num_clips // _NUM_PARTS)), most, _PART_BYTES // clip_bytes))


def _depths(level: str, num_blocks: int) -> tuple[int, ...] | None:
    """`last`, or numbers of blocks with commas between."""
    if level == "last":
        return None
    if not re.fullmatch(r"-?\d+(,-?\d+)*", level):
        raise UserError(f"--level {level}: write last, or numbers of blocks such as 2,5,-1")
    depths = [int(number) for number in level.split(",")]
    if any(not -num_blocks <= depth < num_blocks for depth in depths):
        raise UserError(f"--level {level}: this encoder has the blocks 0 to {num_blocks - 1}")
    return tuple(dict.fromkeys(depth % num_blocks for depth in depths))


def _share(shard: str | None) -> tuple[int, int]:
    """(number, of how many), the number from 0: of --shard, or of torchrun."""
    if shard is None:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {shard}: write I/N with I from 1 to N, such as 2/8")
    return int(match[1]) - 1, int(match[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vjepa.extract",
        description="Features of a clip index by a frozen encoder, as safetensors or Parquet.",
    )
    whole, count, above_0 = command.number(int, least=0), command.number(int, least=1), command.number(float, above=0)

    def add(name: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", *([f"--{name.replace('_', '-')}"] if "_" in name else []), **options)

    add(
        "model_path",
        required=True,
        metavar="PATH",
        help="run, checkpoint, weights file of a known format, or Hugging Face folder",
    )
    add("dataset", required=True, metavar="INDEX", help="clip index (Parquet) made by data_prep.index")
    add(
        "out",
        required=True,
        type=Path,
        metavar="OUT",
        help="FILE.safetensors, FILE.parquet, or a folder of safetensors parts",
    )
    add(
        "pool",
        default="mean",
        metavar="HOW",
        help="mean of the tokens of a clip, of its time slots (slots), of a grid in each (grid, grid:G), or all tokens",
    )
    add(
        "level", default="last", metavar="last|LIST", help="features after which blocks, such as 2,5,-1 (default: last)"
    )
    add("num_clips", type=count, default=1, metavar="N", help="clips of each video, evenly in time (default: 1)")
    add(
        "window_s",
        type=above_0,
        metavar="S",
        help="instead: windows that slide over each video; num_frames are spread over one",
    )
    add("stride_s", type=above_0, metavar="S", help="from the start of a window to that of the next")
    add(
        "num_frames",
        type=count,
        metavar="T",
        help="frames of a clip (default: as the run was trained; 16 for other encoders)",
    )
    add(
        "clip_fps",
        type=above_0,
        metavar="F",
        help="their rate (default: as the run was trained; the whole video for other encoders)",
    )
    add("frame_step", type=count, metavar="N", help="every n-th frame instead")
    add("crop_px", type=count, metavar="S", help="side of the crop (default: as the encoder was trained)")
    add(
        "where",
        action="append",
        default=[],
        metavar="COL=V[,V2]",
        help="rows of the index; may be given for several columns (default: all)",
    )
    add("dtype", default="fp32", choices=DTYPES, help="of what is stored (default: fp32)")
    add("batch", type=count, default=16, metavar="N", help="clips that the encoder gets at a time (default: 16)")
    add("workers", type=whole, metavar="N", help="processes that decode (default: as the run was trained, 2)")
    add("device", choices=["auto", "cpu", "cuda", "mps"], help="default: as the run was trained, auto")
    add(
        "precision",
        choices=["auto", "fp32", "bf16"],
        help="of the encoder (default: fp32 for --dtype fp32, else as the run was trained, auto)",
    )
    add("shard", metavar="I/N", help="do part I of N, from 1 (default: all, or the share of the rank under torchrun)")
    add("encoder", choices=command.ENCODERS, help=command.ENCODER_HELP)
    add("format", metavar="FORMAT", help="of --model_path (default: recognised)")
    return parser


if __name__ == "__main__":
    command.run(main)
