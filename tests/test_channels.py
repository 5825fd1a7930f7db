"""Clips of any channels: from arrays, pages, 16 bits and pairs of films to a trained, probed, exported encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import level, scanned
from PIL import Image
from safetensors.torch import load_file

from data_prep import describe
from data_prep.copying.shard import make_shards
from data_prep.scanning.build import build_index
from data_prep.scanning.options import ScanOptions
from vjepa import export, extract, load_encoder, probe
from vjepa.config import Channels, Data
from vjepa.config import load as load_config
from vjepa.data.augment import Crop, crop_resize, normalise
from vjepa.data.channels import joined
from vjepa.data.clip_index import ClipIndex
from vjepa.data.loader import eval_loader
from vjepa.data.media import DecodeError
from vjepa.data.stacks import open_stack
from vjepa.errors import UserError
from vjepa.models.state import spread_colours
from vjepa.train import main as train

BANDS, SIDE = 12, 16


def named(num: int, bits: int = 8) -> Channels:
    names = [f"c{i}" for i in range(num)]
    return Channels.model_validate_json(
        json.dumps({"names": names, "mean": [0.25] * num, "std": [0.5] * num, "bits": bits})
    )


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures of 12 bands of 16 bits, of which the fourth or the tenth is bright, as arrays and as TIFFs."""
    root, rng = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    lines = {"npy": ["file,label,split"], "tif": ["file,label,split"]}
    for kind in lines:
        (root / kind).mkdir()
    for number in range(32):
        stack = rng.integers(0, 2000, (BANDS, SIDE, SIDE)).astype(np.uint16)
        stack[(3, 9)[number % 2]] += 3000
        np.save(root / "npy" / f"{number:02}.npy", stack)
        first, *more = [Image.fromarray(band) for band in stack]
        first.save(root / "tif" / f"{number:02}.tif", save_all=True, append_images=more)
        for kind, rows in lines.items():
            rows.append(f"{number:02}.{kind},band{number % 2},{'train' if number < 20 else 'val'}")
    for kind, options in {"npy": ScanOptions(axes="chw"), "tif": ScanOptions(pages="channels")}.items():
        (root / f"{kind}.csv").write_text("\n".join(lines[kind]))
        out = root / f"{kind}.parquet"
        build_index(root / kind, out, root / f"{kind}.csv", 1, progress=False, options=options)
    return root


def test_twelve_bands_are_trained_probed_kept_and_exported(
    bands: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert describe.main([str(bands / "npy.parquet"), "--channels"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    stacks = np.stack([np.load(path) for path in sorted((bands / "npy").iterdir())]) / 65535
    assert tree["data"]["channels"]["bits"] == 16
    assert tree["data"]["channels"]["mean"] == pytest.approx(stacks.mean((0, 2, 3)), abs=1e-5)
    assert tree["data"]["channels"]["std"] == pytest.approx(stacks.std((0, 2, 3)), abs=1e-5)

    index = str(bands / "npy.parquet")
    tree["data"] |= {"train": {"index": index, "where": {"split": "train"}}, "workers": 1}
    tree["data"] |= {"val": {"index": index, "where": {"split": "val"}}, "num_frames": 1, "crop_px": SIDE}
    tree["data"]["global_batch"] = 4
    shape = {"width": 24, "depth": 1, "heads": 2}
    tree["model"] = {"patch_px": 8, "encoder": shape, "predictor": shape}
    tree |= {"optim": {"total_steps": 4}, "run": {"dir": str(tmp_path / "run"), "device": "cpu", "precision": "fp32"}}
    (tmp_path / "bands.yaml").write_text(yaml.safe_dump(tree))
    assert train([str(tmp_path / "bands.yaml")]) == 0
    assert {path.name for path in (tmp_path / "run" / "pictures").iterdir()} >= {"mask.png", "features_pca.png"}

    encoder, given = load_encoder(tmp_path / "run"), ["--model_path", str(tmp_path / "run"), "--dataset"]
    assert encoder.model.channels == BANDS and encoder.patch_embed.proj.weight.shape[1] == BANDS
    words = ["--eval_mode", "linear_probe", "--no-cache", "--baselines", "random_init,pixels"]
    assert probe.main([*given, str(bands / "tif.parquet"), *words]) == 0
    (result,) = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert result["accuracy"] >= 0.9 and result["baselines"]["pixels"]["top1"]["value"] >= 0.9

    for kind in ("npy", "tif"):  # the same numbers, however they are stored
        assert (
            extract.main([*given, str(bands / f"{kind}.parquet"), "--out", str(tmp_path / f"{kind}.safetensors")]) == 0
        )
    arrays, pages = (load_file(tmp_path / f"{kind}.safetensors")["features"] for kind in ("npy", "tif"))
    assert torch.equal(arrays, pages)
    video = torch.from_numpy(np.load(bands / "npy" / "00.npy"))[None, :, None]
    channels = load_config(str(tmp_path / "bands.yaml")).data.channels
    with torch.inference_mode():
        expected = encoder(normalise(video, torch.float32, channels)).mean(1)
    torch.testing.assert_close(arrays[:1], expected, atol=1e-4, rtol=1e-4)

    alone, size = str(tmp_path / "alone.safetensors"), ["--num-frames", "1", "--crop-px", str(SIDE)]
    assert export.main([str(tmp_path / "run"), "--to", "safetensors", "--out", alone]) == 0
    assert export.main([str(tmp_path / "run"), "--to", "onnx", "--out", str(tmp_path / "bands.onnx"), *size]) == 0
    again = ["--model_path", alone, "--dataset", index, "--num-frames", "1", "--crop-px", str(SIDE)]
    assert extract.main([*again, "--out", str(tmp_path / "alone_features.safetensors")]) == 0
    assert torch.equal(load_file(tmp_path / "alone_features.safetensors")["features"], arrays)


def test_what_does_not_fit_is_one_line_before_the_first_step(bands: Path, tmp_path: Path) -> None:
    words = [f"data.train={bands / 'npy.parquet'}", f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(
        UserError, match=r"32 of 32 clips do not fit data\.channels, which names 3 of 8 bits .* has 12 of 16"
    ):
        train(["small", *words])
    with pytest.raises(UserError, match=r"data\.channels\.mean: 3 numbers for 2 channels; .*--channels measures them"):
        train(["small", *words, "data.channels.names=[a, b]"])
    with pytest.raises(UserError, match=r"model\.channels: 5, while data\.channels names 3"):
        train(["small", *words, "model.channels=5"])
    assert not (tmp_path / "run").exists()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((5, 7), "hw"), ((5, 7, 4), "hwc"), ((4, 5, 7), "chw"), ((3, 4, 5, 7), "tchw"), ((5, 7, 3), "hwt")],
)
def test_axes_say_what_is_what(tmp_path: Path, shape: tuple[int, ...], axes: str) -> None:
    stack = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    np.save(tmp_path / "a.npy", stack)
    np.savez(tmp_path / "a.npz", stack)
    sizes = dict(zip(axes, shape, strict=True))
    for name in ("a.npy", "a.npz"):
        opened = open_stack(str(tmp_path / name), axes)
        found = opened.frames(np.arange(len(opened)))
        assert found.shape == tuple(sizes.get(axis, 1) for axis in "thwc")
        for place in np.ndindex(found.shape):
            at = dict(zip("thwc", place, strict=True))
            assert found[place] == stack[tuple(at[axis] for axis in axes)]


@pytest.mark.fast
def test_other_values_have_a_plain_reason(tmp_path: Path) -> None:
    np.save(tmp_path / "float.npy", np.zeros((4, 4), np.float32))
    np.savez(tmp_path / "two.npz", a=np.zeros((4, 4), np.uint8), b=np.zeros((4, 4), np.uint8))
    np.save(tmp_path / "five.npy", np.zeros((1, 1, 4, 4, 2), np.uint8))
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY rubbish")
    reasons = {name: scanned(tmp_path / name)["status"] for name in ("float.npy", "two.npz", "five.npy", "broken.npy")}
    assert "values of float32, not uint8 or uint16" in reasons["float.npy"] and "2 arrays (a, b)" in reasons["two.npz"]
    assert "5 axes; name them with --axes" in reasons["five.npy"] and reasons["broken.npy"] != "ok"


@pytest.mark.fast
def test_a_16_bit_picture_is_a_stack_of_one_channel(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    row = scanned(tmp_path / "deep.png")
    facts = [row[name] for name in ("status", "decoder", "channels", "bits", "axes", "width", "height")]
    assert facts == ["ok", "stack", 1, 16, "hw", 30, 20]
    assert np.array_equal(open_stack(str(tmp_path / "deep.png"), "hw").frames([0])[0, ..., 0], values)


@pytest.mark.fast
def test_colours_become_grey_and_8_bits_16() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    assert joined([frames], Channels()) is frames
    grey = joined([frames], named(1))
    twin = np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in frames])[..., None]
    assert grey.dtype == np.uint8 and np.abs(grey.astype(int) - twin).max() <= 1
    assert np.array_equal(joined([grey], Channels()), np.repeat(grey, 3, axis=-1))
    deep = joined([frames, grey], named(4, bits=16))
    assert deep.dtype == np.uint16 and np.array_equal(deep, 257 * np.concatenate([frames, grey], -1).astype(np.uint16))
    with pytest.raises(DecodeError, match="has 3 channels, 12 of"):
        joined([frames], named(12))
    with pytest.raises(DecodeError, match=r"has 16 bits a channel; set data\.channels\.bits: 16"):
        joined([deep[..., :3]], Channels())


@pytest.mark.fast
def test_16_bits_are_resized_and_normalised_as_fractions_of_full_scale() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    deep, crop, channels = frames.astype(np.uint16) * 257, Crop((0, 0, 40, 60), (12, 18)), named(3, bits=16)
    clip, shallow = crop_resize(deep, crop, (18, 18), channels), crop_resize(frames, crop, (18, 18), named(3))
    assert clip.dtype == torch.uint16 and (clip.float() / 257 - shallow.float()).abs().max() <= 1
    assert set(clip[:, :, 0].flatten().tolist()) == {round(0.25 * 65535)}
    plain = (torch.from_numpy(deep.astype(np.float64)).permute(3, 0, 1, 2) / 65535 - 0.25) / 0.5
    found = normalise(torch.from_numpy(deep).permute(3, 0, 1, 2)[None], torch.float32, channels)[0]
    torch.testing.assert_close(found, plain.float(), atol=1e-5, rtol=1e-5)


def test_a_companion_of_the_same_clock_is_the_fourth_channel(make_video, tmp_path: Path) -> None:
    make_video("films/a/rgb.mp4", 12, fps=8, size=(64, 48))
    make_video("films/a/depth.mp4", 6, fps=4, size=(32, 24), mark=True)
    (tmp_path / "labels.csv").write_text("file,companion,split\na/rgb.mp4,depth.mp4,train\na/depth.mp4,,\n")
    build_index(tmp_path / "films", tmp_path / "x.parquet", tmp_path / "labels.csv", 1, progress=False)
    index = ClipIndex.open(tmp_path / "x.parquet")
    tree = {"train": "x", "num_frames": 4, "frame_step": 1, "crop_px": (48, 64), "channels": named(4)}
    data, rows = Data.model_validate(tree), index.select({"split": "train"})
    for workers in (0, 1):
        (batch,) = eval_loader(index, rows, data, 1, workers)
        assert not batch.failures and batch.video.shape == (1, 4, 4, 48, 64)
        depth = batch.video[0, 3].float()
        assert (depth[:, :20, :28] > 240).all() and (depth[:, 30:, 40:] < 240).all()
        assert (batch.video[0, :3].float().flatten(2).std(-1) < 2).all()  # the film is grey all over
    # the frame of the depth that is on screen with each of the film: half as many a second
    levels = depth[:, 40:, 50:].mean((1, 2))
    assert len({round(float(level)) for level in levels}) in (2, 3)

    (tmp_path / "labels.csv").write_text("file,companion,split\na/rgb.mp4,none.mp4,train\na/depth.mp4,,\n")
    build_index(tmp_path / "films", tmp_path / "y.parquet", tmp_path / "labels.csv", 1, progress=False)
    with pytest.raises(UserError, match=r"names the companion none\.mp4, and no usable row"):
        ClipIndex.open(tmp_path / "y.parquet").row(int(rows[0]))


@pytest.mark.parametrize("made", ["index", "shards"])
def test_parts_of_a_film_go_with_those_of_its_companion(make_video, tmp_path: Path, made: str) -> None:
    """Windows of both are rows; each has the frames of its own time. In shards their files have no names."""
    make_video("films/a/rgb.mp4", 16, fps=8, size=(64, 48))
    make_video("films/a/depth.mp4", 8, fps=4, size=(32, 24))
    (tmp_path / "labels.csv").write_text("file,companion,split\na/rgb.mp4,depth.mp4,train\na/depth.mp4,,\n")
    index = build_index(
        tmp_path / "films", tmp_path / "x.parquet", tmp_path / "labels.csv", 1, False, options=ScanOptions(window_s=0.5)
    )
    if made == "shards":
        index = make_shards(index, tmp_path / "out", where={"split": ["train"]}, progress=False)
    films = [index.row(int(i)) for i in index.select({"split": "train"})]
    assert [(film.start_s, film.companion and film.companion.start_s) for film in films] == [
        (start_s, start_s) for start_s in (0.0, 0.5, 1.0, 1.5)
    ]
    data = Data.model_validate({"train": "x", "num_frames": 4, "frame_step": 1, "crop_px": 48, "channels": named(4)})
    batches = eval_loader(index, np.array([film.clip_id for film in films]), data, 1, 0)
    for part, batch in enumerate(batches):
        shown = batch.video[0, 3].float().mean((1, 2))  # two frames of the film see one of the companion
        assert [round(float(one)) for one in shown] == pytest.approx(
            [level(2 * part + number // 2) for number in range(4)], abs=3
        )


@pytest.mark.fast
def test_channels_start_from_colours_with_the_mean_of_their_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    kernel, rest = torch.randn(8, 3, 2, 4, 4), torch.randn(8)
    stored = {"proj.weight": kernel.clone(), "proj.bias": rest}
    spread_colours(stored, {"proj.weight": torch.empty(8, 5, 2, 4, 4), "proj.bias": rest}, "run")
    assert "run: 5 channels start with the mean of the kernels of 3 colours" in capsys.readouterr().err
    grey = torch.randn(1, 1, 2, 4, 4)
    torch.testing.assert_close((stored["proj.weight"] * grey).sum((1, 2, 3, 4)), (kernel * grey).sum((1, 2, 3, 4)))
    spread_colours(stored, {"proj.weight": torch.empty(8, 5, 2, 4, 4)}, "run")
    assert not capsys.readouterr().err
