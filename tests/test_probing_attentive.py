"""Heads that are trained together are what each would be alone."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional

from vjepa.counter_rng import generator
from vjepa.models.attentive_pool import AttentiveClassifier, AttentivePooler
from vjepa.probing import attentive, linear, sweep
from vjepa.probing.linear_start import MeanTokens, linear_start, read_out
from vjepa.probing.task_classify import Classify

CPU = torch.device("cpu")
WIDTH, HEADS, CLASSES = 24, 4, 3
GRID = sweep.Grid((3e-3, 1e-3), (0.01, 0.4), batch=8, seed=5)


def examples(num=30, tokens=10):
    rng = torch.Generator().manual_seed(0)
    return 2 * torch.randn(num, tokens, WIDTH, generator=rng) + 0.5, torch.randint(0, CLASSES, (num,), generator=rng)


def random_head(depth=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AttentiveClassifier(AttentivePooler(WIDTH, HEADS, depth=depth), CLASSES)


def make(num=4, depth=1, dtype=torch.float32):
    return attentive.make_heads(random_head(depth), num, CPU, dtype)


def clips(tokens, classes):
    return sweep.Clips(lambda epoch, places: tokens[places], tokens.shape[1], classes)


def alone(setting, depth):
    """One AttentiveClassifier trained by PyTorch's own loops, steps 4 to 15 of epochs of 4 batches."""
    head = random_head(depth)
    tokens, classes = examples()
    optimizer = torch.optim.AdamW(head.parameters(), lr=setting["lr"], weight_decay=setting["weight_decay"])
    step, total = 0, 12
    for epoch in (1, 2, 3):
        order = torch.from_numpy(generator(5, "probe_order", epoch).permutation(30))
        for places in order.split(8):
            warm = min(1, (step + 1) / 10)
            optimizer.param_groups[0]["lr"] = setting["lr"] * warm * (1 + math.cos(math.pi * step / total)) / 2
            optimizer.zero_grad()
            functional.cross_entropy(head(tokens[places]), classes[places]).backward()
            optimizer.step()
            step += 1
    return head


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("scores_at_once", [1 << 25, 2000])
def test_a_round_of_heads_equals_single_heads(depth, scores_at_once, monkeypatch):
    monkeypatch.setattr(attentive, "_SCORES_AT_ONCE", scores_at_once)
    monkeypatch.setattr(attentive, "_ACTIVATIONS_AT_ONCE", 5 * scores_at_once)
    tokens, classes = examples()
    heads = make(depth=depth)
    sweep.run_round(heads, GRID.settings, GRID, clips(tokens, classes), range(4, 16))
    singles = [alone(setting, depth) for setting in GRID.settings]
    found, expected = heads.logits(tokens), torch.stack([head(tokens) for head in singles])
    assert (expected[0] - expected[3]).abs().max() > 0.005
    torch.testing.assert_close(
        found, expected, atol=3e-4, rtol=1e-3
    )  # AdamW divides by small gradients: rounding grows with the steps
    for mine, theirs in zip(heads.parameters(), singles, strict=True):
        assert [part.shape for part in mine] == [part.shape for part in theirs.parameters()]


@pytest.mark.fast
@pytest.mark.parametrize("depth", [1, 2])
def test_heads_that_are_taken_go_on_apart(depth):
    tokens, classes = examples()
    heads = make(4, depth)
    sweep.run_round(heads, GRID.settings, GRID, clips(tokens, classes), range(3))
    before = heads.logits(tokens).detach()
    heads.take([2, 0, 2])
    torch.testing.assert_close(heads.logits(tokens), before[[2, 0, 2]])
    sweep.run_round(heads, GRID.settings[:3], GRID, clips(tokens, classes), range(3, 6))
    after = heads.logits(tokens)
    assert len(after) == 3 and (after[0] - after[2]).abs().max() > 1e-3


def test_scores_and_gradients_are_those_of_the_classifier():
    tokens, classes = examples()
    heads = make(3)
    with torch.no_grad():
        for weight in heads.weights.values():
            weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    heads.add_gradients(tokens[:10], classes[:10], 10 / 30)
    heads.add_gradients(tokens[10:], classes[10:], 20 / 30)
    for number, logits in enumerate(heads.logits(tokens)):
        single = AttentiveClassifier(AttentivePooler(WIDTH, HEADS), CLASSES)
        single.load_state_dict({name: weight[number].detach() for name, weight in heads.weights.items()})
        torch.testing.assert_close(logits, single(tokens), atol=2e-6, rtol=1e-5)
        functional.cross_entropy(single(tokens), classes).backward()
        for name, parameter in single.named_parameters():
            torch.testing.assert_close(heads.weights[name].grad[number], parameter.grad, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("depth", [1, 2])
def test_bf16_is_close_to_fp32(depth):
    tokens, classes = examples()
    full, half = make(2, depth), make(2, depth, torch.bfloat16)
    torch.testing.assert_close(full.logits(tokens), half.logits(tokens.half()), atol=0.02, rtol=0)
    half.add_gradients(tokens.half(), classes, 1.0)
    assert all(part.grad.dtype is torch.float32 for one in half.parameters() for part in one)


def test_the_head_equals_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    from vjepa.interop import huggingface, probes

    settings = transformers.VJEPA2Config(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_pooler_layers=0, layer_norm_eps=1e-5
    )
    torch.manual_seed(0)
    pooler, linear = VJEPA2AttentivePooler(settings).eval(), torch.nn.Linear(WIDTH, CLASSES)
    stored = {f"pooler.{name}": tensor for name, tensor in pooler.state_dict().items()}
    stored |= {f"classifier.{name}": tensor for name, tensor in linear.state_dict().items()}
    stored = {name: torch.randn(tensor.shape) * 0.3 for name, tensor in stored.items()}
    pooler.load_state_dict(
        {name.removeprefix("pooler."): tensor for name, tensor in stored.items() if name.startswith("pooler.")}
    )
    linear.load_state_dict(
        {name.removeprefix("classifier."): tensor for name, tensor in stored.items() if name.startswith("classifier.")}
    )
    heads = make(2)
    single = AttentiveClassifier(AttentivePooler(WIDTH, HEADS), CLASSES)
    taken = huggingface.take(stored, single, probes.HEAD, "test")
    with torch.no_grad():
        for name, weight in heads.weights.items():
            weight.copy_(taken[name].expand_as(weight))
    tokens, _ = examples()
    expected = linear(pooler(tokens))
    for logits in heads.logits(tokens):
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.fast
def test_every_clip_once_per_epoch_in_an_order_of_the_seed():
    passed = list(sweep.batches(10, 4, 1, range(6)))
    assert [(epoch, len(places)) for epoch, places in passed] == [(0, 4), (0, 4), (0, 2), (1, 4), (1, 4), (1, 2)]
    epochs = [np.concatenate([places for number, places in passed if number == epoch]) for epoch in (0, 1)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and (epochs[0] != epochs[1]).any()
    later = list(sweep.batches(10, 4, 1, range(2, 5)))  # a round begins anywhere
    assert all((one[1] == other[1]).all() for one, other in zip(passed[2:5], later, strict=True))
    assert (
        sweep.Grid().batch_for(100_000) == 256
        and sweep.Grid().batch_for(160) == 10
        and len(sweep.Grid().settings) == 20
    )


# ---- the start


def means(tokens):
    """The mean of normed tokens, in float64."""
    return functional.layer_norm(tokens.double(), tokens.shape[-1:], eps=1e-5).mean(1)


def start(pooler, learned, names, chosen_on, truth):
    task = Classify()
    return linear_start(pooler, learned, read_out(task, learned, task.targets(names), chosen_on, truth), 0)


@pytest.mark.parametrize("depth", [1, 4])
def test_a_head_starts_as_ridge_regression_on_the_mean_of_the_normed_tokens(depth):
    tokens, classes = examples(60)
    names = np.array(["a", "b", "c"])[classes.numpy()]
    learned, chosen_on = (MeanTokens.of([[part]]) for part in (tokens[:40], tokens[40:]))
    pooler = AttentivePooler(WIDTH, HEADS, depth=depth)
    head = start(pooler, learned, names[:40], chosen_on, names[40:])
    found = head(tokens).detach().double().numpy()
    values = linear.standardise(*(means(part).numpy() for part in (tokens[:40], tokens)))
    scores = [
        Ridge(alpha=alpha).fit(values[0], np.eye(3)[classes[:40]]).predict(values[1]) for alpha in linear.ALPHA_CHOICES
    ]
    # equal up to one factor, the sharpness, and one of the alphas: the one with the most right answers on selection
    right = [int((one[40:].argmax(1) == classes[40:].numpy()).sum()) for one in scores]
    fits = [np.abs(sharpness * one - found).max() for one in scores for sharpness in (1, 2, 4, 8, 16, 32, 64)]
    assert min(fits) < 1e-3 * max(1, np.abs(found).max())
    assert right[int(np.argmin(fits)) // 7] == max(right)


@pytest.mark.parametrize("depth", [1, 2])
def test_at_the_start_attention_is_flat_and_everything_learns(depth):
    tokens, classes = examples(60)
    names = np.array(["a", "b", "c"])[classes.numpy()]
    learned = MeanTokens.of([[tokens]])
    head = start(AttentivePooler(WIDTH, HEADS, depth=depth), learned, names, learned, names)
    swapped = tokens[:, torch.randperm(10, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(head(swapped), head(tokens), atol=1e-3, rtol=1e-3)
    functional.cross_entropy(head(tokens), classes).backward()
    last = head.pooler.cross_attention_block
    for weight in (last.xattn.q.bias, last.mlp.fc2.weight, last.xattn.kv.weight, head.linear.weight):
        assert weight.grad.abs().max() > 1e-6
    for block in getattr(head.pooler, "blocks", ()):
        assert block.attn.proj.weight.grad.abs().max() > 1e-6 and block.mlp.fc2.weight.grad.abs().max() > 1e-6


@pytest.mark.fast
def test_views_and_batches_of_clips_are_read_alike():
    tokens, _ = examples(24)
    whole = MeanTokens.of([[tokens[:12], tokens[12:]]])
    parts = MeanTokens.of([[tokens[:5], tokens[12:17]], [tokens[5:12], tokens[17:]]])
    assert whole.means.shape == (12, 2, WIDTH)
    np.testing.assert_allclose(whole.means, parts.means, atol=1e-6)
    np.testing.assert_allclose(whole.means[:, 1], means(tokens[12:]), atol=1e-5)
    torch.testing.assert_close(whole.covariance, parts.covariance)
    normed = functional.layer_norm(tokens, (WIDTH,)).flatten(0, 1).double().numpy()
    np.testing.assert_allclose(whole.covariance, np.cov(normed.T, bias=True), atol=1e-4)


# ---- rounds


class Counted:
    """Heads that learn nothing and count what they would cost."""

    def __init__(self, num):
        self.num, self.cost = num, 0

    def parameters(self):
        return [[torch.nn.Parameter(torch.zeros(1))] for _ in range(self.num)]

    def clips_at_once(self, num_tokens):
        return 1000

    def add_gradients(self, tokens, classes, share):
        self.cost += 1 + self.num  # reading the tokens costs about as much as a head

    def take(self, numbers):
        self.num = len(numbers)

    def head(self, number):
        return number

    def zero_gradients(self):
        pass


def run(grid, merit, num_clips=160):
    """A sweep whose heads have the merit that `merit` gives each setting at a number of rounds."""
    heads, rounds = Counted(len(grid.settings)), []

    def judge(heads):
        rounds.append(heads.num)
        return [merit(len(rounds) - 1)] * heads.num

    tokens = torch.zeros(num_clips, 1, 1)
    found = sweep.train(heads, grid, clips(tokens, torch.zeros(num_clips, dtype=torch.long)), judge)
    return heads, rounds, found


@pytest.mark.fast
def test_a_sweep_costs_at_most_20_heads_for_20_epochs():
    heads, rounds, found = run(sweep.Grid(), lambda number: (number / 100, 0.0))
    assert 0.9 * 360 * 16 < heads.cost <= 360 * 16
    assert rounds[:3] == [20, 20, 11] and found.setting["steps"] > 1500  # half of 20 and a wider one
    assert run(sweep.Grid(batch=160), lambda number: (number / 100, 0.0))[2].setting["steps"] > 1500
    assert run(sweep.Grid(max_steps=50), lambda number: (number / 100, 0.0))[2].setting["steps"] == 50


@pytest.mark.fast
def test_a_sweep_that_brings_nothing_ends_and_gives_the_start():
    heads, rounds, found = run(sweep.Grid(), lambda number: (0.5, -float(number)), num_clips=1600)
    assert found.setting == {"lr": 0, "weight_decay": 0, "steps": 0} and found.head == 0
    assert heads.cost < 360 * 16 and len(rounds) == 6  # 20, 40, 80, 160 and 320 steps
    late = run(sweep.Grid(), lambda number: (float(number == 5), 0.0), num_clips=1600)[2]
    assert late.setting["steps"] == 620


@pytest.mark.fast
def test_of_heads_that_are_right_equally_often_the_surer_wins():
    assert run(sweep.Grid(max_steps=20), lambda number: (0.5, 0.1 * number))[2].setting["steps"] == 20
    assert run(sweep.Grid(max_steps=20), lambda number: (0.5, -0.1 * number))[2].setting["steps"] == 0
    assert run(sweep.Grid(max_steps=20), lambda number: (0.5 - 0.1 * number, 0.1 * number))[2].setting["steps"] == 0


@pytest.mark.fast
def test_the_best_at_the_edge_of_the_grid_widens_it_up_to_a_bound():
    grid = sweep.Grid()
    leader = {"lr": 5e-3, "weight_decay": 0.1}
    assert grid.wider(leader, sweep.LEARNING_RATES) == [{"lr": pytest.approx(1.5e-2), "weight_decay": 0.1}]
    assert grid.wider({**leader, "lr": 1e-4}, sweep.LEARNING_RATES)[0]["lr"] == pytest.approx(1e-4 / 3)
    assert grid.wider(leader, [*sweep.LEARNING_RATES, 1.5e-2]) == []
    assert grid.wider({**leader, "lr": 4.5e-2}, [4.5e-2, 1e-4]) == []
    assert grid.wider({**leader, "lr": 1e-3}, sweep.LEARNING_RATES) == []
    assert sweep.Grid((5e-3,)).wider(leader, [5e-3]) == []  # what the user gave stays


@pytest.mark.fast
def test_half_go_on_of_every_learning_rate_first():
    settings = sweep.Grid().settings
    merits = [(setting["lr"], -setting["weight_decay"]) for setting in settings]
    kept = sweep.survivors(settings, merits)
    assert len(kept) == 10 and kept[0] == merits.index(max(merits))
    assert all(sum(settings[number]["lr"] == lr for number in kept) == 2 for lr in sweep.LEARNING_RATES)
    assert sweep.survivors(settings[:1], merits[:1]) == [0]
