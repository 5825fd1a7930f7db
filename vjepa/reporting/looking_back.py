"""At the end of a run: look at a few clips through its encoder, trained and untrained, and keep what the page shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from vjepa import config
from vjepa.data.clip_index import ClipIndex
from vjepa.data.joined_index import open_index
from vjepa.data.plan_rows import Views
from vjepa.data.quarantine import quarantined
from vjepa.models.encoder import Encoder
from vjepa.page.player import shrink, spread_frames, strip
from vjepa.probing.banks import Extractor, InMemory, SampleViews
from vjepa.probing.baselines import kinds_of_features
from vjepa.probing.comparison import TRAINED
from vjepa.probing.datasets import ClipSource
from vjepa.probing.dense_features import cell_features, fineness
from vjepa.probing.extractors import Readout
from vjepa.records import TokenGrid, TokenMask
from vjepa.reporting.pictures import as_colours, middle_frames
from vjepa.reporting.shown import Shown, pack, picture

CLIPS: Final = 6  # in players
_MOST_FRAMES, _FRAME_PX, _SMALL_PX = 16, 160, 84
_COMPARED: Final = 256  # clips among which neighbours are sought; without data.val 64
_COMPARED_OF_TRAIN: Final = 64
_QUERIES, _NEIGHBOURS, _WORST = 6, 5, 10
KINDS: Final = {"trained": TRAINED, "untrained": "random_init"}


@dataclass(frozen=True)
class Glass:
    """Hold what clips are looked at through: the measured encoder, and the settings of its run."""

    settings: config.Config
    encoder: Encoder
    device: torch.device
    dtype: torch.dtype

    def extractors(self, output: str) -> dict[str, Extractor]:
        """Make what reads `tokens` or `pooled` features of the encoder, trained and untrained."""
        where, channels = (self.device, self.dtype), self.settings.data.channels
        readout = Readout((self.encoder.depth - 1,), (output,), *where, channels=channels)
        found = kinds_of_features(self.encoder, "", readout, ("random_init",), self.settings.run.seed)
        return {kind: found[name] for kind, name in KINDS.items()}


def look(glass: Glass, draw: Callable[[int], list[TokenMask]], summary: Mapping[str, Any]) -> Shown:
    """Look at clips of data.val, else of data.train. draw: the masks of so many clips, one of each set.

    summary: of the run, as far as it is known: whose worst mistakes get a picture.
    """
    settings = glass.settings
    source = settings.data.val or settings.data.train
    index = open_index(source.paths)
    rows, clips = index.select(source.where), ClipSource(index, settings.data)
    labels = {name: index.column(name) for name in (settings.eval.labels if settings.data.val else ())}
    compared = _spread(rows, _COMPARED if settings.data.val else _COMPARED_OF_TRAIN)
    readable, facts, arrays, axes = _compare(glass, clips, compared, labels)
    shown_facts, shown_arrays = _show(glass, clips, _choose(readable, labels), draw, axes)
    named = {*facts["neighbours"]["queries"], *_wrong(summary)}
    named |= {one for kind in KINDS for near in facts["neighbours"][kind] for one in near}
    arrays |= shown_arrays | _small(clips, np.array(sorted(named)), settings.eval.batch)
    words = {str(i): _words(index, labels, i) for i in {*named, *(one["clip_id"] for one in shown_facts["clips"])}}
    about = {"words": words, "labels": list(labels), "quarantine": _quarantined(settings.data)}
    return Shown({**facts, **shown_facts, **about}, arrays)


def _quarantined(data: config.Data) -> dict[str, str]:
    """Name the clips that no run reads again, and why: of the indexes of train, selection and val."""
    sources = [source for source in (data.train, data.selection, data.val) if source is not None]
    indexes = [ClipIndex.open(path) for path in dict.fromkeys(path for source in sources for path in source.paths)]
    return {index.uri(row): reason for index in indexes for row, reason in quarantined(index).items()}


def _spread(rows: np.ndarray, num: int) -> np.ndarray:
    chosen: np.ndarray = rows[np.unique(np.linspace(0, len(rows) - 1, min(num, len(rows))).round().astype(int))]
    return chosen


def _choose(rows: np.ndarray, labels: Mapping[str, Sequence[str | None]]) -> np.ndarray:
    """Choose clips to show: two of a class of the first label where there are some, so that likes can be compared."""
    column = next(iter(labels.values()), None)
    by_class: dict[str, list[int]] = {}
    for row in rows.tolist():
        if column is not None and (name := column[row]) is not None:
            by_class.setdefault(name, []).append(row)
    twins = [found[:2] for _, found in sorted(by_class.items()) if len(found) > 1]
    if len(twins) < 2:
        return _spread(rows, CLIPS)
    num = min(len(twins), CLIPS // 2)
    chosen = [twins[i] for i in np.unique(np.linspace(0, len(twins) - 1, num).round().astype(int))]
    return np.array([row for pair in chosen for row in pair])


def _wrong(summary: Mapping[str, Any]) -> list[int]:
    """List the clips of the worst mistakes of each label's linear probe."""
    entries = [entry["linear"]["scores"]["worst"][:_WORST] for entry in summary.get("probes", {}).values()]
    return [one["clip_id"] for worst in entries for one in worst]


def _words(index: ClipIndex, labels: Mapping[str, Sequence[str | None]], clip_id: int) -> str:
    """Say which clip it is, and its labels."""
    told = ", ".join(f"{name} {values[clip_id]}" for name, values in labels.items() if values[clip_id] is not None)
    return f"{index.uri(clip_id).rpartition('/')[2]}{f': {told}' if told else ''}"


def _compare(
    glass: Glass, clips: ClipSource, rows: np.ndarray, labels: Mapping[str, Sequence[str | None]]
) -> tuple[np.ndarray, dict[str, Any], dict[str, np.ndarray], dict[str, Axes]]:
    """Compare clips by their mean features: the spectrum, who is nearest to whom, the axes along which they differ.

    Gives first the ids of those that could be read.
    """
    batch = glass.settings.eval.batch
    banks = InMemory().banks(SampleViews(clips, rows, Views()), glass.extractors("pooled"), batch)
    arrays, found, axes = {}, dict[str, Any](), dict[str, Axes]()
    for kind, outputs in banks.items():
        bank = outputs["pooled"]
        ids, features = bank.clip_ids, bank.values.float().flatten(1)
        arrays[f"spectrum/{kind}"], axes[kind] = spectrum(features).numpy(), Axes.of(features)
        near = nearest(features, _NEIGHBOURS)
        queries = np.unique(np.linspace(0, len(ids) - 1, min(_QUERIES, len(ids))).round().astype(int))
        found["queries"] = ids[queries].tolist()
        found[kind] = [ids[near[query]].tolist() for query in queries]
        found[f"agree/{kind}"] = {name: agreement(ids, near, values) for name, values in labels.items()}
    return ids, {"neighbours": found, "num_compared": len(ids)}, arrays, axes


def spectrum(features: Tensor) -> Tensor:
    """Measure the variance of features [N, D] along their principal axes, the largest first: [min(N, D)]."""
    centred = features.double() - features.double().mean(0)
    variance: Tensor = torch.linalg.svdvals(centred).square() / max(len(features) - 1, 1)
    return variance.float()


def nearest(features: Tensor, num: int) -> np.ndarray:
    """Find the nearest others of each of N features [N, D] by cosine: int [N, at most num]."""
    unit = functional.normalize(features.double(), dim=1)
    likeness = (unit @ unit.T).fill_diagonal_(-torch.inf)
    found: np.ndarray = likeness.topk(min(num, len(features) - 1), dim=1).indices.numpy()
    return found


def agreement(ids: np.ndarray, near: np.ndarray, labels: Sequence[str | None]) -> float | None:
    """Give the share of neighbours that have the same label, over the clips that have one; None where none has."""
    values = [labels[i] for i in ids.tolist()]
    same = [values[j] == values[i] for i, of_one in enumerate(near.tolist()) for j in of_one if values[i] is not None]
    return float(np.mean(same)) if same else None


def _show(
    glass: Glass,
    clips: ClipSource,
    rows: np.ndarray,
    draw: Callable[[int], list[TokenMask]],
    between_clips: Mapping[str, Axes],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Keep frames, masks and colours of the clips of some rows that can be read.

    between_clips: of each kind of features, the axes along which clips differ.
    """
    settings = glass.settings
    read = [batch for batch in clips.loader(rows, Views(), settings.eval.batch) if len(batch.clip_ids)]
    videos, ids = torch.cat([batch.video for batch in read]), torch.cat([batch.clip_ids for batch in read])
    grid = glass.encoder.grid(*videos.shape[2:])
    if videos.shape[2] == 1 and settings.model.image_mode == "repeat":  # as the encoder sees it
        videos = videos.repeat_interleave(settings.model.image_repeats, dim=2)
    frames = spread_frames(videos.shape[2], _MOST_FRAMES)
    slots = [min(frame * grid.t // videos.shape[2], grid.t - 1) for frame in frames]
    arrays, sizes = dict[str, np.ndarray](), list[tuple[int, int]]()
    for place, video in enumerate(videos):
        small = shrink(as_colours(video[:, list(frames)]), _FRAME_PX)
        sizes.append((small.shape[2], small.shape[1]))
        arrays[f"clip/{place}"] = picture(strip(small))
    masks = draw(len(videos))
    for number, mask in enumerate(masks):
        for name, cells in (("context", mask.context_ids), ("target", mask.target_ids)):
            for place, of_clip in enumerate(cells):
                arrays[f"{name}/{number}/{place}"] = pack(as_cells(of_clip, grid))
    fine = fineness(grid, settings.model.patch_px)
    for kind, extractor in glass.extractors("tokens").items():
        cells = _cells(extractor, videos, grid, fine)
        parts = Axes.of(cells.flatten(0, -2)).colours(cells)
        between = between_clips[kind].colours(cells, window=2 * fine + 1)
        for place in range(len(videos)):
            arrays[f"parts/{kind}/{place}"], arrays[f"clips/{kind}/{place}"] = parts[place], between[place]
    facts = {
        "clips": [{"clip_id": clip, "size": size} for clip, size in zip(ids.tolist(), sizes, strict=True)],
        "grid": [grid.t, grid.h, grid.w],
        "fine": fine,
        "frames": list(frames),
        "slots": slots,
        "masks": [_describe(mask) for mask in settings.masks],
    }
    return facts, arrays


def _cells(extractor: Extractor, videos: Tensor, grid: TokenGrid, fine: int) -> Tensor:
    """Read the cells of clips: [B, t, h', w', D]."""
    ids = torch.arange(len(videos))
    return cell_features(lambda video: extractor.run(video, ids)["tokens"], videos, grid, fine)


def as_cells(ids: Tensor, grid: TokenGrid) -> np.ndarray:
    """Mark tokens: ids [K] -> bool [t, h, w]."""
    seen = np.zeros(grid.num_tokens, dtype=bool)
    seen[ids.cpu().numpy()] = True
    return seen.reshape(grid.t, grid.h, grid.w)


@dataclass(frozen=True)
class Axes:
    """Hold up to three principal axes of features: mean [D], directions [D, 3]."""

    mean: Tensor
    directions: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Axes:
        """Fit them to features [N, D]; each points the way in which its largest entry is positive."""
        values = features.double()
        mean = values.mean(0)
        _, axes = torch.linalg.eigh((values - mean).T @ (values - mean))
        axes = axes[:, -min(3, axes.shape[1]) :].flip(1)
        return cls(mean, axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign())

    def colours(self, features: Tensor, window: int = 1) -> np.ndarray:
        """Show features [B, t, h, w, D] as red, green and blue: uint8 [B, t, h, w, 3], averaged over `window` cells.

        Each axis is stretched from the 2nd to the 98th percentile of all of them, so that a colour means one thing.
        """
        places = (features.double() - self.mean) @ self.directions
        flat = rearrange(places, "b t h w c -> (b t) c h w")
        flat = functional.pad(flat, [window // 2] * 4, mode="replicate")
        flat = functional.avg_pool2d(flat, window, 1)
        values = rearrange(flat, "(b t) c h w -> b t h w c", b=len(features)).numpy()
        low, high = np.percentile(values.reshape(-1, values.shape[-1]), (2, 98), axis=0)
        shares = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
        shares = np.pad(shares, [(0, 0)] * 4 + [(0, 3 - shares.shape[-1])])
        return (255 * shares).round().astype(np.uint8)


def _small(clips: ClipSource, rows: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """Keep a small frame of each clip: `small/CLIP_ID`."""
    frames = middle_frames(clips.loader(rows, Views(), batch)) if len(rows) else {}
    return {f"small/{i}": picture(strip(shrink(frame[None], _SMALL_PX))) for i, frame in frames.items()}


def _describe(mask: Any) -> str:
    """Say what a mask set is, as its settings do: the kind, and what differs from its defaults."""
    changed = mask.model_dump(exclude_defaults=True, exclude={"kind"})
    told = ", ".join(f"{name} {value}" for name, value in changed.items())
    return f"{mask.kind}{f', {told}' if told else ''}"
