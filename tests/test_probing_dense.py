"""Dense probes: their scores against loops, what is cut of masks, and both modes on a small world."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.first_run.video_set import prepare
from data_prep.first_run.worlds.bricks import Bricks
from vjepa import config, probe
from vjepa.data.clip_index import ClipIndex
from vjepa.errors import UserError
from vjepa.interop import own
from vjepa.interop.weights import Weights
from vjepa.models.backbone import make_encoder
from vjepa.probing import propagation, scores_masks, things
from vjepa.probing.dense_features import cell_features, fineness, shifted
from vjepa.records import TokenGrid

RNG = np.random.default_rng(0)


@pytest.mark.fast
def test_mean_iou_is_that_of_a_loop() -> None:
    truth, predicted = RNG.integers(-1, 4, 500), RNG.integers(0, 5, 500)
    found = []
    for kind in range(5):
        is_kind, is_taken = truth == kind, (predicted == kind) & (truth >= 0)
        if is_kind.any():
            found.append((is_kind & is_taken).sum() / (is_kind | is_taken).sum())
    counts = scores_masks.confusion(truth, predicted, 5)
    assert float(scores_masks.mean_iou(counts)) == pytest.approx(np.mean(found))
    assert np.isnan(scores_masks.ious(counts)[4])  # no cell is of it
    share = scores_masks.share_of_confusions(np.stack([counts] * 9), None)
    assert share and share.low == pytest.approx(share.value) == pytest.approx(share.high)  # clips that are all alike


@pytest.mark.fast
def test_j_and_f_of_masks_whose_values_are_known() -> None:
    one, other, none = np.zeros((40, 40), bool), np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    one[10:20, 10:20] = True
    other[10:20, 15:25] = True
    assert scores_masks.jaccard(one, other) == pytest.approx(50 / 150)
    assert scores_masks.jaccard(none, none) == scores_masks.boundary(none, none) == scores_masks.boundary(one, one) == 1
    assert scores_masks.boundary(one, none) == scores_masks.boundary(none, one) == 0
    beside = np.roll(one, 1, axis=1)  # a boundary that is a pixel off is right, of 40 px
    assert scores_masks.boundary(one, beside) == 1 > scores_masks.jaccard(one, beside)
    assert scores_masks.boundary(one, other) == pytest.approx(boundary_by_loops(one, other))


def boundary_by_loops(truth: np.ndarray, predicted: np.ndarray, near: int = 1) -> float:
    """Score as the text of DAVIS says it, pixel by pixel."""

    def outline(mask: np.ndarray) -> set[tuple[int, int]]:
        height, width = mask.shape
        inside = {(y, x) for y in range(height) for x in range(width)}
        ways = [(0, 1), (1, 0), (1, 1)]
        return {
            (y, x)
            for y, x in inside
            if any((y + a, x + b) in inside and mask[y + a, x + b] != mask[y, x] for a, b in ways)
        }

    wanted, found = outline(truth), outline(predicted)

    def hit(some: set[tuple[int, int]], others: set[tuple[int, int]]) -> float:
        return float(np.mean([any((y - v) ** 2 + (x - u) ** 2 <= near**2 for v, u in others) for y, x in some]))

    precision, recall = hit(found, wanted), hit(wanted, found)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.fast
def test_labels_follow_features_that_tell_things_apart() -> None:
    """A thing of a feature of its own is found wherever it went, within the radius; no learning is needed."""
    features = torch.zeros(4, 8, 8, 3)
    features[..., 0] = 1
    for slot in range(4):
        features[slot, 2:4, slot : slot + 2] = torch.tensor([0.0, 1.0, 0.0])
    first = torch.zeros(8, 8, 2)
    first[..., 0] = 1
    first[2:4, 0:2] = torch.tensor([0.0, 1.0])
    found = propagation.propagate(features, first).argmax(-1)
    assert all((found[slot] == (features[slot, ..., 1] > 0)).all() for slot in range(4))
    pixels = propagation.to_pixels(torch.nn.functional.one_hot(found, 2).float(), 8, 16, 16)
    assert pixels.shape == (8, 16, 16) and (pixels[0] == pixels[1]).all() and pixels[0, 5, 1] == 1


@pytest.mark.fast
def test_cells_are_tokens_of_clips_that_are_shifted() -> None:
    """Each cell is the token of the clip moved so that the cell lies in the middle of the patch."""
    video, grid = torch.randint(0, 255, (2, 3, 4, 16, 24)).float(), TokenGrid(2, 2, 3)

    def read(clips: torch.Tensor) -> torch.Tensor:  # a token is the mean of its patch
        return clips.reshape(len(clips), 3, 2, 2, 2, 8, 3, 8).mean((3, 5, 7)).permute(0, 2, 3, 4, 1).reshape(2, 12, 3)

    cells = cell_features(read, video, grid, 2)
    assert cells.shape == (2, 2, 4, 6, 3)
    assert torch.allclose(cells[:, 0, 1, 2], video[:, :, :2, 2:10, 6:14].mean((2, 3, 4)))  # of rows 4..8, columns 8..12
    assert (cell_features(read, video, grid, 1).reshape(2, 12, 3) == read(video)).all()
    assert (shifted(video, 0, 30)[..., 0] == video[..., -1]).all()
    assert [fineness(TokenGrid(1, side, side), 16) for side in (4, 8, 14, 32, 64)] == [4, 4, 2, 1, 1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "bricks" / "index.parquet"
    prepare(path, replace(Bricks(), num_films=1, film_frames=24, train_clips=6, selection_clips=3, val_clips=4), False)
    return path


def test_masks_are_cut_as_clips_are(world: Path) -> None:
    index = ClipIndex.open(world)
    row = int(index.select({"split": "val"})[0])
    data = config.Data(train=config.Source(index=str(world)), num_frames=4, clip_fps=4, crop_px=32)
    whole = data.model_copy(update={"num_frames": 8, "clip_fps": 8.0, "crop_px": 64})
    full, cut = (things.of_clip(index, row, one, "things") for one in (whole, data))
    assert full.shape == (8, 64, 64) and cut.shape == (4, 32, 32) and (cut == full[1::2, ::2, ::2]).all()
    share = things.shares(full, TokenGrid(2, 8, 8), 2, 4)
    assert share.shape == (2, 16, 16, 4) and np.allclose(share.sum(-1), 1)
    assert share[1, 3, 5, 1] == (full[4:, 12:16, 20:24] == 1).mean()
    found = things.labels(np.array([[0.2, 0.7, 0.1], [0.7, 0.1, 0.2], [0.8, 0.1, 0.1], [0.0, 0.0, 0.0]]))
    assert found.tolist() == [1, 2, 0, -1]
    padded = things.of_clip(index, row, whole.model_copy(update={"fit": "pad", "crop_px": (64, 96)}), "things")
    assert (padded[:, :, :16] == things.UNKNOWN).all() and (padded[:, :, 16:80] == full).all()


def test_folders_of_masks_are_read_and_bad_ones_are_named(world: Path, tmp_path: Path) -> None:
    index = ClipIndex.open(world)
    row = index.row(int(index.select({"split": "val"})[0]))
    for number in range(row.num_frames):
        Image.fromarray(np.full((64, 64), number, np.uint8)).save(tmp_path / f"{number:05d}.png")
    assert things._read(tmp_path, row)[:, 0, 0].tolist() == list(range(row.num_frames))
    (tmp_path / "00000.png").unlink()
    with pytest.raises(UserError, match=f"has no mask for each of the {row.num_frames} frames"):
        things._read(tmp_path, row)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "00000.png")
    with pytest.raises(UserError, match=r"00000.png: a mask is a PNG of one channel"):
        things._read(tmp_path, row)
    with pytest.raises(UserError, match=r"none.png: no mask can be read there"):
        things.read_names(tmp_path / "none.png")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = config.Model(patch_px=8, encoder=config.EncoderSettings(width=24, depth=2, heads=2), tubelet_frames=2)
    own.write(Weights("made", model, make_encoder(model).state_dict()), tmp_path / "made.safetensors")
    return tmp_path / "made.safetensors"


@pytest.mark.parametrize("mode", ["dense", "propagate"])
def test_the_command_measures_beside_its_baselines(
    world: Path, encoder: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--model_path",
        str(encoder),
        "--dataset",
        str(world),
        "--eval_mode",
        mode,
        "--out",
        str(tmp_path / "p.json"),
    ]
    words += ["--num_frames", "8", "--crop_px", "64", "--workers", "0", "--device", "cpu", "--precision", "fp32"]
    for option, remedy in (("--shots=3", "--shots: is not for"), ("--cells=3", "--cells 3: a token of 8 px")):
        with pytest.raises(UserError, match=remedy):
            probe.main([*words, option])
    for _ in range(2):  # a result replaces its own
        assert probe.main(words) == 0
    told = capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "p.json").read_text())
    others = {"chance"} if mode == "dense" else {"standing still"}
    assert set(entry["kinds"]) == {"trained", "random_init", "pixels"} | others
    assert entry["names"] == ["ground", "brick", "bar", "ball"] and "random init" in told
    for kind in entry["kinds"].values():
        share = kind["mIoU" if mode == "dense" else "J&F"]
        assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1
    if mode == "dense":  # the ground alone is the answer of chance
        assert all(iou in (0.0, None) for iou in entry["kinds"]["chance"]["each"][1:])
        assert entry["kinds"]["pixels"]["mIoU"]["value"] >= entry["kinds"]["chance"]["mIoU"]["value"]
