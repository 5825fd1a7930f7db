from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vjepa import config
from vjepa.data.augment import normalise
from vjepa.errors import UserError
from vjepa.interop import huggingface
from vjepa.interop.weights import Weights
from vjepa.models.encoder import VisionTransformer
from vjepa.models.layers import gather_tokens
from vjepa.models.predictor import Predictor
from vjepa.models.state import load_strictly

transformers = pytest.importorskip("transformers")

CROP_PX, PATCH_PX = 16, 4
CLOSE = {"atol": 1e-5, "rtol": 0.0}


def randomise(network: nn.Module) -> nn.Module:
    """Weights large enough that every tensor shows in the output: of std 0.15, norms about 1."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.15)
    return network.eval().requires_grad_(False)


def theirs(kind: str = "VJEPA2Model", **settings: object) -> nn.Module:
    tiny = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "crop_size": CROP_PX,
        "patch_size": PATCH_PX,
        "num_pooler_layers": 2,
    }
    predictor = {
        "pred_hidden_size": 28,
        "pred_num_hidden_layers": 2,
        "pred_num_attention_heads": 2,
        "pred_num_mask_tokens": 3,
        "pred_mlp_ratio": 3.1,
    }
    return randomise(getattr(transformers, kind)(transformers.VJEPA2Config(**{**tiny, **predictor, **settings})))


def ours(**settings: object) -> Weights:
    shapes = {
        "encoder": config.EncoderSettings(width=44, depth=2, heads=2, mlp_ratio=48 / 11),
        "predictor": config.PredictorSettings(width=24, depth=2, heads=3, mask_tokens=2),
    }
    model = config.Model(**{"patch_px": PATCH_PX, "tubelet_frames": 2, "rope": "vjepa2", **shapes, **settings})
    encoder, predictor = randomise(VisionTransformer(model)), randomise(Predictor(model, 2))
    return Weights("our.safetensors", model, encoder.state_dict(), predictor.state_dict())


def pick(num_tokens: int, num_context: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    """context_ids [B, Kc] and target_ids [B, Kt], unsorted and disjoint."""
    orders = torch.stack([torch.randperm(num_tokens) for _ in range(batch)])
    return orders[:, :num_context], orders[:, num_context : num_context + max(1, num_tokens // 3)]


def assert_equal_networks(theirs: nn.Module, encoder: VisionTransformer, predictor: Predictor, video: Tensor) -> None:
    """Features of all tokens, of the visible ones alone, and predictions from some and from all tokens."""
    grid = encoder.grid(*video.shape[2:])
    context_ids, target_ids = pick(grid.num_tokens, max(1, grid.num_tokens // 2))
    everything = torch.arange(grid.num_tokens).expand(2, -1)
    frames = video.transpose(1, 2)
    answer = theirs(frames, context_mask=[context_ids], target_mask=[target_ids])
    features = encoder(video)
    assert features.std() > 0.1
    torch.testing.assert_close(features, answer.last_hidden_state, **CLOSE)

    tokens = gather_tokens(theirs.encoder.embeddings(frames), context_ids)
    for layer in theirs.encoder.layer:
        tokens = layer(tokens, context_ids)[0]
    torch.testing.assert_close(encoder(video, context_ids), theirs.encoder.layernorm(tokens), **CLOSE)

    # They always predict from mask token 1 (REFERENCE C3).
    predictions = predictor(gather_tokens(features, context_ids), context_ids, target_ids, grid, mask_index=1)
    assert predictions.std() > 0.1
    torch.testing.assert_close(predictions, answer.predictor_output.last_hidden_state, **CLOSE)
    torch.testing.assert_close(
        gather_tokens(features, target_ids), answer.predictor_output.target_hidden_state, **CLOSE
    )
    unmasked = predictor(features, everything, everything, grid, mask_index=1)
    torch.testing.assert_close(unmasked, theirs(frames).predictor_output.last_hidden_state, **CLOSE)


# Their position of a cell is right for squares of crop_size, and for one time slot of that width and any height.
SIZES = [(1, 16, 16), (2, 16, 16), (16, 16, 16), (64, 16, 16), (1, 8, 16), (2, 12, 16), (5, 16, 16)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    folder = tmp_path_factory.mktemp("published")
    network = theirs()
    network.save_pretrained(folder)
    return network, folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Weights, Path]:
    folder = tmp_path_factory.mktemp("written") / "new" / "folder"
    weights = ours()
    huggingface.write(weights, folder, (16, CROP_PX, CROP_PX))
    return weights, folder


@pytest.mark.parametrize("size", SIZES)
def test_reading_gives_the_outputs_of_transformers(
    published: tuple[nn.Module, Path], size: tuple[int, int, int]
) -> None:
    network, folder = published
    assert huggingface.recognises(folder)
    weights = huggingface.read(folder)
    assert_equal_networks(network, weights.build_encoder(), weights.build_predictor(), torch.randn(2, 3, *size))


@pytest.mark.parametrize("size", SIZES)
def test_writing_gives_the_outputs_in_transformers(written: tuple[Weights, Path], size: tuple[int, int, int]) -> None:
    weights, folder = written
    network, report = transformers.VJEPA2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report  # missing, unexpected, mismatched: none
    assert_equal_networks(network.eval(), weights.build_encoder(), weights.build_predictor(), torch.randn(2, 3, *size))


def test_their_positions_are_those_of_another_size_elsewhere(published: tuple[nn.Module, Path]) -> None:
    """What the docstring warns of: several time slots of another size than crop_size get wrong places there."""
    network, folder = published
    video = torch.randn(1, 3, 4, 8, 16)
    difference = (
        (huggingface.read(folder).build_encoder()(video) - network(video.transpose(1, 2)).last_hidden_state).abs().max()
    )
    assert difference > 1e-3


def test_several_masks(published: tuple[nn.Module, Path]) -> None:
    """Their lists of masks are calls here; they fail on a list of two."""
    network, folder = published
    weights, video = huggingface.read(folder), torch.randn(2, 3, 4, CROP_PX, CROP_PX)
    encoder, predictor = weights.build_encoder(), weights.build_predictor()
    features, grid = encoder(video), encoder.grid(4, CROP_PX, CROP_PX)
    for num_context in (8, 3):
        context_ids, target_ids = pick(32, num_context)
        answer = network(video.transpose(1, 2), context_mask=[context_ids], target_mask=[target_ids]).predictor_output
        predictions = predictor(gather_tokens(features, context_ids), context_ids, target_ids, grid, mask_index=1)
        torch.testing.assert_close(predictions, answer.last_hidden_state, **CLOSE)


def test_what_is_written_is_read_back_exactly(written: tuple[Weights, Path]) -> None:
    weights, folder = written
    back = huggingface.read(folder)
    for network in ("encoder", "predictor"):
        stored, again = getattr(weights, network), getattr(back, network)
        assert stored.keys() == again.keys() and all(torch.equal(stored[key], again[key]) for key in stored)
    assert back.model.grid(16, 16, 16) == weights.model.grid(16, 16, 16)


def test_hidden_widths_survive_their_rounding() -> None:
    for width, hidden in ((1408, 6144), (1664, 8192), (44, 192), (7 * 6, 100)):
        ratio = huggingface._rounded_down_ratio(config.Transformer(width=width, heads=1, mlp_ratio=hidden / width))
        assert int(width * ratio) == hidden


def test_a_sharded_folder(published: tuple[nn.Module, Path], tmp_path: Path) -> None:
    network, folder = published
    network.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    whole, sharded = huggingface.read(folder), huggingface.read(tmp_path)
    assert whole.encoder.keys() == sharded.encoder.keys() and all(
        torch.equal(whole.encoder[key], sharded.encoder[key]) for key in whole.encoder
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["surplus.weight"] = index["weight_map"]["encoder.layernorm.bias"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"differ in surplus\.weight"):
        huggingface.read(tmp_path)
    index["weight_map"]["surplus.weight"] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside of the folder"):
        huggingface.read(tmp_path)


def test_the_model_inside_of_a_classifier(tmp_path: Path) -> None:
    network = theirs("VJEPA2ForVideoClassification", num_labels=5)
    network.save_pretrained(tmp_path)
    weights = huggingface.read(tmp_path)
    assert_equal_networks(
        network.vjepa2, weights.build_encoder(), weights.build_predictor(), torch.randn(2, 3, 4, CROP_PX, CROP_PX)
    )


def edited(folder: Path, target: Path, change: dict[str, Tensor | None], **settings: object) -> Path:
    """A copy of a folder with tensors replaced or, for None, left out, and other settings."""
    tensors = load_file(folder / "model.safetensors") | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | settings))
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layer.1.attention.key.bias": None}, r"encoder\.layer\.1\.attention\.key\.bias is missing"),
        ({"predictor.proj.weight": None}, r"predictor\.proj\.weight is missing"),
        ({"predictor.embeddings.mask_tokens": None}, r"predictor\.embeddings\.mask_tokens\.0 is missing"),
        (
            {"encoder.layer.0.mlp.fc1.weight": torch.zeros(3, 48)},
            r"fc1\.weight has shape \[3, 48\], config\.json asks for \[192, 48\]",
        ),
        (
            {"encoder.layer.9.norm1.bias": torch.zeros(48), "encoder.layer.9.norm1.weight": torch.zeros(48)},
            r"encoder\.layer\.9\.norm1\.bias is not part .*\(and 1 more",
        ),
        ({"pooler.query_tokens": torch.zeros(1, 1, 48)}, r"pooler\.query_tokens is not part"),
        ({"predictor.embeddings.mask_tokens": torch.zeros(4, 1, 1, 28)}, r"mask_tokens\.3 is not part"),
    ],
)
def test_a_key_that_does_not_fit_is_named(
    published: tuple[nn.Module, Path], tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        huggingface.read(edited(published[1], tmp_path, change))


def test_an_encoder_without_predictor(published: tuple[nn.Module, Path], tmp_path: Path) -> None:
    change = dict.fromkeys(key for key in load_file(published[1] / "model.safetensors") if key.startswith("predictor."))
    weights = huggingface.read(edited(published[1], tmp_path, change))
    assert not weights.predictor and weights.build_encoder()
    with pytest.raises(UserError, match=r"has no predictor, and .* needs one; export from a file that holds both"):
        huggingface.write(weights, tmp_path / "new", (16, CROP_PX, CROP_PX))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act: relu is not supported, only gelu"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps: 1e-05 is not supported"),
        ({"qkv_bias": False}, "qkv_bias: False is not supported"),
        ({"patch_size": [4, 8]}, r"patch_size: \[4, 8\] is not supported, only squares"),
        ({"hidden_size": "wide"}, "hidden_size: wide is no positive number"),
        ({"num_attention_heads": 5}, r"config\.json: encoder.heads: 5 heads do not divide a width of 48"),
    ],
)
def test_settings_that_no_network_of_ours_has(
    published: tuple[nn.Module, Path], tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        huggingface.read(edited(published[1], tmp_path, {}, **settings))


def test_other_folders_are_not_recognised(tmp_path: Path) -> None:
    assert not huggingface.recognises(tmp_path) and not huggingface.recognises(tmp_path / "absent")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert not huggingface.recognises(tmp_path)
    with pytest.raises(UserError, match="is no Hugging Face folder"):
        huggingface.read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input": "changes"}, "input: changes"),
        ({"positions": "sincos"}, "positions: sincos"),
        ({"rope": "rotation"}, r"rope: rotation .*train with model\.rope=vjepa2"),
        ({"rope_grid": 4}, "rope_grid"),
        ({"image_mode": "own"}, "image_mode: own"),
        ({"image_mode": "repeat"}, "image_mode: repeat"),
        ({"modality_embedding": True}, "modality_embedding"),
        ({"encoder": config.EncoderSettings(width=48, depth=4, heads=2), "level_norms": True}, "level_norms"),
        ({"encoder": config.EncoderSettings(width=48, depth=2, heads=2, mlp="swiglu")}, "mlp: swiglu"),
        (
            {"predictor": config.PredictorSettings(width=24, depth=2, heads=2, out_width=12)},
            "a predictor with another out_width",
        ),
    ],
)
def test_what_they_cannot_express_is_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(
        UserError, match=rf"^our\.safetensors: .*cannot express {message}.*; export it with --to safetensors$"
    ):
        huggingface.write(ours(**settings), tmp_path / "new", (16, CROP_PX, CROP_PX))
    assert not (tmp_path / "new").exists()


def test_only_squares_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^--crop-px 16,32: Hugging Face's V-JEPA 2 knows .* --to onnx or safetensors$"
    ):
        huggingface.write(ours(), tmp_path / "new", (16, 16, 32))
    assert not (tmp_path / "new").exists()


def test_their_processor_makes_the_clips_of_the_export(tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (4, 3, 40, 60), dtype=torch.uint8)
    for fit in ("crop", "squash", "pad"):
        huggingface.write(ours(), tmp_path / fit, (4, CROP_PX, CROP_PX), fit)
        processor = transformers.AutoVideoProcessor.from_pretrained(tmp_path / fit)
        given = frames if fit == "crop" else frames[..., :CROP_PX, :CROP_PX]
        clips = processor(given, return_tensors="pt")["pixel_values_videos"]
        assert clips.shape == (1, 4, 3, CROP_PX, CROP_PX)
        if fit != "crop":  # brought to their size by the user: it only normalises
            expected = normalise(given.transpose(0, 1)[None], torch.float32).transpose(1, 2)
            torch.testing.assert_close(clips, expected, atol=1e-5, rtol=1e-4)


def test_other_channels_are_written_and_read_back_with_their_normalisation(tmp_path: Path) -> None:
    told = {"names": [f"channel_{i}" for i in range(1, 6)], "mean": [0.2] * 5, "std": [0.1] * 5, "bits": 16}
    channels = config.Channels.model_validate_json(json.dumps(told))
    weights = replace(ours(channels=5), channels=channels)
    huggingface.write(weights, tmp_path / "five", (4, CROP_PX, CROP_PX))
    again, video = huggingface.read(tmp_path / "five"), torch.randn(1, 5, 4, CROP_PX, CROP_PX)
    assert again.channels == channels and again.model.channels == 5
    network = transformers.VJEPA2Model.from_pretrained(tmp_path / "five").eval()
    with torch.no_grad():
        answer = network(video.transpose(1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(again.build_encoder()(video), answer, **CLOSE)
    (tmp_path / "five" / huggingface.PROCESSOR).unlink()
    with pytest.raises(UserError, match=r"has 5 channels, and no video_preprocessor_config\.json tells"):
        huggingface.read(tmp_path / "five")


@pytest.mark.parametrize("head", [False, True])
def test_ijepa_folders(tmp_path: Path, head: bool) -> None:
    settings = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 100,
        "image_size": 16,
        "patch_size": 4,
    }
    kind = transformers.IJepaForImageClassification if head else transformers.IJepaModel
    network = randomise(kind(transformers.IJepaConfig(**settings, layer_norm_eps=1e-6)))
    network.save_pretrained(tmp_path)
    weights = huggingface.read(tmp_path)
    encoder, image = weights.build_encoder(), torch.randn(2, 3, 16, 16)
    expected = (network.ijepa if head else network)(image).last_hidden_state
    torch.testing.assert_close(encoder(image.unsqueeze(2)), expected, **CLOSE)
    ids = torch.tensor([[3, 1, 8], [0, 2, 15]])
    assert encoder(image.unsqueeze(2), ids).shape == (2, 3, 48)
    # the names that the library has in memory are read too
    memory = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_file(memory, tmp_path / "model.safetensors")
    torch.testing.assert_close(huggingface.read(tmp_path).build_encoder()(image.unsqueeze(2)), expected, **CLOSE)
    key = ("ijepa." if head else "") + "layers.2.attention.o_proj.bias"
    del memory[key]
    save_file(memory, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"layers\.2\.attention\.o_proj\.bias is missing"):
        huggingface.read(tmp_path)


def test_weights_of_half_precision_load_into_fp32(published: tuple[nn.Module, Path], tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in load_file(published[1] / "model.safetensors").items()}
    encoder = huggingface.read(edited(published[1], tmp_path, halves)).build_encoder()
    assert {tensor.dtype for tensor in encoder.state_dict().values()} == {torch.float32}
    load_strictly(encoder, encoder.state_dict(), "itself")
