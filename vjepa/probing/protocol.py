"""How a number is obtained: learn on train, choose on selection, read the test clips once; every clip counts once, its
views averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vjepa.errors import UserError
from vjepa.models.attentive_pool import AttentiveClassifier, LinearClassifier
from vjepa.models.pooling import MEAN, Pooling
from vjepa.probing import heads, knn, sweep
from vjepa.probing.attentive import Heads, make_heads
from vjepa.probing.metrics import Classes, Floats
from vjepa.probing.store import Bank

Mode = Literal["knn", "linear", "attentive"]
ATTENTION_HEADS: Final = 16  # of every published probe, whatever the width
_READ_TOKENS: Final = 1 << 25  # numbers of tokens that are read at a time where nothing is learned


@dataclass(frozen=True)
class Examples:
    """Some clips of a bank. places: int64 [n] into the bank. classes: [n]."""

    bank: Bank
    places: np.ndarray
    classes: Classes

    @classmethod
    def of(cls, bank: Bank, clip_ids: np.ndarray, labels: Sequence[str | None], what: str) -> Examples:
        """Those of `clip_ids` that could be read. `what` names them in the UserError where none could."""
        place = {int(clip_id): number for number, clip_id in enumerate(bank.clip_ids)}
        known = [int(clip_id) for clip_id in clip_ids if int(clip_id) in place]
        if not known:
            raise UserError(f"{what}: no readable clip has this label")
        return cls(
            bank, np.array([place[clip_id] for clip_id in known]), np.array([str(labels[clip_id]) for clip_id in known])
        )

    @property
    def clip_ids(self) -> np.ndarray:
        ids: np.ndarray = self.bank.clip_ids[self.places]
        return ids

    def pooled(self) -> Floats:
        """float32 [n, V, K * D]: the places of a clip side by side."""
        return rearrange(self.bank.values[torch.from_numpy(self.places)].float(), "n v k d -> n v (k d)").numpy()

    def tokens(self, places: np.ndarray, view: int, device: torch.device) -> Tensor:
        """One view of the clips at `places` int64 [B] among these: [B, K, D]. What is not asked for is not read."""
        return self.bank.values[:, view].index_select(0, torch.from_numpy(self.places[places])).to(device)

    @property
    def num_views(self) -> int:
        return self.bank.values.shape[1]


@dataclass(frozen=True)
class Method:
    """One kind of probe.

    choices: every k of knn. head, batch_norm: of linear probes; pooling: what their features were made by, of tokens.
    depth, attention_heads, grid: of attentive ones; attention_heads None: 16 where they divide the width, else the
    largest number below that does. device, dtype: where and in which precision attentive heads learn.
    """

    mode: Mode
    choices: tuple[int, ...] = knn.K_CHOICES
    head: Literal["logistic", "ridge"] = "logistic"
    batch_norm: bool = True
    pooling: Pooling = MEAN
    depth: int = 1
    attention_heads: int | None = None
    grid: sweep.Grid = field(default_factory=sweep.Grid)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Answer:
    """names: the C classes that train has. probabilities: of the chosen setting, [n, C] for each test set.

    chosen: its setting, name -> value. selection: each setting that was tried, with its share of right answers on the
    selection clips.
    head: that of the chosen setting, frozen, on the CPU, from the tokens of one view to [B, C]: logits whose softmax
    are the probabilities, or the outputs of ridge regression. Tokens of several blocks lie side by side, [B, N, L * D],
    for linear heads, and one after the other, [B, L * N, D], for attentive ones. None: neighbours have none.
    """

    names: Classes
    chosen: dict[str, float]
    selection: list[dict[str, float]]
    probabilities: list[Floats]
    head: AttentiveClassifier | LinearClassifier | None


def answer(
    method: Method,
    train: Examples,
    selection: Examples,
    tests: Sequence[Examples],
    watch: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Answer:
    """Learn on `train`, choose on `selection`, and answer each of `tests`, whose classes are not looked at.

    watch: wraps the batches of a long training. Raises UserError for fewer than two classes in train.
    """
    if len(np.unique(train.classes)) < 2:
        raise UserError(f"train: every clip is {train.classes[0]!r}; a probe needs two classes")
    found = (
        _attentive(method, train, selection, tests, watch)
        if method.mode == "attentive"
        else _pooled(method, train, selection, tests)
    )
    if found.head:
        found.head.classes = tuple(found.names.tolist())
    return found


def _pooled(method: Method, train: Examples, selection: Examples, tests: Sequence[Examples]) -> Answer:
    """k-NN and linear probes. Every view of a training clip is a sample of its own."""
    classes = np.repeat(train.classes, train.num_views)
    values = [rearrange(part.pooled(), "n v d -> (n v) d") for part in (train, selection, *tests)]
    fitted = _fit_neighbours(method, values, classes) if method.mode == "knn" else _fit_linear(method, values, classes)

    def probabilities(number: int, examples: Examples, wanted: Sequence[float]) -> dict[float, Floats]:
        found = fitted.probabilities(values[number], wanted)
        return {
            setting: rearrange(shares, "(n v) c -> n v c", v=examples.num_views).mean(1)
            for setting, shares in found.items()
        }

    predicted = {
        setting: fitted.names[shares.argmax(1)]
        for setting, shares in probabilities(1, selection, fitted.settings).items()
    }
    setting = sweep.choose(predicted, selection.classes)
    name = _SETTING[method.mode, method.head] if method.mode == "linear" else "k"
    tried = [{name: one, "accuracy": float(np.mean(predicted[one] == selection.classes))} for one in fitted.settings]
    found = [probabilities(number, test, [setting])[setting] for number, test in enumerate(tests, start=2)]
    return Answer(fitted.names, {name: setting}, tried, found, fitted.head(setting))


_SETTING: Final = {("linear", "logistic"): "C", ("linear", "ridge"): "alpha"}


@dataclass(frozen=True)
class _Fitted:
    """names: the classes. probabilities: features [N, D] and settings -> those of each setting [N, C]. head: of one
    setting.
    """

    names: Classes
    settings: Sequence[float]
    probabilities: Callable[[Floats, Sequence[float]], dict[float, Floats]]
    head: Callable[[float], LinearClassifier | None]


def _fit_neighbours(method: Method, values: list[Floats], classes: Classes) -> _Fitted:
    neighbours = knn.Neighbours(values[0], classes, method.choices)
    return _Fitted(neighbours.names, neighbours.settings, neighbours.probabilities, lambda k: None)


def _fit_linear(method: Method, values: list[Floats], classes: Classes) -> _Fitted:
    """`values`, of which the first is train, become what the models work on."""
    raw = values[0]
    values[:] = heads.prepare(*values) if method.batch_norm else heads.rotate(*heads.scale(*values))
    logistic = method.head == "logistic"
    choices = heads.C_CHOICES if logistic else heads.ALPHA_CHOICES
    models = dict(zip(choices, (heads.fit if logistic else heads.fit_ridge)(values[0], classes, choices), strict=True))
    squash = heads.softmax if logistic else heads.as_shares

    def probabilities(features: Floats, wanted: Sequence[float]) -> dict[float, Floats]:
        return {one: squash(models[one].scores(features)) for one in wanted}

    def head(setting: float) -> LinearClassifier:
        model = heads.of_raw(models[setting], values[0], raw, method.batch_norm)
        width, num_classes = model.weights.shape
        made = LinearClassifier(width, num_classes, method.pooling)
        made.load_state_dict(
            {"linear.weight": torch.from_numpy(model.weights.T), "linear.bias": torch.from_numpy(model.bias)}
        )
        return made.requires_grad_(False).eval()

    return _Fitted(models[choices[0]].names, choices, probabilities, head)


def _attentive(
    method: Method,
    train: Examples,
    selection: Examples,
    tests: Sequence[Examples],
    watch: Callable[[Iterable[Any]], Iterable[Any]],
) -> Answer:
    """Every epoch sees one view of each training clip, the next epoch the next view."""
    names, ids = np.unique(train.classes, return_inverse=True)
    settings = method.grid.settings
    width = train.bank.values.shape[-1]
    attention_heads = method.attention_heads or _attention_heads(width)
    if width % attention_heads:
        raise UserError(
            f"--probe_heads {attention_heads}: does not divide the {width} features of a token; give a number that does"
        )
    classes = torch.from_numpy(ids).to(method.device)
    trained = make_heads(
        len(settings), width, attention_heads, method.depth, len(names), method.grid.seed, method.device, method.dtype
    )

    def tokens(epoch: int, places: np.ndarray) -> Tensor:
        return train.tokens(places, epoch % train.num_views, method.device)

    sweep.train(trained, method.grid, len(train.places), tokens, train.bank.values.shape[2], classes, watch)
    right, sure = np.zeros(len(settings), dtype=np.int64), np.zeros(len(settings))
    for places, shares in _predictions(trained, selection, method.device):
        truth = selection.classes[places]
        right += (names[shares.argmax(-1)] == truth).sum(1)
        sure += np.where(truth[:, None] == names, shares, 0.0).sum((1, 2))
    # of heads that are right equally often, on few clips there are several, the one that gives the true classes more
    # probability
    best = int(np.lexsort((-np.nan_to_num(sure), -right))[0])
    tried = [
        {**setting, "accuracy": num / len(selection.places)}
        for setting, num in zip(settings, right.tolist(), strict=True)
    ]
    found = [
        np.concatenate([shares[best] for _, shares in _predictions(trained, test, method.device)]) for test in tests
    ]
    return Answer(names, settings[best], tried, found, trained.head(best))


def _attention_heads(width: int) -> int:
    return next(number for number in range(ATTENTION_HEADS, 0, -1) if width % number == 0)


def _predictions(trained: Heads, examples: Examples, device: torch.device) -> Iterable[tuple[np.ndarray, Floats]]:
    """Places int64 [B] and probabilities [H, B, C], the mean over the views, of all examples in order."""
    size = max(1, _READ_TOKENS // examples.bank.values[0, 0].numel())
    for places in np.array_split(np.arange(len(examples.places)), -(-len(examples.places) // size)):
        with torch.no_grad():
            views = [
                trained.logits(examples.tokens(places, view, device)).softmax(-1) for view in range(examples.num_views)
            ]
            yield places, torch.stack(views).mean(0).cpu().numpy()
