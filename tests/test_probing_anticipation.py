"""A probe that looks ahead: what it sees ends before the action, and a predictor's roll-out tells what the motion leads
to.
"""

import json
from dataclasses import replace
from functools import partial

import av
import numpy as np
import pytest
import torch
from conftest import scanned
from einops import rearrange
from safetensors.torch import save_file
from torch import nn

from data_prep.listing.entry import Entry
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scan import scan
from vjepa import config, load_encoder, load_predictor, probe
from vjepa.data.clip_index import ClipIndex, IndexRow, write_index
from vjepa.data.decode import READERS
from vjepa.data.frame_times import observed_frames
from vjepa.data.media import DecodeError
from vjepa.data.plan_rows import Passes, Views
from vjepa.errors import UserError
from vjepa.interop import own
from vjepa.interop.weights import Weights
from vjepa.jepa import build
from vjepa.models.encoder import VisionTransformer, patchify
from vjepa.models.predictor import make_predictor
from vjepa.probing import extractors
from vjepa.probing.anticipation import RollOut, ahead
from vjepa.probing.comparison import ROLLOUT, TRAINED, Looks, compare
from vjepa.probing.datasets import ClipSource, Request, open_dataset
from vjepa.probing.protocol import ProbeMethod
from vjepa.probing.store import Store
from vjepa.probing.sweep import Grid
from vjepa.records import TokenGrid

FPS, SEEN, GAP, AFTER, PX = (
    8,
    8,
    4,
    2,
    48,
)  # frames that are seen, then those until the action, then those of the action
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
NUM = 120
CPU = torch.device("cpu")


def episode(side, rng):
    """uint8 [T, PX, PX]: a square moves towards a side; as soon as it is no longer seen, that half lights up.

    Where it is on average while it is seen says nothing of the side, and no single frame does.
    """
    middle, speed, step = rng.uniform(14, PX - 14, 2), rng.uniform(1, 2), np.array(SIDES[side])
    frames = np.zeros((SEEN + GAP + AFTER, PX, PX), np.uint8)
    for i in range(SEEN):
        x, y = np.round(middle + step * speed * (i - (SEEN - 1) / 2)).astype(int)
        frames[i, y - 3 : y + 3, x - 3 : x + 3] = 255
    frames[SEEN:] = _half(step)
    return frames


def _half(step):
    lit = np.indices((PX, PX))[::-1] - (PX - 1) / 2
    return np.where((lit * step[:, None, None]).sum(0) > 0, 255, 0)


def write_video(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = PX, PX, "yuv420p"
        for picture in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.repeat(picture[..., None], 3, 2), format="rgb24"))
            )
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def actions(tmp_path_factory):
    """An index of NUM actions, ten in each of its videos, in three splits; row n ends where action n starts."""
    folder, rng = tmp_path_factory.mktemp("actions"), np.random.default_rng(0)
    rows, sides = [], rng.permutation(np.resize(list(SIDES), NUM))
    for number, together in enumerate(sides.reshape(-1, 10)):
        path = folder / f"{number:02}.mp4"
        write_video(path, np.concatenate([episode(side, rng) for side in together]))
        video = scanned(path) | {
            "uri": path.name,
            "split": "train" if number < 7 else "selection" if number < 9 else "val",
        }
        for place, side in enumerate(together):
            first = place * (SEEN + GAP + AFTER)
            part = {
                "first_frame": first,
                "num_frames": SEEN + GAP,
                "start_s": first / FPS,
                "end_s": (first + SEEN + GAP) / FPS,
            }
            rows.append(video | part | {"keyframes_s": None, "label": side, "verb": f"v{place % 7}"})
    write_index(folder / "actions.parquet", rows)
    write_index(folder / "few.parquet", rows[::3])
    return folder / "actions.parquet"


def data_of(index, **given):
    tree = {"num_frames": SEEN, "clip_fps": FPS, "crop_px": PX, "workers": 0, **given}
    return config.Data(train=config.Source(index=str(index)), **tree)


# ---- which frames are seen


def row_of(num_frames=16, fps=8.0, start_s=1.0, times_s=None):
    end_s = start_s + num_frames / fps
    return IndexRow(0, "x", None, None, 0, start_s, end_s, num_frames, fps, times_s, 8, 8, 0, 1.0, "av")


@pytest.mark.fast
def test_the_clip_ends_before_the_action():
    data = data_of("x", num_frames=4)
    assert observed_frames(row_of(), data, 0).tolist() == [12, 13, 14, 15]
    assert observed_frames(row_of(), data, 0.5).tolist() == [8, 9, 10, 11]
    assert observed_frames(row_of(), data, 0.51).tolist() == [7, 8, 9, 10]
    assert observed_frames(row_of(), data_of("x", num_frames=4, clip_fps=4), 0.5).tolist() == [4, 6, 8, 10]
    assert observed_frames(row_of(), data_of("x", num_frames=4, clip_fps=None, duration_s=1.0), 0.5).tolist() == [
        4,
        6,
        8,
        10,
    ]
    assert observed_frames(row_of(), data_of("x", num_frames=4, clip_fps=None, frame_step=2), 0.5).tolist() == [
        5,
        7,
        9,
        11,
    ]
    assert observed_frames(row_of(), data_of("x", num_frames=4, clip_fps=None), 0.5).tolist() == [1, 4, 7, 10]
    assert observed_frames(row_of(), data, 1.75).tolist() == [0, 0, 0, 1]  # it reaches back beyond the row
    with pytest.raises(DecodeError, match="lasts 2 s, so that nothing is seen 2 s before its end"):
        observed_frames(row_of(), data, 2)


@pytest.mark.fast
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"clip_fps": 3.0},
        {"clip_fps": None},
        {"clip_fps": None, "frame_step": 3},
        {"clip_fps": None, "duration_s": 0.7},
    ],
)
def test_no_frame_is_seen_that_comes_later_whatever_the_rate(given):
    rng, data = np.random.default_rng(0), data_of("x", num_frames=6, **given)
    for _ in range(200):
        times = 3 + np.concatenate([[0], np.cumsum(rng.uniform(0.001, 0.3, 30))])
        row = replace(row_of(), start_s=times[0], end_s=times[-1] + 0.1, num_frames=31, times_s=times)
        anticipation_s = rng.uniform(0, row.end_s - 3.01)
        ids = observed_frames(row, data, anticipation_s)
        assert len(ids) == 6 and (np.diff(ids) >= 0).all() and ids.min() >= 0
        assert times[ids].max() < row.end_s - anticipation_s


@pytest.mark.parametrize("looks", [Views(), Views(num_crops=2), Passes(3)])
def test_what_comes_after_the_cut_changes_no_bit(tmp_path, monkeypatch, looks):
    """The same rows over other pixels from frame 16 on, which is on screen 1 s before the first action."""
    frames = np.random.default_rng(1).integers(0, 255, (40, PX, PX, 3)).astype(np.uint8)
    write_video(tmp_path / "a.mp4", frames[..., 0])
    entries = [
        Entry(str(tmp_path / "a.mp4"), "a.mp4", start_s=start_s, end_s=end_s)
        for start_s, end_s in ((None, 3.0), (1.0, 3.5), (0.0, 0.25))
    ]
    write_index(
        tmp_path / "i.parquet", [row | {"uri": "a.mp4"} for entry in entries for row in scan(entry, ScanOptions())]
    )  # as of a manifest
    source = ClipSource(ClipIndex.open(tmp_path / "i.parquet"), data_of("i", num_frames=4), 1.0)
    asked = []

    def read(pixels, row, ids, size):
        asked.append((row.clip_id, row.first_frame + int(ids.max())))
        return pixels[row.first_frame + ids]

    other, batches = frames.copy(), []
    other[16:] = 255 - other[16:]
    for pixels in (frames, other):
        for decoder in list(READERS):
            monkeypatch.setitem(READERS, decoder, partial(read, pixels))
        batches += source.loader(np.arange(3), looks, 3)
    first, second = ([batch.video[batch.clip_ids == action] for batch in batches] for action in (0, 1))
    assert len(first[0]) and torch.equal(*first) and not torch.equal(*second)
    assert set(asked) == {(0, 15), (1, 19)}
    assert [clip_id for clip_id, _ in batches[0].failures] == [2] and "nothing is seen 1 s before its end" in batches[
        0
    ].failures[0][1]


# ---- what a roll-out tells


class Sums(nn.Module):
    """An encoder of one feature per token for light, light times x and light times y: linear in the pixels."""

    def __init__(self):
        super().__init__()
        self.model = config.Model(
            patch_px=8, tubelet_frames=2, encoder=config.EncoderSettings(width=18, depth=1, heads=1)
        )
        self.width, self.depth = 18, 1

    def encode(self, patches, ids=None):
        grid = patches.grid
        light = rearrange(patches.pixels, "b n (c p h w) -> b n c p h w", c=3, p=2, h=8)[:, :, 0].mean(2)
        light = light - light.amin((1, 2, 3), keepdim=True)  # black after normalisation
        cell = torch.arange(patches.pixels.shape[1])
        x, y = ((place[:, None] * 8 + torch.arange(8)) / PX - 0.5 for place in (cell % grid.w, cell // grid.w % grid.h))
        sums = [light.sum((2, 3)), (light.sum(2) * x).sum(2), (light.sum(3) * y).sum(2)]
        return nn.functional.pad(torch.stack(sums, -1), (0, 15)) / 16

    def forward(self, video):
        return self.encode(patchify(video, self.model))


class Onward(nn.Module):
    """A predictor that moves the light on as it has moved, exactly: the last place of all tokens of a future slot."""

    def __init__(self, model):
        super().__init__()
        self.model, self.predictor_proj, self.mask_tokens = model, nn.Linear(1, 18), []

    def forward(self, context, context_ids, target_ids, grid, mask_index):
        slots = rearrange(context, "b (t n) d -> b t n d", n=grid.cells).sum(2)
        places = slots[..., 1:3] / slots[..., :1]
        pace = (places[:, -1] - places[:, 0]) / (places.shape[1] - 1)
        steps = target_ids // grid.cells - (places.shape[1] - 1)
        moved = (places[:, -1:] + pace[:, None] * steps[..., None]).clamp(-0.5, 0.5)
        return nn.functional.pad(moved, (1, 15))


def measured(index, tmp_path, labels=None, method=None, anticipation_s=GAP / FPS):
    data = data_of(index)
    dataset = ahead(open_dataset([str(index)], data, Request()), anticipation_s)
    dataset = replace(dataset, labels={"label": labels}) if labels else dataset
    encoder = Sums()
    roll_out = RollOut.of(encoder, Onward(encoder.model), data, anticipation_s, trained_frames=2 * SEEN)
    reading = extractors.Readout((0,), ("pooled", "tokens"), CPU, torch.float32)
    made = {
        TRAINED: extractors.encoder_extractor(encoder, "sums", reading),
        ROLLOUT: roll_out.extractor(reading),
    }
    return compare(
        dataset,
        made,
        {"label": method or ProbeMethod("linear")},
        Looks(Views(), Views()),
        Store(tmp_path, say=lambda line: None),
        32,
    )["label"]


def test_the_roll_out_tells_the_side_and_the_frames_alone_do_not(actions, tmp_path):
    found = measured(actions, tmp_path)
    assert found.num_clips == {"train": 70, "selection": 20, "val": 30} and not found.failures
    assert found.kinds[ROLLOUT].scores.top1.value > 0.9
    assert found.kinds[TRAINED].scores.top1.value < 0.25 + 0.25  # 3 standard deviations of 30 clips
    shuffled = np.random.default_rng(3).permutation(ClipIndex.open(actions).column("label")).tolist()
    assert measured(actions, tmp_path, shuffled).kinds[ROLLOUT].scores.top1.value < 0.25 + 0.25
    with_a_leak = measured(
        actions, tmp_path, anticipation_s=0.0
    )  # the half that lights up before the row ends: what a probe must not see
    assert with_a_leak.kinds[TRAINED].scores.top1.value > 0.9


def test_attentive_probes_read_predicted_tokens(actions, tmp_path):
    found = measured(
        actions,
        tmp_path,
        method=ProbeMethod("attentive", attention_heads=2, grid=Grid((1e-2,), (0.01,), max_steps=320)),
    )
    assert found.kinds[ROLLOUT].scores.top1.value > found.kinds[TRAINED].scores.top1.value + 0.2


# ---- real encoders and predictors


def networks(**given):
    """An encoder and a predictor with weights of a seed, untrained."""
    tree = {
        "patch_px": 8,
        "encoder": {"width": 24, "depth": 2, "heads": 2},
        "predictor": {"width": 24, "depth": 2, "heads": 2, "mask_tokens": 1},
        **given,
    }
    model = config.Model.model_validate(tree)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, predictor = VisionTransformer(model).eval(), make_predictor(model, 1, False).eval()
    return encoder.requires_grad_(False), predictor.requires_grad_(False)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, "forward"),
        ({"rope": "vjepa2"}, "forward"),
        ({"positions": "sincos"}, "forward"),
        ({"predictor": {"kind": "mlp", "width": 24, "heads": 2, "depth": 1}}, "forward"),
        ({"positions": "sincos", "sincos_grid": (8, 2, 2)}, "longer"),
        ({"levels": 4, "level_norms": True, "encoder": {"width": 24, "depth": 4, "heads": 2}}, "forward"),
    ],
)
def test_a_clip_is_the_start_of_a_longer_one(given, seen):
    """Tokens are those of the encoder alone; the roll-out is what the predictor says of a longer clip whose end is
    hidden.
    """
    encoder, predictor = networks(**given)
    roll_out = RollOut.of(encoder, predictor, data_of("x", num_frames=8, crop_px=16), 0.6, trained_frames=16)
    assert (roll_out.num_slots, roll_out.trained_slots) == (3, 8)  # slots of 0.25 s: from 0, 0.25 and 0.5 s on
    video = torch.randn(2, 3, 16, 16, 16)
    last = len(encoder.blocks) - 1
    found, predicted = roll_out.read(video[:, :, :8], (last,))
    assert (
        torch.equal(found, encoder(video[:, :, :8])) and found.shape == (2, 16, 24) and predicted.shape == (2, 12, 24)
    )
    context_ids, target_ids = torch.arange(16).expand(2, -1), torch.arange(16, 28).expand(2, -1)
    frames = 16 if seen == "longer" else 14
    context = encoder.encode(patchify(video[:, :, :frames], encoder.model), context_ids)
    twin = predictor(context, context_ids, target_ids, TokenGrid(frames // 2, 2, 2))[..., -24:]
    assert torch.equal(predicted, twin)
    assert [level.shape[1] for level in roll_out.read(video[:, :, :8], (0, last))] == [16, 16, 12]


@pytest.mark.fast
def test_features_depend_on_both_networks_and_on_how_far():
    encoder, predictor = networks()
    roll_out = RollOut.of(encoder, predictor, data_of("x", num_frames=8), 1.0, 8)
    other = roll_out.with_untrained_predictor()
    farther = RollOut.of(encoder, predictor, data_of("x", num_frames=8), 1.5, 8)
    reading = extractors.Readout((1,), ("pooled",), CPU, torch.float32)
    facts = [json.dumps(dict(one.extractor(reading).facts)) for one in (roll_out, other, farther, roll_out)]
    assert len(set(facts)) == 3 and facts[0] == facts[3]
    again = json.dumps(dict(other.with_untrained_predictor().extractor(reading).facts))
    assert again == facts[1]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "clips", "message"),
    [
        (
            {"positions": "sincos"},
            {"num_frames": 8},
            "needs 5 of the 4 time slots that the predictor knows; give a lower --clip_fps",
        ),
        (
            {"positions": "sincos", "sincos_grid": (8, 2, 2)},
            {"num_frames": 8},
            "needs 5 of the 8 time slots that the predictor knows; give --num_frames 6",
        ),
        ({"predictor": {"kind": "mlp"}}, {"num_frames": 8}, "needs 5 of the 4"),
        ({"positions": "sincos_2d"}, {}, "no time"),
        ({}, {"clip_fps": None}, "give --clip_fps"),
        ({}, {"num_frames": 7}, "--num_frames 7: time slots have 2 frames"),
        (
            {"predictor": {"width": 24, "heads": 2, "out_width": 30}},
            {},
            "gives 30 features, a token of the encoder has 24",
        ),
    ],
)
def test_what_cannot_be_rolled_out_is_one_line(given, clips, message):
    with pytest.raises(UserError, match=message) as error:
        RollOut.of(*networks(**given), data_of("x", **clips), 1.0, trained_frames=8)
    assert "\n" not in str(error.value)


# ---- the command


@pytest.fixture
def run(tmp_path):
    """A run folder with untrained networks."""
    tree = {
        "data": {"train": "x.parquet", "num_frames": 4, "clip_fps": 4, "crop_px": 16, "workers": 0},
        "model": {
            "patch_px": 8,
            "encoder": {"width": 24, "depth": 2, "heads": 2},
            "predictor": {"width": 24, "depth": 1, "heads": 2},
        },
        "run": {"device": "cpu", "precision": "fp32"},
        "optim": {"total_steps": 1},
    }
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoints" / "step-00000030"
    checkpoint.mkdir(parents=True)
    (folder / "checkpoints" / "latest").symlink_to(checkpoint.name)
    (folder / "config.yaml").write_text(json.dumps(tree))
    jepa = build(config.validate(tree, "test"))
    for name in ("encoder", "target_encoder", "predictor"):
        save_file(
            {key: tensor.clone() for key, tensor in getattr(jepa, name).state_dict().items()},
            checkpoint / f"{name}.safetensors",
        )
    (checkpoint / "state.json").write_text('{"format_version": 1}')
    return folder


@pytest.fixture
def words(run, actions, tmp_path):
    common = [
        "--dataset",
        str(actions.with_name("few.parquet")),
        "--cache",
        str(tmp_path / "cache"),
        "--label",
        "verb",
        "--anticipation_s",
        "0.5",
    ]
    return ["--model_path", str(run), *common]


@pytest.mark.parametrize("mode", ["knn", "linear_probe", "attentive"])
def test_both_are_measured_side_by_side(run, words, capsys, mode):
    words = [*words, "--eval_mode", mode, "--max_steps", "4", "--lr", "1e-3", "--weight_decay", ".01"]
    probe.main([*words, "--rollout", "both"])
    (result,) = json.loads((run / "probe.json").read_text())
    assert (result["anticipation_s"], result["rollout"]) == (0.5, "both")
    assert result["time_slots"] == {"observed": 2, "predicted": 2, "trained": 2}
    assert set(result["baselines"]) == {
        "random_init",
        "pixels",
        "motion_energy",
        "shuffled_frames",
        "reversed_frames",
        "untrained_predictor",
    }
    for shares in (result, result["with_rollout"], *result["baselines"].values()):  # of 7 verbs
        assert 0 <= shares["recall_at_5"]["low"] <= shares["recall_at_5"]["value"] <= shares["recall_at_5"]["high"] <= 1
    assert result["chance_recall_at_5"] == 5 / sum(one["num"] > 0 for one in result["scores"]["per_class"])
    said = capsys.readouterr().out
    for part in (
        "class-mean recall@5",
        "with roll-out",
        "clips end 0.5 s before the action; roll-out of 2 time slots after 2, trained on 2",
    ):
        assert part in said


def test_settings_of_anticipation_have_results_and_features_of_their_own(run, words, capsys):
    words = [*words, "--eval_mode", "knn", "--baselines", "random_init"]
    made = [
        ([], True),
        (["--rollout", "predictor"], True),
        (["--rollout", "both"], False),
        (["--anticipation_s", "0.25"], True),
        ([], False),
    ]
    for more, is_new in made:
        probe.main([*words, *more])
        assert ("features of" in capsys.readouterr().err) == is_new
    results = json.loads((run / "probe.json").read_text())
    assert [(one["anticipation_s"], one["rollout"]) for one in results] == [
        (0.5, "predictor"),
        (0.5, "both"),
        (0.25, "none"),
        (0.5, "none"),
    ]
    predictor, both, _, alone = results
    assert both["accuracy"] == alone["accuracy"] and both["with_rollout"]["top1"]["value"] == predictor["accuracy"]
    assert len({one["data_hash"] for one in results}) == 2
    assert len(list(run.glob("probe_knn_verb_*_confusion.png"))) == 4


def test_augmented_passes_see_no_more(words):
    probe.main([*words, "--eval_mode", "knn", "--baselines", "none", "--train_passes", "2", "--num_crops", "2"])


def test_models_without_a_predictor_are_one_line(run, words, tmp_path):
    encoder = load_encoder(run)
    own.write(Weights("test", encoder.model, encoder.state_dict()), tmp_path / "alone.safetensors")
    with pytest.raises(UserError, match=r"alone.safetensors: has no predictor; --rollout predictor needs one") as error:
        probe.main(
            [
                "--model_path",
                str(tmp_path / "alone.safetensors"),
                *words[2:],
                "--eval_mode",
                "knn",
                "--rollout",
                "predictor",
            ]
        )
    assert "\n" not in str(error.value)
    assert load_predictor(run).predictor_proj.out_features == 24


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num_clips", "2"], "--num_clips 2: of an action there is one clip"),
        (
            ["--anticipation_s", "9"],
            "no clip to measure could be read; row 0: lasts 1.5 s, so that nothing is seen 9 s before its end",
        ),
        (["--dataset", "digits", "--label", "label"], "--anticipation_s: is for clip indexes"),
    ],
)
def test_bad_input_is_one_line(words, more, message):
    with pytest.raises(UserError, match=message):
        probe.main([*words, "--eval_mode", "knn", *more])


def test_a_roll_out_needs_an_action(words, capsys):
    with pytest.raises(UserError, match="give --anticipation_s too"):
        probe.main([*words[:-2], "--eval_mode", "knn", "--rollout", "both"])
    with pytest.raises(SystemExit):
        probe.main([*words[:-1], "-1", "--eval_mode", "knn"])
    assert "not a number of at least 0" in capsys.readouterr().err
