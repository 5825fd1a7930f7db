"""How a number is obtained: learn on train, choose on selection, read the test clips once, average their views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vjepa.counter_rng import generator
from vjepa.errors import UserError
from vjepa.models.attentive_pool import LINKS, AttentiveClassifier, AttentivePooler, LinearClassifier
from vjepa.models.pooling import MEAN, Pooling
from vjepa.probing import knn, linear, sweep
from vjepa.probing.attentive import Heads, make_heads
from vjepa.probing.banks import Bank
from vjepa.probing.linear_start import MeanTokens, linear_start, read_out
from vjepa.probing.metrics import Floats, Texts
from vjepa.probing.task import Head, Targets, Task
from vjepa.probing.task_classify import Classify

Mode = Literal["knn", "linear", "attentive"]
ATTENTION_HEADS: Final = 16  # of every published probe, whatever the width
_READ_TOKENS: Final = 1 << 25  # numbers of tokens that are read at a time where nothing is learned


@dataclass(frozen=True)
class Examples:
    """Name some clips of a bank, with their labels.

    places: int64 [n] into the bank. labels: [n], which a task reads as classes or numbers. groups: one for each clip,
    or None; None where no clip has one.
    name: of the part of the data, for errors.
    """

    bank: Bank
    places: np.ndarray
    labels: Texts
    groups: list[str | None] | None = None
    name: str = "train"

    @classmethod
    def of(
        cls,
        bank: Bank,
        clip_ids: np.ndarray,
        labels: Sequence[str | None],
        name: str,
        groups: Sequence[str | None] | None = None,
    ) -> Examples:
        """Take those of `clip_ids` that could be read and have a label. Raises UserError where there are none.

        labels, groups: one for every clip id that there is.
        """
        place = {int(clip_id): number for number, clip_id in enumerate(bank.clip_ids)}
        known = [i for i in clip_ids.tolist() if i in place and labels[i] is not None]
        if not known:
            raise UserError(f"{name}: no readable clip has this label")
        places, texts = np.array([place[i] for i in known]), np.array([str(labels[i]) for i in known])
        return cls(bank, places, texts, None if groups is None else [groups[i] for i in known], name)

    @property
    def clip_ids(self) -> np.ndarray:
        ids: np.ndarray = self.bank.clip_ids[self.places]
        return ids

    def few(self, drawn: np.ndarray) -> Examples:
        """Take some of them. drawn: int64 [n], their places among these."""
        groups = self.groups and [self.groups[i] for i in drawn]
        return replace(self, places=self.places[drawn], labels=self.labels[drawn], groups=groups)

    def pooled(self) -> Floats:
        """Read the features of every view as a sample of its own: float32 [n * V, K * D], the K places side by side."""
        values = self.bank.values[torch.from_numpy(self.places)].float()
        return rearrange(values, "n v k d -> (n v) (k d)").numpy()

    def tokens(self, places: np.ndarray, view: int, device: torch.device) -> Tensor:
        """Read one view of the clips at `places` int64 [B] among these: [B, K, D]. Nothing else is read."""
        return self.bank.values[:, view].index_select(0, torch.from_numpy(self.places[places])).to(device)

    @property
    def num_views(self) -> int:
        return self.bank.values.shape[1]


@dataclass(frozen=True)
class ProbeMethod:
    """Describe one kind of probe.

    task: what the label is. choices: every k of knn. head, batch_norm: of linear probes; head None: the first of the
    task. pooling: what their features were made by, of tokens.
    depth, attention_heads, grid: of attentive ones; attention_heads None: 16 where they divide the width, else the
    largest number below that does. device, dtype: where and in which precision attentive heads learn.
    """

    mode: Mode
    task: Task = Classify()  # noqa: RUF009 - it is frozen
    choices: tuple[int, ...] = knn.K_CHOICES
    head: Head | None = None
    batch_norm: bool = True
    pooling: Pooling = MEAN
    depth: int = 1
    attention_heads: int | None = None
    grid: sweep.Grid = field(default_factory=sweep.Grid)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @property
    def loss(self) -> Head:
        """Name the loss of a linear probe."""
        return self.head or self.task.heads[0]

    @property
    def setting(self) -> str:
        """Name the setting that a k-NN or linear probe chooses."""
        return "k" if self.mode == "knn" else "C" if self.loss == "logistic" else "alpha"


@dataclass(frozen=True)
class FittedProbe:
    """Hold what a probe learned, and its answers.

    names: [C], of the answers: the classes that train has, or one for a number. chosen: its setting, name -> value.
    selection: each setting that was tried, with the criterion of the task on the selection clips.
    answers: of the chosen setting, [n, C] for each test set: probabilities, or numbers.
    head: that of the chosen setting, frozen, on the CPU, from the tokens of one view to [B, C]; its `link` says how its
    outputs become answers. Tokens of several blocks lie side by side, [B, N, L * D],
    for linear heads, and one after the other, [B, L * N, D], for attentive ones. None: neighbours have none.
    """

    names: Texts
    chosen: dict[str, float]
    selection: list[dict[str, float]]
    answers: list[Floats]
    head: AttentiveClassifier | LinearClassifier | None


class Inputs:
    """Make the matrices that k-NN and linear probes of one bank work on.

    Labels that the same clips have share them: to prepare wide features takes longer than to fit a model to them.
    """

    def __init__(self) -> None:
        self._made: tuple[Any, list[Floats]] | None = None

    def of(self, method: ProbeMethod, parts: Sequence[Examples]) -> list[Floats]:
        """Give [n * V, r] for each of `parts`, of which the first is train."""
        key = (method.mode, method.batch_norm, *(part.places.tobytes() for part in parts))
        if self._made is None or self._made[0] != key:
            values = [part.pooled() for part in parts]
            prepared = linear.prepare(*values, batch_norm=method.batch_norm) if method.mode == "linear" else values
            self._made = key, prepared
        return self._made[1]


def fit_probe(
    method: ProbeMethod,
    train: Examples,
    selection: Examples,
    tests: Sequence[Examples],
    watch: sweep.Watch = iter,
    inputs: Inputs | None = None,
    with_head: bool = True,
) -> FittedProbe:
    """Learn on `train`, choose on `selection`, and answer each of `tests`, whose labels are not looked at.

    watch: wraps the batches of a long training. inputs: shared by calls with the same banks. with_head: keep it.
    Raises UserError for labels that the task cannot learn from or choose by.
    """
    method.task.check(train.labels, train.name, learned=True)
    method.task.check(selection.labels, selection.name, learned=False)
    if method.mode == "attentive":
        found = _attentive(method, train, selection, tests, watch)
    else:
        found = _pooled(method, train, selection, tests, inputs or Inputs(), with_head)
    if found.head:
        found.head.task, found.head.classes = method.task.kind, tuple(found.names.tolist())
        found.head.link = method.task.link(method.loss if method.mode == "linear" else method.task.heads[0])
    return found


def _pooled(
    method: ProbeMethod,
    train: Examples,
    selection: Examples,
    tests: Sequence[Examples],
    inputs: Inputs,
    with_head: bool,
) -> FittedProbe:
    """Fit a k-NN or linear probe. Every view of a training clip is a sample of its own."""
    learned, chosen_on, *measured = inputs.of(method, (train, selection, *tests))
    targets = method.task.targets(np.repeat(train.labels, train.num_views))
    fitted = (_fit_neighbours if method.mode == "knn" else _fit_linear)(method, learned, targets)

    def answers(features: Floats, examples: Examples, wanted: Sequence[float]) -> dict[float, Floats]:
        found = fitted.answers(features, wanted)
        return {one: rearrange(x, "(n v) c -> n v c", v=examples.num_views).mean(1) for one, x in found.items()}

    merits = {
        setting: method.task.judge([(selection.labels, one[None])], targets.names)[0]
        for setting, one in answers(chosen_on, selection, fitted.settings).items()
    }
    setting = sweep.choose(merits)
    tried = [{method.setting: one, method.task.criterion: merit[0]} for one, merit in merits.items()]
    found = [answers(x, test, [setting])[setting] for x, test in zip(measured, tests, strict=True)]
    head = _linear_head(method, fitted.models[setting], learned, train) if with_head and fitted.models else None
    return FittedProbe(targets.names, {method.setting: setting}, tried, found, head)


@dataclass(frozen=True)
class _Models:
    """Hold a model for each setting.

    answers: features [N, D] and settings -> those of each setting [N, C]. models: by setting; neighbours have none.
    """

    settings: Sequence[float]
    answers: Callable[[Floats, Sequence[float]], dict[float, Floats]]
    models: dict[float, linear.LinearModel] = field(default_factory=dict)


def _fit_neighbours(method: ProbeMethod, features: Floats, targets: Targets) -> _Models:
    neighbours = knn.Neighbours(features, targets.values, method.choices)

    def answers(values: Floats, wanted: Sequence[float]) -> dict[float, Floats]:
        return {k: method.task.of_votes(*votes, targets) for k, votes in neighbours.votes(values, wanted).items()}

    return _Models(neighbours.settings, answers)


def _fit_linear(method: ProbeMethod, features: Floats, targets: Targets) -> _Models:
    models, link = method.task.fit(method.loss, features, targets), linear.LINKS[method.task.link(method.loss)]

    def answers(values: Floats, wanted: Sequence[float]) -> dict[float, Floats]:
        return {one: link(models[one].scores(values)) for one in wanted}

    return _Models(list(models), answers, models)


def _linear_head(method: ProbeMethod, model: linear.LinearModel, prepared: Floats, train: Examples) -> LinearClassifier:
    """Turn a model of prepared features into a head that reads tokens."""
    raw = linear.of_raw(model, prepared, train.pooled(), method.batch_norm)
    width, num_classes = raw.weights.shape
    head = LinearClassifier(width, num_classes, method.pooling)
    weights = {"linear.weight": torch.from_numpy(raw.weights.T), "linear.bias": torch.from_numpy(raw.bias)}
    head.load_state_dict(weights)
    return head.requires_grad_(False).eval()


def _attentive(
    method: ProbeMethod, train: Examples, selection: Examples, tests: Sequence[Examples], watch: sweep.Watch
) -> FittedProbe:
    """Train the sweep. Every epoch sees one view of each training clip, the next epoch the next view."""
    task, targets = method.task, method.task.targets(train.labels)
    taught, loss = task.lesson(targets)
    start = _linear_start(method, train, targets, selection)
    heads = make_heads(start, len(method.grid.settings), method.device, method.dtype, loss)

    def tokens(epoch: int, places: np.ndarray) -> Tensor:
        return train.tokens(places, epoch % train.num_views, method.device)

    def answers(heads: Heads, examples: Examples) -> Iterable[tuple[np.ndarray, Floats]]:
        return _answers(heads, task, targets, examples, method.device)

    def judge(heads: Heads) -> list[sweep.Merit]:
        parts = ((selection.labels[places], found) for places, found in answers(heads, selection))
        return task.judge(parts, targets.names)

    clips = sweep.Clips(tokens, train.bank.values.shape[2], taught.to(method.device))
    found = sweep.train(heads, method.grid, clips, judge, watch, task.criterion)
    best = make_heads(found.head, 1, method.device, method.dtype)
    measured = [np.concatenate([part[0] for _, part in answers(best, test)]) for test in tests]
    return FittedProbe(targets.names, found.setting, found.tried, measured, _in_units(found.head, targets))


def _in_units(head: AttentiveClassifier, targets: Targets) -> AttentiveClassifier:
    """Let a head, which learned scaled targets, give them in their own unit."""
    head.linear.weight *= targets.spread
    head.linear.bias.mul_(targets.spread).add_(targets.centre)
    return head


def _linear_start(method: ProbeMethod, train: Examples, targets: Targets, selection: Examples) -> AttentiveClassifier:
    """Make the head that the sweep starts from. Raises UserError for attention heads that do not divide the width."""
    width = train.bank.values.shape[-1]
    attention_heads = method.attention_heads or attention_heads_of(width)
    if width % attention_heads:
        raise UserError(f"--probe_heads {attention_heads}: does not divide the {width} features; give a divisor")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(method.grid.seed, "probe_weights", 0).integers(1 << 62)))
        pooler = AttentivePooler(width, attention_heads, depth=method.depth)
    learned, chosen_on = (
        MeanTokens.of(views for _, views in _views(part, method.device)) for part in (train, selection)
    )
    first = read_out(method.task, learned, targets, chosen_on, selection.labels)
    return linear_start(pooler, learned, first, method.grid.seed)


def attention_heads_of(width: int) -> int:
    """Give the attention heads of a probe where none are asked for; see `ProbeMethod`."""
    return next(number for number in range(ATTENTION_HEADS, 0, -1) if width % number == 0)


def _answers(
    heads: Heads, task: Task, targets: Targets, examples: Examples, device: torch.device
) -> Iterable[tuple[np.ndarray, Floats]]:
    """Yield places int64 [B] and answers [H, B, C], the mean over the views, of all examples in order."""
    link = LINKS[task.link(task.heads[0])]
    for places, views in _views(examples, device):
        with torch.no_grad():
            found = torch.stack([link(heads.logits(tokens)) for tokens in views]).mean(0)
            yield places, (found * targets.spread + targets.centre).cpu().numpy()


def _views(examples: Examples, device: torch.device) -> Iterator[tuple[np.ndarray, Iterator[Tensor]]]:
    """Read examples in parts: places int64 [B], and the tokens [B, K, D] of each of their views."""
    size = max(1, _READ_TOKENS // examples.bank.values[0, 0].numel())
    for places in np.array_split(np.arange(len(examples.places)), -(-len(examples.places) // size)):
        yield places, (examples.tokens(places, view, device) for view in range(examples.num_views))
