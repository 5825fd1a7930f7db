"""Training files of V-JEPA 2 and I-JEPA give the features and predictions of transformers' models of the
same weights.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from published import NARROW, PATCH, WIDTH, pick, split
from torch import Tensor

import vjepa

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomise(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, float("norm" in name and name.endswith("weight")), 0.1)


def stacked(sd: dict[str, Tensor], stem: str, names: tuple[str, str, str], kind: str) -> Tensor:
    return torch.cat([sd[f"{stem}.{name}.{kind}"] for name in names])


def published_vjepa2(sd: dict[str, Tensor]) -> dict[str, published.Tensors]:
    """The networks of a training file from the state dict of a VJEPA2Model (REFERENCE section 3)."""
    plain = {"encoder.embeddings.patch_embeddings.proj": "patch_embed.proj", "encoder.layernorm": "norm"}
    plain |= {
        "predictor.embeddings.predictor_embeddings": "predictor_embed",
        "predictor.layernorm": "predictor_norm",
        "predictor.proj": "predictor_proj",
    }
    parts: dict[str, published.Tensors] = {"target_encoder": {}, "predictor": {}}
    for key, tensor in sd.items():
        stem, kind = key.rsplit(".", 1)
        network, blocks = (
            ("predictor", "predictor_blocks") if key.startswith("predictor") else ("target_encoder", "blocks")
        )
        block = re.match(r"(\w+\.layer\.(\d+))\.(.+)", stem)
        if key == "predictor.embeddings.mask_tokens":
            parts[network] |= {f"mask_tokens.{j}": one for j, one in enumerate(tensor)}
        elif block and block[3] == "attention.query":
            joined = stacked(sd, f"{block[1]}.attention", ("query", "key", "value"), kind)
            parts[network][f"{blocks}.{block[2]}.attn.qkv.{kind}"] = joined
        elif block and block[3] not in ("attention.key", "attention.value"):
            parts[network][f"{blocks}.{block[2]}.{block[3].replace('attention', 'attn')}.{kind}"] = tensor
        elif not block:
            parts[network][f"{plain[stem]}.{kind}"] = tensor
    return parts


@pytest.fixture(scope="module")
def vjepa2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A random VJEPA2Model, and the training file of the same weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "mlp_ratio": 1.5,
        "patch_size": PATCH,
        "crop_size": 32,
    }
    narrow = {
        "pred_hidden_size": NARROW,
        "pred_num_hidden_layers": 2,
        "pred_num_attention_heads": 12,
        "pred_mlp_ratio": 2.0,
    }
    model = transformers.VJEPA2Model(transformers.VJEPA2Config(**sizes, **narrow)).eval()
    randomise(model)
    path = tmp_path_factory.mktemp("vjepa2") / "latest"
    parts = published_vjepa2(dict(model.state_dict()))
    parts["target_encoder"]["pos_embed"] = torch.randn(1, 128, WIDTH)  # released files carry tables that nothing uses
    parts["predictor"]["predictor_pos_embed"] = torch.randn(1, 128, NARROW)
    return model, published.save(path, "vjepa2", parts)


@pytest.mark.parametrize("num_frames", [1, 2, 16, 64])
@torch.no_grad()
def test_vjepa2_against_transformers(vjepa2: tuple[Any, Path], num_frames: int) -> None:
    theirs, path = vjepa2
    encoder, predictor = vjepa.load_encoder(path), vjepa.load_predictor(path)
    video = torch.randn(2, 3, num_frames, 32, 32)
    seen, hidden = split(max(num_frames // 2, 1) * 16)
    result = theirs(video.transpose(1, 2), context_mask=[seen], target_mask=[hidden])
    torch.testing.assert_close(encoder(video), result.last_hidden_state, **CLOSE)
    grid = encoder.grid(num_frames, 32, 32)
    predictions = predictor(pick(encoder(video), seen), seen, hidden, grid, mask_index=1)
    torch.testing.assert_close(predictions, result.predictor_output.last_hidden_state, **CLOSE)

    tokens = pick(
        theirs.encoder.embeddings(video.transpose(1, 2)), seen
    )  # their model masks features; their layers can mask tokens
    for layer in theirs.encoder.layer:
        (tokens, *_) = layer(tokens, seen)
    torch.testing.assert_close(encoder(video, seen), theirs.encoder.layernorm(tokens), **CLOSE)


@pytest.mark.parametrize("cells", [(2, 4), (4, 2), (3, 1)])
@torch.no_grad()
def test_vjepa2_of_videos_that_are_not_square_against_transformers(
    vjepa2: tuple[Any, Path], cells: tuple[int, int]
) -> None:
    """Their model numbers the cells of a 4 x 4 square; a smaller video is its top left, given to their layers under
    those numbers.
    """
    theirs, path = vjepa2
    encoder, predictor = vjepa.load_encoder(path), vjepa.load_predictor(path)
    height, width = cells
    video = torch.randn(2, 3, 4, height * PATCH, width * PATCH)
    places = (torch.arange(2)[:, None, None] * 16 + torch.arange(height)[:, None] * 4 + torch.arange(width)).flatten()
    tokens = theirs.encoder.embeddings(video.transpose(1, 2))
    for layer in theirs.encoder.layer:
        (tokens, *_) = layer(tokens, places.expand(2, -1))
    features = theirs.encoder.layernorm(tokens)
    torch.testing.assert_close(encoder(video), features, **CLOSE)
    seen, hidden = split(len(places), 2, 3)
    in_square = torch.zeros(2, 32, WIDTH)
    in_square[:, places] = features
    expected = theirs.predictor(in_square, [places[seen]], [places[hidden]]).last_hidden_state
    predictions = predictor(pick(features, seen), seen, hidden, encoder.grid(*video.shape[2:]), mask_index=1)
    torch.testing.assert_close(predictions, expected, **CLOSE)


@torch.no_grad()
def test_ijepa_against_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 192,
        "image_size": 32,
        "patch_size": PATCH,
    }
    theirs = transformers.IJepaModel(
        transformers.IJepaConfig(**sizes, layer_norm_eps=1e-6), add_pooling_layer=False
    ).eval()
    randomise(theirs)
    sd = dict(theirs.state_dict())
    names = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.o_proj": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    encoder = {"pos_embed": sd["embeddings.position_embeddings"]}
    for kind in ("weight", "bias"):
        encoder |= {
            f"patch_embed.proj.{kind}": sd[f"embeddings.patch_embeddings.projection.{kind}"],
            f"norm.{kind}": sd[f"layernorm.{kind}"],
        }
        for i in range(3):
            encoder |= {f"blocks.{i}.{ours}.{kind}": sd[f"layers.{i}.{name}.{kind}"] for name, ours in names.items()}
            encoder[f"blocks.{i}.attn.qkv.{kind}"] = stacked(
                sd, f"layers.{i}.attention", ("q_proj", "k_proj", "v_proj"), kind
            )
    path = published.save(tmp_path / "a.bin", "ijepa", {"target_encoder": encoder})
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vjepa.load_encoder(path)(image.unsqueeze(2)), theirs(image).last_hidden_state, **CLOSE)
