"""What a classifier answers: clips through encoder and head to probabilities, the views of a clip averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vjepa.config import Channels
from vjepa.data.augment import RGB, normalise
from vjepa.data.plan_rows import Views
from vjepa.interop.classifiers import EncoderWithHead
from vjepa.interop.probes import Classifier
from vjepa.models.attentive_pool import LINKS
from vjepa.models.encoder import Encoder
from vjepa.probing.banks import SampleSource, nothing_readable
from vjepa.probing.bootstrap import Share
from vjepa.probing.datasets import Dataset
from vjepa.probing.linear_start import MeanTokens
from vjepa.probing.metrics import Floats
from vjepa.probing.scores import Scores, score, share_right
from vjepa.records import ClipBatch

Watch = Callable[[Iterable[ClipBatch]], Iterable[ClipBatch]]


@dataclass(frozen=True)
class Network:
    """Hold an encoder and a head, where and in which precision they run, and which blocks the head reads.

    blocks: None: the last one alone. channels: of the clips, as `normalise` takes them.
    """

    encoder: Encoder
    head: Classifier
    device: torch.device
    dtype: torch.dtype
    blocks: tuple[int, ...] | None = None
    channels: Channels = RGB

    def tokens(self, video: Tensor) -> Tensor:
        """Encode clips as they are read, [B, C, T, H, W], -> [B, N, D]."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            tokens: Tensor = self.encoder(normalise(video.to(self.device), self.dtype, self.channels))
        return tokens

    def answers(self, video: Tensor) -> Tensor:
        """Answer clips as they are read -> fp32 [B, C]: the probability of each class, or numbers; see `head.link`."""
        network = EncoderWithHead(self.encoder, self.head, self.blocks)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            logits: Tensor = network(normalise(video.to(self.device), self.dtype, self.channels))
        return LINKS[self.head.link](logits.float())


@dataclass(frozen=True)
class Answered:
    """Hold the answers [n, C] of the clips that could be read, `clip_ids` int64 [n], in the order of reading.

    failures: the others, as (clip id, reason).
    """

    clip_ids: np.ndarray
    values: Floats
    failures: tuple[tuple[int, str], ...]


def answer(
    network: Network, source: SampleSource, clip_ids: np.ndarray, views: Views, batch: int, watch: Watch = iter
) -> Answered:
    """Answer every clip once, `batch` views at a time. Raises UserError where none can be read."""
    ids, shares, failures = list[Tensor](), list[Tensor](), list[tuple[int, str]]()
    for clips in watch(source.loader(clip_ids, views, max(1, batch // views.num_views))):
        failures += clips.failures
        if not len(clips.clip_ids):
            continue
        with torch.inference_mode():
            found = network.answers(clips.video).cpu()
        ids.append(clips.clip_ids[:: views.num_views])
        shares.append(rearrange(found, "(n v) c -> n v c", v=views.num_views).mean(1))
    if not ids:
        raise nothing_readable(failures)
    return Answered(torch.cat(ids).numpy(), torch.cat(shares).numpy(), tuple(failures))


def labels_of(dataset: Dataset) -> Sequence[str | None]:
    """Give the label of every clip id of a data set that has one label."""
    (labels,) = dataset.labels.values()
    return labels


def score_answers(answers: Answered, classes: Sequence[str], dataset: Dataset) -> Scores:
    """Hold answers against the labels of a data set."""
    labels = labels_of(dataset)
    truth = [str(labels[i]) for i in answers.clip_ids]
    groups = None if dataset.groups is None else [dataset.groups[i] for i in answers.clip_ids]
    return score(answers.values, classes, truth, answers.clip_ids, groups)


def chance(clip_ids: np.ndarray, dataset: Dataset) -> Share:
    """Score always answering the most frequent class of train, the first by name where several are."""
    labels = labels_of(dataset)
    names, counts = np.unique([str(labels[i]) for i in dataset.trials[0].train], return_counts=True)
    right = np.array([str(labels[i]) == names[counts.argmax()] for i in clip_ids])
    return share_right(right, None if dataset.groups is None else [dataset.groups[i] for i in clip_ids])


class SelectionJudge:
    """Measure a network on selection clips while it learns; it never reads those that the closing table is of."""

    def __init__(
        self, network: Network, dataset: Dataset, classes: Sequence[str], every_steps: int, last_step: int, batch: int
    ) -> None:
        self.network, self.dataset, self.classes = network, dataset, {name: i for i, name in enumerate(classes)}
        self.every_steps, self.last_step, self.batch = every_steps, last_step, batch
        self.num_clips = len(dataset.trials[0].selection)

    def measure_at(self, step: int) -> dict[str, float]:
        """Measure after every so many steps, and after the last one; nothing at other steps.

        Returns `selection_accuracy` and `selection_loss`, the mean of -log probability of the true class.
        """
        if step % self.every_steps and step != self.last_step:
            return {}
        modes = [(part, part.training) for part in (self.network.encoder, self.network.head)]
        for part, _ in modes:
            part.eval()
        found = answer(self.network, self.dataset.source, self.dataset.trials[0].selection, Views(), self.batch)
        for part, mode in modes:
            part.train(mode)
        labels = labels_of(self.dataset)
        truth = np.array([self.classes.get(str(labels[i]), -1) for i in found.clip_ids])
        own = np.where(truth >= 0, found.values[np.arange(len(truth)), truth], 0.0)
        return {
            "selection_accuracy": float(np.mean(found.values.argmax(1) == truth)),
            "selection_loss": float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean()),
        }

    def merit(self, found: dict[str, float]) -> float:
        """Order checkpoints by right answers, those with equally many by their loss, which counts for less than one."""
        return found["selection_accuracy"] + math.exp(-found["selection_loss"]) / (self.num_clips + 1)


def mean_tokens(network: Network, dataset: Dataset, clip_ids: np.ndarray, batch: int) -> tuple[MeanTokens, np.ndarray]:
    """Read the mean tokens of clips in one pass, and the classes of those that could be read, text [n]."""
    seen = list[Tensor]()

    def batches() -> Iterable[Iterable[Tensor]]:
        for clips in dataset.source.loader(clip_ids, Views(), batch):
            if len(clips.clip_ids):
                seen.append(clips.clip_ids)
                with torch.inference_mode():
                    yield [network.tokens(clips.video)]

    found = MeanTokens.of(batches())
    return found, np.array([str(labels_of(dataset)[i]) for i in torch.cat(seen).tolist()])
