from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from published import (
    DEPTH,
    FORMATS,
    GRID,
    HEADS,
    IMAGE_GRID,
    NARROW,
    PATCH,
    PREDICTOR_DEPTH,
    PREDICTOR_HEADS,
    WIDTH,
    pick,
    split,
)
from torch import Tensor

import vjepa
from vjepa.errors import UserError
from vjepa.interop import load, meta
from vjepa.interop.meta import Hints
from vjepa.models.encoder import patchify
from vjepa.models.positions import SinCos
from vjepa.models.predictor import Predictor
from vjepa.records import TokenGrid

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def clip(format: str, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 1, 32, 32) if format == "ijepa" else torch.randn(batch, 3, 16, 16, 16)


# --- outputs, against plain twins ---


@pytest.mark.parametrize("format", ["vjepa1", "ijepa"])
def test_networks_with_sincos_tables_against_a_plain_twin(format: str, tmp_path: Path) -> None:
    parts = published.networks(format)
    path, sd, video = published.save(tmp_path / "a.bin", format, parts), parts["target_encoder"], clip(format)
    tokens = published.tokens_of(sd, video) + sd["pos_embed"]
    seen, hidden = split(tokens.shape[1])
    encoder, predictor = vjepa.load_encoder(path), vjepa.load_predictor(path)
    for ids in (None, seen):
        given = tokens if ids is None else pick(tokens, ids)
        expected = published.layer_norm(sd, "norm", published.run_blocks(sd, "blocks", DEPTH, HEADS, given)[-1])
        torch.testing.assert_close(encoder(video, ids), expected, **CLOSE)
    grid = TokenGrid(*(IMAGE_GRID if format == "ijepa" else GRID))
    for index in range(1 if format == "ijepa" else 2):
        expected = plain_predictions(
            parts["predictor"],
            encoder(video, seen),
            seen,
            hidden,
            "mask_token" if format == "ijepa" else f"mask_tokens.{index}",
        )
        torch.testing.assert_close(predictor(encoder(video, seen), seen, hidden, grid, index), expected, **CLOSE)


def plain_predictions(sd: published.Tensors, context: Tensor, seen: Tensor, hidden: Tensor, mask_token: str) -> Tensor:
    table = sd["predictor_pos_embed"][0]
    tokens = torch.cat(
        [published.affine(sd, "predictor_embed", context) + table[seen], sd[mask_token] + table[hidden]], dim=1
    )
    out = published.run_blocks(sd, "predictor_blocks", PREDICTOR_DEPTH, HEADS, tokens)[-1]
    return published.affine(sd, "predictor_proj", published.layer_norm(sd, "predictor_norm", out))[:, seen.shape[1] :]


@pytest.mark.parametrize(("levels", "out"), [(1, 160), (4, WIDTH)], ids=["distilled", "four levels"])
@pytest.mark.parametrize("kind", ["clip", "image"])
def test_vjepa21_against_a_plain_twin(kind: str, levels: int, out: int, tmp_path: Path) -> None:
    parts = published.networks("vjepa2.1", levels, out)
    sd, narrow = parts["target_encoder"], parts["predictor"]
    if levels == 1:  # the distilled ones name it so
        parts["ema_encoder"] = parts.pop("target_encoder")
    path = published.save(tmp_path / "a.bin", "vjepa2.1", parts)
    grid, stem, modality = (
        ((2, 3, 4), "patch_embed", "video_mod_embed")
        if kind == "clip"
        else ((1, 3, 4), "patch_embed_img", "img_mod_embed")
    )
    video = torch.randn(2, 3, 4 if kind == "clip" else 1, 24, 32)
    seen, hidden = split(TokenGrid(*grid).num_tokens, 4, 5)
    encoder, predictor = vjepa.load_encoder(path), vjepa.load_predictor(path)
    assert isinstance(predictor, Predictor)

    tokens = pick(published.tokens_of(sd, video, stem) + sd[modality], seen)
    outputs = published.run_blocks(
        sd, "blocks", DEPTH, HEADS, tokens, published.square_places(seen, grid, 256 // PATCH)
    )
    normed = torch.cat(
        [published.layer_norm(sd, f"norms_block.{level}", one) for level, one in enumerate(outputs)], dim=-1
    )
    torch.testing.assert_close(encoder(video, seen), normed[..., -WIDTH:], **CLOSE)
    context = encoder.encode(patchify(video, encoder.model), seen)
    torch.testing.assert_close(context, normed[..., -levels * WIDTH :], **CLOSE)

    if levels == 1:
        embedded = published.affine(narrow, "predictor_embed", context)
    else:
        embedded = published.affine(
            narrow,
            "predictor_embed.2",
            torch.nn.functional.gelu(published.affine(narrow, "predictor_embed.0", context)),
        )
    tokens = torch.cat([embedded, narrow["mask_tokens.5"].expand(2, 5, -1)], dim=1) + narrow[modality]
    places = published.square_places(torch.cat([seen, hidden], dim=1), grid, 256 // PATCH)
    last = published.layer_norm(
        narrow,
        "predictor_norm",
        published.run_blocks(narrow, "predictor_blocks", PREDICTOR_DEPTH, 12, tokens, places)[-1],
    )
    of_hidden, of_seen = predictor.dense(context, seen, hidden, TokenGrid(*grid), 5)
    torch.testing.assert_close(of_hidden, published.affine(narrow, "predictor_proj", last[:, 4:]), **CLOSE)
    torch.testing.assert_close(of_seen, published.affine(narrow, "predictor_proj_context", last[:, :4]), **CLOSE)
    assert of_hidden.shape == (2, 5, levels * out)


def test_swiglu_against_a_plain_twin(tmp_path: Path) -> None:
    parts = published.networks("vjepa1", swiglu=True)
    sd, video = parts["target_encoder"], clip("vjepa1")
    out = published.run_blocks(sd, "blocks", DEPTH, HEADS, published.tokens_of(sd, video) + sd["pos_embed"])[-1]
    encoder = vjepa.load_encoder(published.save(tmp_path / "a.bin", "vjepa1", parts))
    torch.testing.assert_close(encoder(video), published.layer_norm(sd, "norm", out), **CLOSE)


# --- what is read off the shapes ---


@pytest.mark.parametrize(
    "name",
    [
        "module._orig_mod.blocks.0.attn.qkv.weight",
        "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.attn._checkpoint_wrapped_module.qkv.weight",
        "module.module.backbone.blocks.0._orig_mod.attn.qkv.weight",
        "blocks.0.attn.qkv.weight",
    ],
)
def test_wrappers_are_stripped_in_any_order_and_number(name: str) -> None:
    assert meta.unwrapped(name) == "blocks.0.attn.qkv.weight"
    assert meta.unwrapped("head.module.weight") == "head.module.weight"


@pytest.mark.parametrize("prefix", ["module.backbone.", "module.", "", "_orig_mod.module.", "module.module.backbone."])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_recognised_whatever_its_name_and_wrappers(format: str, prefix: str, tmp_path: Path) -> None:
    path = published.save(tmp_path / "vjepa1-ijepa.safetensors", format, published.networks(format), prefix)
    assert load.recognise(path) == format
    weights = load.read(path)
    model = weights.model
    assert (model.encoder.width, model.encoder.depth, model.encoder.heads, model.encoder.mlp_ratio) == (
        WIDTH,
        DEPTH,
        HEADS,
        1.5,
    )
    assert (model.predictor.width, model.predictor.depth, model.predictor.heads, model.predictor.mlp_ratio) == (
        NARROW,
        2,
        PREDICTOR_HEADS[format],
        2.0,
    )
    assert (model.patch_px, model.tubelet_frames) == (PATCH, 1 if format == "ijepa" else 2)
    assert model.predictor.mask_tokens == {"vjepa1": 2, "vjepa2": 10, "vjepa2.1": 8, "ijepa": 1}[format]
    assert (model.positions, model.rope) == {
        "vjepa1": ("sincos", "rotation"),
        "vjepa2": ("rope", "vjepa2"),
        "vjepa2.1": ("rope", "rotation"),
        "ijepa": ("sincos_2d", "rotation"),
    }[format]
    encoder, predictor = weights.build_encoder(), weights.build_predictor()
    for module in (encoder, predictor):
        assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())


def test_the_moving_average_is_the_default_and_the_trained_encoder_can_be_had(tmp_path: Path) -> None:
    parts = published.networks("vjepa2")
    path = published.save(tmp_path / "a.bin", "vjepa2", parts)
    for which, encoder in (
        ("target_encoder", vjepa.load_encoder(path)),
        ("encoder", vjepa.load_encoder(path, which="encoder")),
    ):
        assert torch.equal(encoder.norm.bias, parts[which]["norm.bias"])
    del parts["target_encoder"]
    published.save(path, "vjepa2", parts)
    with pytest.raises(UserError, match=r"has no target_encoder; take another with which= \(encoder\)"):
        vjepa.load_encoder(path)
    with pytest.raises(UserError, match="which='teacher': no such encoder; it is target_encoder or encoder"):
        vjepa.load_encoder(path, which="teacher")


def test_a_state_dict_alone_is_an_encoder(tmp_path: Path) -> None:
    encoder = published.networks("vjepa2")["encoder"]
    torch.save(encoder, tmp_path / "a.bin")
    assert torch.equal(vjepa.load_encoder(tmp_path / "a.bin").norm.bias, encoder["norm.bias"])
    with pytest.raises(UserError, match=r"a\.bin: has no predictor$"):
        vjepa.load_predictor(tmp_path / "a.bin")


def test_a_distilled_file_keeps_its_average_apart_from_the_teacher(tmp_path: Path) -> None:
    parts = published.networks("vjepa2.1", out=160)
    parts["ema_encoder"] = parts["encoder"]
    loaded = vjepa.load_encoder(published.save(tmp_path / "a.bin", "vjepa2.1", parts))
    assert torch.equal(loaded.video_mod_embed, parts["ema_encoder"]["video_mod_embed"])


def test_a_file_from_before_torch_1_6_loads(tmp_path: Path) -> None:
    torch.save(
        published.training_content(published.networks("vjepa2"), ""),
        tmp_path / "a.bin",
        _use_new_zipfile_serialization=False,
    )
    assert load.recognise(tmp_path / "a.bin") == "vjepa2"


@pytest.mark.parametrize("kind", ["sincos", "sincos_uniform"])
@pytest.mark.parametrize("grid", [(8, 2, 2), (2, 4, 4)])
def test_a_computed_table_tells_its_kind_and_grid(kind: str, grid: tuple[int, int, int], tmp_path: Path) -> None:
    parts = published.networks("vjepa1")
    for network, key, width in (("target_encoder", "pos_embed", WIDTH), ("predictor", "predictor_pos_embed", NARROW)):
        parts[network][key] = SinCos(kind, width, grid).table[None]
    model = load.read(published.save(tmp_path / "a.bin", "vjepa1", parts)).model
    assert (model.positions, model.sincos_grid) == (kind, grid)


def test_a_table_of_no_known_values_may_need_its_grid(tmp_path: Path) -> None:
    parts = published.networks("vjepa1")
    for network, key, width in (("target_encoder", "pos_embed", WIDTH), ("predictor", "predictor_pos_embed", NARROW)):
        parts[network][key] = torch.randn(1, 24, width)
    path = published.save(tmp_path / "a.bin", "vjepa1", parts)
    with pytest.raises(UserError, match="pos_embed has 24 places, not 8 time slots of a square; give position_grid="):
        vjepa.load_encoder(path)
    with pytest.raises(UserError, match=r"pos_embed has 24 places, a position_grid of \(2, 3, 5\) has 30"):
        vjepa.load_encoder(path, position_grid=(2, 3, 5))
    encoder = vjepa.load_encoder(path, position_grid=(2, 3, 4))
    table = encoder.positions(TokenGrid(2, 3, 4), torch.device("cpu"))
    assert torch.equal(table, parts["target_encoder"]["pos_embed"][0])


def test_heads_are_those_of_the_published_sizes_or_given(tmp_path: Path) -> None:
    widths = (192, 384, 768, 1024, 1280, 1408, 1664)
    found = {
        format: [meta._heads(width, None, format, tmp_path) for width in widths]
        for format in ("vjepa1", "vjepa2", "ijepa")
    }
    assert found == {
        "vjepa2": [3, 6, 12, 16, 16, 22, 26],
        "vjepa1": [3, 6, 12, 16, 16, 16, 16],
        "ijepa": [3, 6, 12, 16, 16, 16, 16],
    }
    path = published.save(tmp_path / "a.bin", "vjepa1", published.networks("vjepa1"))
    assert load.read(path, hints=Hints(heads=4, predictor_heads=6)).model.encoder.heads == 4
    with pytest.raises(UserError, match="3 attention heads do not divide the width 128; give another heads="):
        vjepa.load_encoder(path, heads=3)
    with pytest.raises(
        UserError, match="5 attention heads do not divide the predictor's width 72; give predictor_heads="
    ):
        vjepa.load_predictor(path, predictor_heads=5)
    with pytest.raises(UserError, match="a width of 100 is of no published size; give heads="):
        meta._heads(100, None, "vjepa1", path)
    path = published.save(tmp_path / "b.bin", "vjepa2", published.networks("vjepa2"))
    with pytest.raises(
        UserError, match="position_grid= is for tables of positions, and networks of format 'vjepa2' have none"
    ):
        vjepa.load_encoder(path, position_grid=(2, 4, 4))
    with pytest.raises(UserError, match="heads of 4 features cannot be rotated along 3 axes"):
        vjepa.load_encoder(path, heads=32)


# --- refusals ---


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("network", "key"), [("target_encoder", "blocks.1.attn.qkv.bias"), ("predictor", "predictor_blocks.0.norm2.weight")]
)
def test_a_missing_surplus_or_misshapen_key_is_named(network: str, key: str, format: str, tmp_path: Path) -> None:
    read = vjepa.load_predictor if network == "predictor" else vjepa.load_encoder
    path = tmp_path / "a.bin"
    parts = published.networks(format)
    tensor = parts[network].pop(key)
    with pytest.raises(UserError, match=f"{key} is missing"):
        read(published.save(path, format, parts))
    parts[network] |= {key: tensor, "extra.weight": tensor}
    with pytest.raises(UserError, match=r"extra\.weight is not part of this network"):
        read(published.save(path, format, parts))
    del parts[network]["extra.weight"]
    parts[network][key] = tensor[1:]
    with pytest.raises(UserError, match=rf"{key} has shape \[\d+\], this network needs \[\d+\]") as raised:
        read(published.save(path, format, parts))
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize("key", ["patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "norm.weight"])
def test_keys_that_settings_of_the_encoder_are_read_from_are_named_too(key: str, tmp_path: Path) -> None:
    parts = published.networks("vjepa1")
    del parts["target_encoder"][key]
    with pytest.raises(UserError, match=f"{re.escape(key)} is missing"):
        vjepa.load_encoder(published.save(tmp_path / "a.bin", "vjepa1", parts))


@pytest.mark.parametrize(
    "key",
    ["predictor_pos_embed", "predictor_embed.weight", "predictor_proj.weight", "predictor_blocks.0.mlp.fc1.weight"],
)
def test_keys_that_settings_of_the_predictor_are_read_from_are_named_too(key: str, tmp_path: Path) -> None:
    parts = published.networks("vjepa1")
    del parts["predictor"][key]
    with pytest.raises(UserError, match=f"{re.escape(key)} is missing"):
        vjepa.load_predictor(published.save(tmp_path / "a.bin", "vjepa1", parts), "vjepa1")
    vjepa.load_encoder(tmp_path / "a.bin", "vjepa1")  # what is wrong with the predictor does not matter to it


def test_a_misshapen_table_is_named(tmp_path: Path) -> None:
    parts = published.networks("vjepa1")
    parts["predictor"]["predictor_pos_embed"] = torch.randn(1, 31, NARROW)
    with pytest.raises(
        UserError, match=r"predictor_pos_embed has shape \[1, 31, 72\], this network needs \[1, 32, 72\]"
    ):
        vjepa.load_predictor(published.save(tmp_path / "a.bin", "vjepa1", parts))
    vjepa.load_encoder(tmp_path / "a.bin")
    parts["target_encoder"]["pos_embed"] = torch.randn(32, WIDTH)
    with pytest.raises(UserError, match=r"pos_embed has shape \[32, 128\], vjepa1 needs \[1, tokens, width\]"):
        vjepa.load_encoder(published.save(tmp_path / "a.bin", "vjepa1", parts))


def test_an_ambiguous_file_is_refused_until_its_format_is_named(tmp_path: Path) -> None:
    parts = published.networks("vjepa1")
    parts["predictor"]["mask_tokens.2"] = torch.zeros(1, 1, NARROW)
    path = published.save(tmp_path / "a.bin", "vjepa1", parts)
    with pytest.raises(
        UserError,
        match=r"could be vjepa1 or vjepa2 \(a 5-D patch kernel, no norms_block, pos_embed, 3 mask tokens\); name it "
        r"with format=",
    ):
        vjepa.load_encoder(path)
    assert load.read(path, "vjepa1").model.positions == "sincos"
    assert load.read(path, "vjepa2").model.positions == "rope"


@pytest.mark.parametrize("format", FORMATS)
def test_a_wrong_format_is_refused(format: str, tmp_path: Path) -> None:
    path = published.save(tmp_path / "a.bin", format, published.networks(format))
    may_be = {"vjepa1": {"vjepa1", "vjepa2"}}.get(format, {format})
    for other in set(FORMATS) - may_be:
        with pytest.raises(UserError, match=f"not a file of format '{other}': it has a [45]-D patch kernel"):
            vjepa.load_encoder(path, other)
    with pytest.raises(UserError, match="not a run folder, a checkpoint or a safetensors file of vjepa"):
        vjepa.load_encoder(path, "vjepa")
    with pytest.raises(
        UserError, match=r"no such format; the formats are vjepa, vjepa1, vjepa2, vjepa2\.1, ijepa, huggingface"
    ):
        vjepa.load_encoder(path, "jepa")
    with pytest.raises(UserError, match="a folder, while format 'ijepa' is a file"):
        vjepa.load_encoder(tmp_path, "ijepa")


class Trap:
    """Unpickling it opens a file for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["zip", "before torch 1.6", "plain pickle"])
def test_a_file_that_needs_code_is_refused_and_none_is_run(how: str, tmp_path: Path) -> None:
    path, sentinel = tmp_path / "a.bin", tmp_path / "run"
    content = {**published.training_content(published.networks("vjepa2"), ""), "args": Trap(sentinel)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(UserError, match=r"a\.bin: (needs the code of \S+ to load|not a training file)") as raised:
        vjepa.load_encoder(path)
    assert "\n" not in str(raised.value) and not sentinel.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"hello", "not a training file, which is a dict of networks written by torch.save"),
        (b"", "not a training file"),
        (b"\x80garbage", "not a training file"),
        (meta.OLD_START + b"garbage", r"a\.bin: (cannot be read|holds more)"),
        ({"classifiers": []}, r"has no encoder, target_encoder or ema_encoder \(it has classifiers\)"),
        ({"encoder": {"a": 3}}, "encoder: a is not a tensor but a int"),
        ({"encoder": [1]}, "encoder: not a state dict but a list"),
        ({"encoder": {"a": torch.ones(2)}}, r"patch_embed\.proj\.weight is missing"),
        (
            {"encoder": {"patch_embed.proj.weight": torch.ones(8, 3, 4)}},
            r"fits no known format \(a 3-D patch kernel, .*\); name it with format=",
        ),
        (
            {"encoder": {"patch_embed.proj.weight": torch.ones(8, 3, 2, 4, 5)}},
            r"has shape \[8, 3, 2, 4, 5\]; patches are square, of 3 colours",
        ),
        ({"encoder": {"a": torch.ones(2), "module.a": torch.ones(2)}}, r"module\.a is there twice"),
    ],
)
def test_other_files_are_refused_in_one_line(content: Any, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=problem) as raised:
        vjepa.load_encoder(path, which="encoder")
    assert "\n" not in str(raised.value)


def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = published.save(tmp_path / "a.bin", "vjepa2", published.networks("vjepa2"))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"a\.bin: ") as raised:
        vjepa.load_encoder(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_fp32_and_share_no_memory_with_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    parts = published.networks("vjepa1")
    parts["target_encoder"] = {key: tensor.to(dtype) for key, tensor in parts["target_encoder"].items()}
    path = published.save(tmp_path / "a.bin", "vjepa1", parts)
    encoder = vjepa.load_encoder(path)
    assert {tensor.dtype for tensor in encoder.state_dict().values()} == {torch.float32}
    assert all(tensor.device.type == "cpu" for tensor in [*encoder.parameters(), *encoder.buffers()])
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(encoder.norm.bias, parts["target_encoder"]["norm.bias"].float())
    table = parts["target_encoder"]["pos_embed"][0].float()
    assert torch.equal(encoder.positions(TokenGrid(*GRID), torch.device("cpu")), table)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    path = published.save(tmp_path / "a.bin", "vjepa2", published.networks("vjepa2"))
    before = torch.get_rng_state()
    vjepa.load_encoder(path)
    vjepa.load_predictor(path)
    assert torch.equal(torch.get_rng_state(), before)
