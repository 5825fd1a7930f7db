"""Features of an index: every clip once and in order, whatever stops or shares the work; windows against
a plain twin.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import level, scanned
from safetensors import safe_open
from safetensors.torch import save_file

import vjepa
from vjepa import config, extract
from vjepa.data.augment import normalise
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.decode import READERS
from vjepa.data.loader import eval_loader
from vjepa.data.media import DecodeError
from vjepa.data.plan_rows import Views
from vjepa.data.plan_windows import Cut
from vjepa.errors import UserError
from vjepa.interop import own
from vjepa.interop.weights import Weights
from vjepa.models.encoder import VisionTransformer
from vjepa.probing import extraction, extractors

MODEL = config.Model(patch_px=8, tubelet_frames=2, encoder=config.EncoderSettings(width=24, depth=3, heads=2))
LENGTHS = (24, 40, 17, 9, 64, 24, 24, 24, 30, 12)  # frames, at 8 fps


@pytest.fixture
def files(make_video, tmp_path):
    """Paths of an index of 10 videos and of an encoder's weights."""
    rows = [
        {
            "uri": f"v/{i}.mp4",
            "label": "even" if i % 2 == 0 else "odd",
            "label_id": i % 2,
            "split": "val" if i >= 6 else "train",
            "hand": f"Händ {i}",
        }
        | scanned(make_video(f"v/{i}.mp4", length, size=(32, 24)))
        for i, length in enumerate(LENGTHS)
    ]
    write_index(tmp_path / "x.parquet", rows)
    torch.manual_seed(0)
    own.write(Weights("", MODEL, VisionTransformer(MODEL).state_dict()), tmp_path / "encoder.safetensors")
    return tmp_path / "x.parquet", tmp_path / "encoder.safetensors"


@pytest.fixture
def run(files, monkeypatch):
    """run("a.parquet", "--pool", "all") extracts with clips of 4 frames of 16 px in parts of 4 clips, and returns the
    path.
    """
    monkeypatch.setattr(extraction, "_CLIPS_PER_PART", (4, 4096))

    def call(out, *words):
        index, weights = files
        given = [
            "--model_path",
            str(weights),
            "--dataset",
            str(index),
            "--num-frames",
            "4",
            "--crop-px",
            "16",
            "--clip-fps",
            "4",
            "--workers",
            "0",
        ]
        assert extract.main([*given, "--batch", "3", "--out", str(index.parent / out), *words]) == 0
        return index.parent / out

    return call


def tensors_of(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def text(tensor):
    return [bytes(row).rstrip(b"\0").decode() for row in tensor.numpy()]


def tokens_of(files, **changes):
    """What a plain pass over the loader gives: [U, N, D]."""
    index, encoder = ClipIndex.open(files[0]), vjepa.load_encoder(files[1])
    data = config.Data(train=str(files[0]), num_frames=4, crop_px=16, clip_fps=4.0)
    batches = eval_loader(index, index.select({}), data, 5, 0, Views(**changes))
    with torch.inference_mode():
        return torch.cat([encoder(normalise(batch.video, torch.float32)) for batch in batches])


def test_a_file_holds_the_mean_features_of_every_row_in_order(run, files, capsys):
    tensors, metadata = tensors_of(run("a.safetensors"))
    assert tensors["row"].tolist() == list(range(10)) and tensors["clip"].tolist() == [0] * 10
    torch.testing.assert_close(tensors["features"], tokens_of(files).mean(1), atol=1e-5, rtol=1e-5)
    assert text(tensors["label"]) == ["even", "odd"] * 5 and tensors["label_id"].tolist() == [0, 1] * 5
    assert text(tensors["hand"]) == [f"Händ {i}" for i in range(10)]
    assert text(tensors["uri"]) == [str(files[0].parent / f"v/{i}.mp4") for i in range(10)]
    assert (tensors["end_s"] - tensors["start_s"]).tolist() == pytest.approx(
        [min(0.875, length / 8) for length in LENGTHS]
    )
    views = json.loads(metadata["views"])
    assert (views["num_frames"], views["clip_fps"], views["num_clips"], views["window_s"]) == (4, 4.0, 1, None)
    assert (metadata["pool"], metadata["level"], metadata["dtype"]) == ("mean", "last", "fp32")
    assert json.loads(metadata["encoder"])["encoder"]["width"] == 24
    assert metadata["weights_sha256"] == extractors.weights_hash(vjepa.load_encoder(files[1]))
    assert not list(files[0].parent.glob("*.parts")) and "10 clips of 10 videos, 24 float32" in capsys.readouterr().out


def test_parquet_and_a_folder_hold_the_same(run):
    tensors, metadata = tensors_of(run("a.safetensors"))
    table = pq.read_table(run("a.parquet"))
    assert table.column_names == [
        "row",
        "clip",
        "start_s",
        "end_s",
        "uri",
        "label",
        "group",
        "hand",
        "label_id",
        "split",
        "features",
    ]
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), tensors["features"].numpy())
    assert table["label"].to_pylist() == text(tensors["label"]) and table["group"].null_count == 10
    assert {key.decode(): value.decode() for key, value in table.schema.metadata.items()} == metadata
    folder = run("folder")
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names == [f"part-0000{part}-of-00003.safetensors" for part in range(3)]
    parts = [tensors_of(folder / name)[0] for name in names]
    for name, tensor in tensors.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)


def test_all_tokens_of_several_levels(run, files):
    tensors, metadata = tensors_of(run("a.safetensors", "--pool", "all", "--level", "0,-1", "--dtype", "bf16"))
    assert {name for name in tensors if name.startswith("features")} == {"features_0", "features_2"}
    assert tensors["features_0"].shape == (10, 8, 24) and tensors["features_2"].dtype == torch.bfloat16
    assert json.loads(metadata["level"]) == [0, 2] and json.loads(metadata["grid"]) == {"t": 2, "h": 2, "w": 2}
    torch.testing.assert_close(tensors["features_2"].float(), tokens_of(files), atol=0.1, rtol=0.05)
    table = pq.read_table(run("a.parquet", "--pool", "all", "--dtype", "fp16"))
    assert np.stack(table["features"].to_numpy()).reshape(10, 8, 24).dtype == np.float16


def test_places_are_pooled_as_the_probes_pool_them(run, files):
    tokens = tokens_of(files).unflatten(1, (2, 2, 2))
    for pool, expected in (
        ("slots", tokens.mean((2, 3))),
        ("grid:1", tokens.mean((2, 3))),
        ("grid:2", tokens.flatten(1, 3)),
    ):
        tensors, metadata = tensors_of(run(f"{pool[-1]}.safetensors", "--pool", pool))
        torch.testing.assert_close(tensors["features"], expected, atol=1e-5, rtol=1e-5)
        assert metadata["pool"] == pool and json.loads(metadata["shape"]) == list(expected.shape[1:])
    with pytest.raises(
        UserError,
        match=r"--pool grid: 4x4 cells are more than the 2x2 tokens of a time slot; give grid:2 or less, or all",
    ):
        run("b.safetensors", "--pool", "grid")
    with pytest.raises(
        UserError, match="--pool none: give mean, slots, grid, a grid of another size such as grid:2, or all"
    ):
        run("b.safetensors", "--pool", "none")


def test_several_clips_of_a_video_are_the_views_of_evaluation(run, files):
    tensors, _ = tensors_of(run("a.safetensors", "--num-clips", "3"))
    assert (
        tensors["row"].tolist() == [row for row in range(10) for _ in range(3)]
        and tensors["clip"].tolist() == [0, 1, 2] * 10
    )
    torch.testing.assert_close(tensors["features"], tokens_of(files, num_clips=3).mean(1), atol=1e-5, rtol=1e-5)
    assert (tensors["start_s"].view(10, 3).diff(dim=1) >= 0).all()


def test_windows_slide_over_every_video(run, files, monkeypatch):
    monkeypatch.setattr(
        extraction.Encoding, "__call__", lambda self, video: {"features": video[:, :1, :, 8, 8].flatten(1).float()}
    )
    tensors, metadata = tensors_of(run("a.safetensors", "--window-s", "2", "--stride-s", "0.5"))
    expected = []
    for row, length in enumerate(LENGTHS):
        starts = [0.0]
        while starts[-1] + 0.5 + 2 <= length / 8:
            starts.append(starts[-1] + 0.5)
        expected += [(row, clip, start, min(start + 2, length / 8)) for clip, start in enumerate(starts)]
    assert list(zip(*(tensors[name].tolist() for name in ("row", "clip", "start_s", "end_s")), strict=True)) == expected
    for (row, _, start, _), greys in zip(expected, tensors["features"].tolist(), strict=True):
        ids = [min(int((start + i * 0.5) * 8), LENGTHS[row] - 1) for i in range(4)]
        assert greys == pytest.approx([level(i) for i in ids], abs=6)
    assert json.loads(metadata["views"])["window_s"] == 2


@pytest.mark.parametrize(("length", "count"), [(1.9, 1), (2.0, 1), (2.49, 1), (2.5, 2), (3.0, 3), (0.1, 1)])
def test_only_whole_windows_count(files, length, count):
    row = ClipIndex.open(files[0]).row(0)
    row = type(row)(**{**vars(row), "end_s": row.start_s + length})
    assert Cut(window_s=2.0, stride_s=0.5).count(row) == count


def test_rows_that_cannot_be_read_are_named_and_absent(run, files, capsys):
    (files[0].parent / "v/3.mp4").write_bytes(b"gone")
    tensors, metadata = tensors_of(run("a.safetensors", "--window-s", "1", "--stride-s", "0.5"))
    assert 3 not in tensors["row"] and set(tensors["row"].tolist()) == set(range(10)) - {3}
    assert list(json.loads(metadata["unreadable"])) == ["3"]
    captured = capsys.readouterr()
    run("a.safetensors", "--window-s", "1", "--stride-s", "0.5")
    assert "complete already, without 1 videos that could not be read; remove it" in capsys.readouterr().out
    assert "row 3, " in captured.err and "v/3.mp4" in captured.err
    assert " clips of 9 videos, " in captured.out and "clips of 1 videos cannot be read" in captured.out
    for i in range(10):
        (files[0].parent / f"v/{i}.mp4").write_bytes(b"gone")
    with pytest.raises(UserError, match="none of its 10 videos could be read"):
        run("b.safetensors")


def test_one_bad_window_does_not_take_the_others_of_its_video_with_it(run, monkeypatch):
    def broken_tail(read, row, ids, size):
        if row.clip_id == 4 and max(ids) >= 56:
            raise DecodeError("broken tail")
        return read(row, ids, size)

    for name, read in READERS.items():
        monkeypatch.setitem(READERS, name, partial(broken_tail, read))
    tensors, _ = tensors_of(run("a.safetensors", "--window-s", "2", "--stride-s", "1"))
    assert tensors["clip"][tensors["row"] == 4].tolist() == [0, 1, 2, 3, 4, 5]  # of 7


def test_what_was_stopped_goes_on_and_nothing_is_computed_twice(run, files, monkeypatch):
    whole, _ = tensors_of(run("whole.safetensors"))
    seen, encode = [], extraction.Encoding.__call__

    def stop(self, video):
        if len(seen) >= 7:
            raise KeyboardInterrupt
        seen.extend(range(len(video)))
        return encode(self, video)

    monkeypatch.setattr(extraction.Encoding, "__call__", stop)
    with pytest.raises(KeyboardInterrupt):
        run("a.safetensors")
    parts = files[0].parent / "a.safetensors.parts"
    assert len(list(parts.glob("part-*.safetensors"))) == 1
    (parts / ".partial-1234-part-00001-of-00003.safetensors").write_bytes(b"half")
    seen.clear()
    monkeypatch.setattr(
        extraction.Encoding, "__call__", lambda self, video: (seen.extend(range(len(video))), encode(self, video))[1]
    )
    resumed, _ = tensors_of(run("a.safetensors", "--batch", "4"))
    assert len(seen) == 6 and not parts.exists()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=1e-5)
    seen.clear()
    run("a.safetensors")
    assert not seen


def halves_of(index):
    """Write the even and the odd rows of an index into two, and name them as an option does."""
    records = list(ClipIndex.open(index).records())
    paths = [index.with_name(name) for name in ("even.parquet", "odd.parquet")]
    for start, path in enumerate(paths):
        write_index(path, records[start::2])
    return ",".join(map(str, paths))


def test_several_indexes_are_read_as_one(run, files):
    (whole, _), halves = tensors_of(run("whole.safetensors")), halves_of(files[0])
    tensors, _ = tensors_of(run("halves.safetensors", "--dataset", halves))
    order = [*range(0, 10, 2), *range(1, 10, 2)]  # the rows of the first, then those of the other
    assert tensors["row"].tolist() == list(range(10)) and text(tensors["uri"]) == [text(whole["uri"])[i] for i in order]
    torch.testing.assert_close(tensors["features"], whole["features"][order], atol=1e-6, rtol=1e-5)
    assert text(tensors["hand"]) == [f"Händ {i}" for i in order]
    with pytest.raises(UserError, match="another dataset_sha256"):
        run("whole.safetensors", "--dataset", halves)


@pytest.mark.parametrize("num", [2, 5])
def test_shards_share_the_parts_and_the_last_one_makes_the_file(run, files, num, capsys):
    whole = run("whole.safetensors")
    capsys.readouterr()
    for shard in range(num, 0, -1):
        out = run("a.safetensors", "--shard", f"{shard}/{num}")
        assert out.exists() == (shard == 1)
    assert " of 3 parts are there; the other shards" in capsys.readouterr().out
    assert out.read_bytes() == whole.read_bytes()


def test_ranks_of_torchrun_are_shards(run, files, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        out = run("a.safetensors")
        assert out.exists() == (rank == 1)
    assert tensors_of(out)[0]["row"].tolist() == list(range(10))


def test_processes_at_the_same_time_make_one_file(files):
    index, weights = files
    command = [
        sys.executable,
        "-m",
        "vjepa.extract",
        "--model-path",
        str(weights),
        "--dataset",
        str(index),
        "--out",
        str(index.parent / "a.parquet"),
    ]
    command += [
        "--num-frames",
        "4",
        "--crop-px",
        "16",
        "--clip-fps",
        "4",
        "--workers",
        "0",
        "--window-s",
        "1",
        "--stride-s",
        "0.125",
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(extract.__file__).parents[1])}
    running = [
        subprocess.Popen([*command, "--shard", f"{i}/2"], env=environment, stderr=subprocess.PIPE, text=True)
        for i in (1, 2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    assert extract.main([*command[3:], "--out", str(index.parent / "alone.parquet")]) == 0
    assert (index.parent / "a.parquet").read_bytes() == (index.parent / "alone.parquet").read_bytes() and not list(
        index.parent.glob("*.parts")
    )


def test_rows_by_column(run):
    tensors, metadata = tensors_of(run("a.safetensors", "--where", "split=val", "--where", "label=even,none"))
    assert tensors["row"].tolist() == [6, 8] and json.loads(metadata["where"]) == {
        "split": ["val"],
        "label": ["even", "none"],
    }


def test_a_run_says_how_its_clips_are_read_and_options_win(files, tmp_path):
    index, weights = files
    checkpoint = tmp_path / "run/checkpoints/step-00000001"
    checkpoint.mkdir(parents=True)
    tree = {
        "data": {"train": "x", "num_frames": 6, "crop_px": 24, "frame_step": 2, "workers": 0},
        "optim": {"total_steps": 1},
    }
    (tmp_path / "run/config.yaml").write_text(json.dumps({**tree, "model": json.loads(MODEL.model_dump_json())}))
    (checkpoint / "state.json").write_text('{"format_version": 1}')
    for which in ("encoder", "target_encoder"):
        save_file(vjepa.load_encoder(weights).state_dict(), checkpoint / f"{which}.safetensors")
    views = []
    for number, words in enumerate(([], ["--clip-fps", "5", "--num-frames", "4"])):
        out = tmp_path / f"{number}.safetensors"
        extract.main(
            [
                "--model_path",
                str(checkpoint / "target_encoder.safetensors"),
                "--dataset",
                str(index),
                "--out",
                str(out),
                *words,
            ]
        )
        views.append(json.loads(tensors_of(out)[1]["views"]))
    found = [[view[name] for name in ("num_frames", "clip_fps", "frame_step", "crop_px")] for view in views]
    assert found == [[6, None, 2, 24], [4, 5.0, None, 24]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--level", "3"], "--level 3: give last, quarters, or blocks from 0 to 2, such as 1,2"),
        (["--level", "first"], "--level first: give last, quarters, or blocks"),
        (["--window-s", "1"], "give both, or neither"),
        (["--window-s", "1", "--stride-s", "1", "--num-clips", "2"], "--num-clips: windows say"),
        (["--shard", "0/2"], "write I/N with I from 1 to N"),
        (["--where", "split"], "rows are written COLUMN=VALUE"),
        (["--where", "split=none"], "none of its 10 rows is usable"),
        (["--where", "taste=good"], "no column 'taste'"),
        (["--dtype", "bf16", "--out", "x.parquet"], "Parquet has no such numbers"),
        (["--crop-px", "12"], "12: is not a whole number of patches of 8 px"),
        (["--model_path", "/nowhere"], "/nowhere: no such run folder, checkpoint or weights file"),
        (["--dataset", "/nowhere"], "no such clip index"),
    ],
)
def test_bad_arguments_are_one_line(run, words, message):
    with pytest.raises(UserError, match=message) as error:
        run("a.safetensors", *words)
    assert "\n" not in str(error.value)


def test_a_damaged_part_is_named(run, files):
    run("folder")
    part = files[0].parent / "folder/part-00001-of-00003.safetensors"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(
        UserError, match=r"part-00001-of-00003\.safetensors: damaged .*remove it and run the same command again"
    ):
        run("folder")
    part.unlink()
    run("folder")


def test_nothing_else_is_overwritten(run, files):
    folder = files[0].parent
    (folder / "mine.safetensors").write_text("my notes")
    with pytest.raises(UserError, match="exists, and holds no features of this command"):
        run("mine.safetensors")
    (folder / "full").mkdir()
    (folder / "full/notes.txt").write_text("my notes")
    with pytest.raises(UserError, match="holds something else"):
        run("full")
    for out in ("a.safetensors", "a.parquet", "folder"):
        run(out)
        with pytest.raises(
            UserError, match=r"features of another extraction \(another level, pool.*name another --out"
        ):
            run(out, "--pool", "all", "--level", "1")
    assert (folder / "full/notes.txt").read_text() == "my notes"


def test_importing_the_command_is_cheap():
    code = (
        "import sys, vjepa.extract; print([name for name in ('torch', 'pyarrow', 'av', 'matplotlib') if name in "
        "sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(extract.__file__).parents[1])}
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()
        == "[]"
    )


def test_bad_input_ends_with_exit_code_2_and_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "vjepa.extract",
        "--model_path",
        "x",
        "--dataset",
        str(tmp_path / "no"),
        "--out",
        "y",
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(extract.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
