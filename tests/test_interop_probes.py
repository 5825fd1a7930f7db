from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vjepa.errors import UserError
from vjepa.interop.probes import load_probe, write_probes
from vjepa.models.attentive_pool import AttentiveClassifier, AttentivePooler, CrossAttention, LinearClassifier
from vjepa.models.pooling import Pooling
from vjepa.records import TokenGrid

WIDTH, HEADS = 48, 4


def randomise(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.15)
    return network.eval().requires_grad_(False)


def classifier(depth: int) -> nn.Module:
    return randomise(AttentiveClassifier(AttentivePooler(WIDTH, HEADS, depth=depth), 7))


def plain_cross_attention(attention: CrossAttention, query: Tensor, tokens: Tensor) -> Tensor:
    """Every token is projected to a key and a value."""
    query = rearrange(attention.q(query.expand(len(tokens), -1, -1)), "b q (h d) -> b h q d", h=HEADS)
    key, value = rearrange(attention.kv(tokens), "b k (two h d) -> two b h k d", two=2, h=HEADS)
    mixed = nn.functional.scaled_dot_product_attention(query, key, value)
    return rearrange(mixed, "b h q d -> b q (h d)")


@pytest.mark.fast
def test_one_query_needs_no_projected_tokens() -> None:
    """The value and its gradients are those of the plain way."""
    attention = randomise(CrossAttention(WIDTH, HEADS)).requires_grad_(True)
    query, tokens = torch.randn(1, 1, WIDTH, requires_grad=True), torch.randn(3, 50, WIDTH, requires_grad=True)
    inputs = [query, tokens, attention.q.weight, attention.kv.weight]
    values, gradients = [], []
    for way in (attention(query, tokens), plain_cross_attention(attention, query, tokens)):
        values.append(way)
        gradients.append(torch.autograd.grad(way.square().sum(), inputs))
    torch.testing.assert_close(values[0], values[1], atol=1e-5, rtol=1e-5)
    for mine, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.fast
def test_a_fresh_probe_knows_no_class_yet_learns() -> None:
    torch.manual_seed(0)
    probe = AttentiveClassifier(AttentivePooler(WIDTH, HEADS, depth=2), 3)
    tokens = torch.randn(4, 20, WIDTH)
    assert probe(tokens).shape == (4, 3) and probe(tokens).abs().max() < 1
    probe(tokens).square().sum().backward()
    assert all(parameter.grad is not None for parameter in probe.parameters())


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def module(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": tensor for key, tensor in state.items()}


@pytest.mark.fast
def test_vjepa_probe_files(tmp_path: Path) -> None:
    probe, tokens = classifier(depth=1), torch.randn(2, 30, WIDTH)
    unused = {
        f"pooler.cross_attention_block.xattn.proj.{kind}": torch.randn(size)
        for kind, size in (("weight", (WIDTH, WIDTH)), ("bias", (WIDTH,)))
    }
    names = {
        "query_tokens",
        *(f"cross_attention_block.{name}.{kind}" for name in PUBLISHED for kind in ("weight", "bias")),
    }
    assert probe.state_dict().keys() == {f"pooler.{name}" for name in names} | {"linear.weight", "linear.bias"}
    file = {
        "classifier": module(probe.state_dict() | unused),
        "opt": {},
        "scaler": None,
        "epoch": 20,
        "batch_size": 4,
        "world_size": 64,
        "lr": 1e-3,
    }
    loaded = load_probe(save(tmp_path / "probe.pth.tar", file), heads=HEADS)
    assert torch.equal(loaded(tokens), probe(tokens)) and not any(
        parameter.requires_grad for parameter in loaded.parameters()
    )


PUBLISHED = ("norm1", "xattn.q", "xattn.kv", "norm2", "mlp.fc1", "mlp.fc2")


@pytest.mark.fast
def test_vjepa2_probe_files_hold_several(tmp_path: Path) -> None:
    probes, tokens = [classifier(depth=4), classifier(depth=4)], torch.randn(2, 30, WIDTH)
    nn.init.normal_(probes[1].linear.weight)
    path = save(
        tmp_path / "probe.pt", {"classifiers": [module(probe.state_dict()) for probe in probes], "opt": [], "epoch": 20}
    )
    for index, probe in enumerate(probes):
        assert torch.equal(load_probe(path, index, HEADS)(tokens), probe(tokens))
    with pytest.raises(UserError, match="has no probe number 2; it has 0 to 1"):
        load_probe(path, 2, HEADS)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module.linear.bias": None}, r"linear\.bias is missing"),
        ({"module.linear.weight": None}, r"linear\.weight is missing"),
        ({"module.pooler.extra": torch.zeros(1)}, r"pooler\.extra is not part"),
        ({"module.pooler.cross_attention_block.norm2.bias": torch.zeros(3)}, r"norm2\.bias has shape \[3\]"),
        ({"module.pooler.blocks.0.norm1.bias": torch.zeros(WIDTH)}, r"pooler\.blocks\.0\.\S+ is missing"),
        (
            {
                "module.pooler.cross_attention_block.xattn.proj.bias": torch.zeros(1),
                "module.pooler.blocks.0.norm1.bias": torch.zeros(1),
            },
            "probe of depth 2",
        ),
    ],
)
def test_a_probe_file_is_read_strictly(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    state = module(classifier(depth=1).state_dict()) | change
    path = save(
        tmp_path / "probe.pth.tar", {"classifier": {key: tensor for key, tensor in state.items() if tensor is not None}}
    )
    with pytest.raises(UserError, match=message):
        load_probe(path, heads=HEADS)


@pytest.mark.fast
def test_heads_that_were_chosen_are_read_as_they_were_written(tmp_path: Path) -> None:
    cells = Pooling.parse("grid:2", TokenGrid(5, 2, 3))
    linear = [randomise(LinearClassifier(WIDTH, 3)), randomise(LinearClassifier(5 * 4 * WIDTH, 3, cells))]
    probes, tokens = [classifier(depth=2), classifier(depth=1), *linear], torch.randn(2, 30, WIDTH)
    for number, probe in enumerate(probes):
        probe.classes = ("a", f"{number}")
    path = tmp_path / "new" / "probe.safetensors"
    write_probes(path, probes, {"label": "taste", "levels": [1, 2]})
    for number, probe in enumerate(probes):
        loaded = load_probe(path, number)
        assert (
            torch.equal(loaded(tokens), probe(tokens))
            and loaded.classes == probe.classes
            and not loaded.linear.weight.requires_grad
        )
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert metadata["label"] == "taste" and json.loads(metadata["levels"]) == [1, 2]
    old = [
        {"attention_heads": None, "classes": ["a", "2"]} for _ in probes
    ]  # as versions that knew the mean alone wrote it
    save_file(load_file(path), tmp_path / "old.safetensors", {**metadata, "probes": json.dumps(old)})
    assert torch.equal(load_probe(tmp_path / "old.safetensors", 2)(tokens), probes[2](tokens))
    with pytest.raises(UserError, match="has no probe number 4; it has 0 to 3"):
        load_probe(path, 4)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"is no probe file; name one that python -m vjepa\.probe wrote"):
        load_probe(tmp_path / "other.safetensors")


@pytest.mark.fast
def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither `classifier`"):
        load_probe(save(tmp_path / "a.pt", {"encoder": {}}))
    with pytest.raises(UserError, match="to load, which could do anything"):
        load_probe(save(tmp_path / "c.pt", {"classifier": Path("code")}))  # an object: never unpickled
    with pytest.raises(UserError, match="cannot be read"):
        load_probe(tmp_path / "absent.pt")
    with pytest.raises(UserError, match="give the number of heads"):
        load_probe(save(tmp_path / "d.pt", {"classifier": module(classifier(depth=1).state_dict())}), heads=5)


@pytest.mark.parametrize("num_pooler_layers", [0, 3])
def test_heads_of_transformers_classifiers(tmp_path: Path, num_pooler_layers: int) -> None:
    transformers = pytest.importorskip("transformers")
    tiny = {
        "num_hidden_layers": 1,
        "crop_size": 16,
        "patch_size": 4,
        "pred_hidden_size": 12,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
    }
    settings = transformers.VJEPA2Config(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_pooler_layers=num_pooler_layers, num_labels=5, **tiny
    )
    network = randomise(transformers.VJEPA2ForVideoClassification(settings))
    network.save_pretrained(tmp_path)
    probe, tokens = load_probe(tmp_path), torch.randn(3, 40, WIDTH)
    expected = network.classifier(network.pooler(tokens))
    assert expected.std() > 0.1
    torch.testing.assert_close(probe(tokens), expected, atol=1e-5, rtol=0)
    video = torch.randn(1, 4, 3, 16, 16)
    torch.testing.assert_close(probe(network.vjepa2(video).last_hidden_state), network(video).logits, atol=1e-5, rtol=0)

    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"pooler.surplus": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"pooler\.surplus is not part"):
        load_probe(tmp_path)
    del tensors["pooler.cross_attention_layer.cross_attn.k_proj.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"cross_attn\.k_proj\.bias is missing"):
        load_probe(tmp_path)
    save_file(
        {key: tensor for key, tensor in tensors.items() if key.startswith("vjepa2.")}, tmp_path / "model.safetensors"
    )
    with pytest.raises(UserError, match="holds no attentive probe"):
        load_probe(tmp_path)


@pytest.mark.fast
def test_a_folder_without_a_head_is_no_probe(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ijepa"}))
    save_file({"classifier.weight": torch.zeros(2, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds no attentive probe"):
        load_probe(tmp_path)
