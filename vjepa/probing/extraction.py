"""Write the features of every clip of an index into a file, whatever stops or shares the work."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from vjepa import command
from vjepa.config import Channels
from vjepa.config.row_filter import parse_where
from vjepa.data.augment import normalise
from vjepa.data.channels import require_channels
from vjepa.data.clip_index import SCHEMA, ClipIndex
from vjepa.data.joined_index import open_index
from vjepa.data.loader import plan_loader
from vjepa.data.plan_windows import Cut, CutVideos, WindowPlan
from vjepa.errors import UserError
from vjepa.models.encoder import Encoder
from vjepa.models.pooling import Pooling
from vjepa.probing.extractors import weights_hash
from vjepa.probing.feature_files import WRITERS, Parts, read_metadata, refuse_other_plan, text_tensor
from vjepa.probing.settings import ExtractSettings
from vjepa.probing.subject import Subject, blocks

_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_VIEWS: Final = ("num_frames", "clip_fps", "frame_step", "duration_s", "padding", "crop_px")
# At least, where there are clips enough: a finished part is never computed again, and processes share parts.
_NUM_PARTS: Final = 64
_CLIPS_PER_PART: Final = (16, 4096)
_PART_BYTES: Final = 256 << 20


def extract(settings: ExtractSettings) -> str:
    """Do the share of this process; give what to tell. Raises UserError with one line."""
    rank, num = _share(settings.shard)
    work = Extraction.of(settings)
    out, writer = settings.out, WRITERS.get(settings.out.suffix)
    if writer and out.exists():
        return _found(out, work.plan)
    parts = Parts(out.with_name(f"{out.name}.parts") if writer else out, work.plan, work.num_parts)
    _fill(parts, [part for part in parts.missing() if part % num == rank], work, settings.batch)
    with parts.alone():
        if writer and out.exists():  # another process was quicker
            parts.remove()
            return f"{out}: complete"
        missing = len(parts.missing())
        if missing:
            return (
                f"{parts.folder}: {parts.num_parts - missing} of {parts.num_parts} parts are there; the other shards, "
                "or this command without --shard, make the rest"
            )
        told = _summary(work, parts)
        parts.tidy()
        if writer:
            writer(out, parts, work.columns.texts)
            parts.remove()
    return f"{out}: {told}"


@dataclass(frozen=True)
class Extraction:
    """Hold what an extraction works on.

    plan: all that the features depend on; equal plans give equal files, whatever the number of processes.
    """

    videos: CutVideos
    columns: Columns
    encoding: Encoding
    clips_per_part: int
    plan: dict[str, Any]

    @classmethod
    def of(cls, settings: ExtractSettings) -> Extraction:
        """Open the index and read the encoder. Raises UserError for whatever does not fit together."""
        where = parse_where(settings.where or (), "where")
        index = open_index(settings.dataset)
        selected = index.select(where)  # what is wrong with it should show before the weights are read
        if settings.dtype == "fp32" and settings.precision is None:
            settings = replace(settings, precision="fp32")
        subject = Subject.read(settings, settings.format)
        require_channels(index, selected, subject.data.channels)
        encoding = Encoding.of(subject, settings.level, settings.pool, _DTYPES[settings.dtype])
        cut = Cut(settings.num_clips, settings.window_s, settings.stride_s)
        videos = CutVideos.of(index, selected, subject.data, cut)
        clips_per_part = _clips_per_part(len(videos), encoding.clip_bytes)
        plan = {
            "format": "vjepa.extract 1",
            "model_path": str(settings.model_path),
            "where": where,
            "dtype": settings.dtype,
            "clips_per_part": clips_per_part,
            **_facts_of_videos(videos),
            **_facts_of_encoding(encoding),
        }
        return cls(videos, Columns.of(index, selected), encoding, clips_per_part, plan)

    @property
    def num_parts(self) -> int:
        return -(-len(self.videos) // self.clips_per_part)


@dataclass(frozen=True)
class Encoding:
    """Turn clips into what is stored of them.

    depths: blocks after which features are read; None: the last, normed as in training. stored, computed: dtypes.
    """

    encoder: Encoder
    depths: tuple[int, ...] | None
    pooling: Pooling
    stored: torch.dtype
    computed: torch.dtype
    device: torch.device
    channels: Channels

    @classmethod
    def of(cls, subject: Subject, level: str, pool: str, stored: torch.dtype) -> Encoding:
        """Parse --level and --pool. Raises UserError for what the encoder does not have."""
        depths = None if level == "last" else blocks("--level", level, subject.encoder.depth)
        pooling = Pooling.parse(pool, subject.grid)
        return cls(subject.encoder, depths, pooling, stored, subject.dtype, subject.device, subject.data.channels)

    @property
    def names(self) -> list[str]:
        return ["features"] if self.depths is None else [f"features_{depth}" for depth in self.depths]

    @property
    def shape(self) -> tuple[int, ...]:
        """Give the shape of the features of one clip at one level."""
        return (self.encoder.width,) if self.pooling.kind == "mean" else (self.pooling.num_places, self.encoder.width)

    @property
    def clip_bytes(self) -> int:
        return math.prod(self.shape) * len(self.names) * self.stored.itemsize

    def __str__(self) -> str:
        levels = "the last level" if self.depths is None else f"levels {', '.join(map(str, self.depths))}"
        return f"{' x '.join(map(str, self.shape))} {str(self.stored).removeprefix('torch.')} numbers of {levels}"

    def __call__(self, video: Tensor) -> dict[str, Tensor]:
        """Encode uint8 [B, 3, T, H, W] -> [B, D], or [B, P, D], by name. Raises UserError for NaN."""
        mixed = self.computed is not torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, self.computed, enabled=mixed):
            clips = normalise(video.to(self.device), self.computed, self.channels)
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
class Columns:
    """Hold what is stored of a row beside its features.

    texts: column -> one value per row of the index; widths: bytes of the longest that is selected.
    """

    texts: dict[str, list[str | None]]
    widths: dict[str, int]
    label_ids: list[str | None]

    @classmethod
    def of(cls, index: ClipIndex, selected: np.ndarray) -> Columns:
        """Read the labels, and all columns that the schema of an index does not have."""
        names = ["label", "split", "group", *(name for name in index.names if name not in SCHEMA.names)]
        texts: dict[str, list[str | None]] = {"uri": [*index.uris()]}
        texts |= {name: index.column(name) for name in names}
        widths = {
            name: max(1, *(len((values[row] or "").encode()) for row in selected)) for name, values in texts.items()
        }
        return cls(texts, widths, index.column("label_id"))

    def of_rows(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Give the columns of some rows as tensors."""
        found = {
            name: text_tensor([values[row] for row in rows], self.widths[name]) for name, values in self.texts.items()
        }
        ids = [int(self.label_ids[row] or -1) for row in rows]
        return {**found, "label_id": torch.tensor(ids, dtype=torch.int64)}


def _fill(parts: Parts, numbers: Sequence[int], work: Extraction, batch: int) -> None:
    """Make the parts `numbers` by one pass over their clips, `batch` at a time."""
    videos, size = work.videos, work.clips_per_part
    spans = [range(part * size, min(len(videos), (part + 1) * size)) for part in numbers]
    batches = [[span[first : first + batch] for first in range(0, len(span), batch)] for span in spans]
    loader = iter(plan_loader(WindowPlan(videos, [some for part in batches for some in part]), videos.data))
    with command.progress_bar(shown=True, total=sum(map(len, spans)), unit="clip", desc="features") as bar:
        for part, of_part in zip(numbers, batches, strict=True):
            made = []
            unreadable: dict[int, str] = {}
            for some in of_part:
                read = next(loader)
                made.append((read.clip_ids, work.encoding(read.video)))
                unreadable |= {int(videos.rows[clip]): reason for clip, reason in read.failures}
                bar.update(len(some))
            parts.write(part, _tensors(made, videos, work.columns), unreadable)


def _tensors(
    made: Sequence[tuple[Tensor, dict[str, Tensor]]], videos: CutVideos, columns: Columns
) -> dict[str, Tensor]:
    """Join the clips, int64 [B], and the features of the batches of a part, and add what is known of the clips."""
    clips = torch.cat([ids for ids, _ in made]).numpy()
    rows, times_s = videos.rows[clips], torch.from_numpy(videos.times_s(clips.tolist()))
    features = {name: torch.cat([found[name] for _, found in made]) for name in made[0][1]}
    numbers = {"row": torch.from_numpy(rows), "clip": torch.from_numpy(videos.numbers[clips])}
    return {**numbers, "start_s": times_s[:, 0], "end_s": times_s[:, 1], **columns.of_rows(rows.tolist()), **features}


def _facts_of_videos(videos: CutVideos) -> dict[str, Any]:
    frames = {name: getattr(videos.data, name) for name in _VIEWS}
    return {
        "dataset": str(videos.index.path),
        "dataset_sha256": ", ".join(
            hashlib.sha256(index.path.read_bytes()).hexdigest() for _, index in videos.index.parts
        ),
        **({} if videos.data.channels == Channels() else {"channels": videos.data.channels.model_dump(mode="json")}),
        "views": {**frames, "crop": {"crop": "centre"}.get(videos.data.fit, videos.data.fit), **asdict(videos.cut)},
    }


def _facts_of_encoding(encoding: Encoding) -> dict[str, Any]:
    return {
        "weights_sha256": weights_hash(encoding.encoder),
        "encoder": encoding.encoder.model.model_dump(mode="json"),
        "level": "last" if encoding.depths is None else list(encoding.depths),
        "pool": str(encoding.pooling),
        "shape": list(encoding.shape),
        "grid": asdict(encoding.pooling.grid),
        "computed_in": str(encoding.computed).removeprefix("torch."),
    }


def _found(out: Path, plan: dict[str, Any]) -> str:
    """Tell of a file that is there already. Raises UserError where it is not what `plan` says."""
    metadata = read_metadata(out)
    refuse_other_plan(out, plan, metadata)
    lacking = len(json.loads(metadata["unreadable"]))
    left_out = f", without {lacking} videos that could not be read; remove it to try them again" if lacking else ""
    return f"{out}: complete already{left_out}"


def _summary(work: Extraction, parts: Parts) -> str:
    """Tell what all parts hold; name the rows that could not be read. Raises UserError where none could."""
    rows, unreadable = parts.rows(), parts.unreadable()
    index, videos = work.videos.index, work.videos
    for row, reason in unreadable.items():
        print(f"row {row}, {index.row(row).uri}: {reason}", file=sys.stderr)
    if not len(rows):
        raise UserError(
            f"{index.path}: none of its {len(unreadable)} videos could be read; is the disk there? "
            f"Remove {parts.folder} to try again"
        )
    lacking = f"{len(videos) - len(rows)} clips of {len(unreadable)} videos cannot be read and are left out"
    held = f"{len(rows)} clips of {len(set(rows.tolist()))} videos, {work.encoding} each"
    return f"{held}; {lacking}" if unreadable else held


def _clips_per_part(num_clips: int, clip_bytes: int) -> int:
    """Choose how many clips a part has, by nothing that may differ from process to process, or the next time."""
    least, most = _CLIPS_PER_PART
    return max(1, min(max(least, -(-num_clips // _NUM_PARTS)), most, _PART_BYTES // clip_bytes))


def _share(shard: str | None) -> tuple[int, int]:
    """Give (number, of how many), the number from 0: of --shard, or of torchrun. Raises UserError for other words."""
    if shard is None:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {shard}: write I/N with I from 1 to N, such as 2/8")
    return int(match[1]) - 1, int(match[2])
