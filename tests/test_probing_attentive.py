"""Heads that are trained together are what each would be alone."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from vjepa.counter_rng import generator
from vjepa.models.attentive_pool import AttentiveClassifier, AttentivePooler
from vjepa.probing import attentive, sweep

CPU = torch.device("cpu")
WIDTH, HEADS, CLASSES = 24, 4, 3
GRID = sweep.Grid((3e-3, 1e-3), (0.01, 0.4), epochs=3, batch=8, seed=5)


def examples(num=30, tokens=10):
    rng = torch.Generator().manual_seed(0)
    return 2 * torch.randn(num, tokens, WIDTH, generator=rng) + 0.5, torch.randint(0, CLASSES, (num,), generator=rng)


def make(num=4, depth=1, dtype=torch.float32):
    return attentive.make_heads(num, WIDTH, HEADS, depth, CLASSES, 0, CPU, dtype)


def alone(setting, depth):
    """One AttentiveClassifier trained by PyTorch's own loops."""
    with torch.random.fork_rng():
        torch.manual_seed(int(generator(0, "probe_weights", 0).integers(1 << 62)))
        head = AttentiveClassifier(AttentivePooler(WIDTH, HEADS, depth=depth), CLASSES)
    tokens, classes = examples()
    optimizer = torch.optim.AdamW(head.parameters(), lr=setting["lr"], weight_decay=setting["weight_decay"])
    total, step = 3 * 4, 0
    for epoch in range(3):
        order = torch.from_numpy(generator(5, "probe_order", epoch).permutation(30))
        for places in order.split(8):
            optimizer.param_groups[0]["lr"] = setting["lr"] * (1 + math.cos(math.pi * step / total)) / 2
            optimizer.zero_grad()
            functional.cross_entropy(head(tokens[places]), classes[places]).backward()
            optimizer.step()
            step += 1
    return head


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("scores_at_once", [1 << 25, 2000])
def test_a_batch_of_heads_equals_single_heads(depth, scores_at_once, monkeypatch):
    monkeypatch.setattr(attentive, "_SCORES_AT_ONCE", scores_at_once)
    monkeypatch.setattr(attentive, "_ACTIVATIONS_AT_ONCE", 5 * scores_at_once)
    tokens, classes = examples()
    heads = make(depth=depth)
    sweep.train(heads, GRID, 30, lambda epoch, places: tokens[places], tokens.shape[1], classes)
    singles = [alone(setting, depth) for setting in GRID.settings]
    found, expected = heads.logits(tokens), torch.stack([head(tokens) for head in singles])
    assert (expected[0] - expected[3]).abs().max() > 0.01
    torch.testing.assert_close(
        found, expected, atol=3e-4, rtol=1e-3
    )  # AdamW divides by small gradients: rounding grows with the steps
    for mine, theirs in zip(heads.parameters(), singles, strict=True):
        assert [part.shape for part in mine] == [part.shape for part in theirs.parameters()]


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


def test_every_clip_once_per_epoch_in_an_order_of_the_seed():
    passed = list(sweep.batches(10, 4, sweep.Grid(epochs=2, seed=1)))
    assert [(epoch, len(places)) for epoch, places in passed] == [(0, 4), (0, 4), (0, 2), (1, 4), (1, 4), (1, 2)]
    epochs = [np.concatenate([places for number, places in passed if number == epoch]) for epoch in (0, 1)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and (epochs[0] != epochs[1]).any()
    again = list(sweep.batches(10, 4, sweep.Grid(epochs=2, seed=1)))
    assert all((one[1] == other[1]).all() for one, other in zip(passed, again, strict=True))
    assert (
        sweep.Grid().batch_for(100_000) == 256
        and sweep.Grid().batch_for(160) == 10
        and len(sweep.Grid().settings) == 20
    )
