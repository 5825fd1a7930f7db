"""The probe command, on small real files and an untrained run."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from vjepa import config, load_encoder, probe
from vjepa.data.augment import normalise
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.loader import eval_loader
from vjepa.errors import UserError
from vjepa.interop import load, own
from vjepa.interop.probes import load_probe
from vjepa.jepa import build
from vjepa.probing.extractors import untrained, weights_hash


@pytest.fixture
def index(make_index):
    """20 short videos, half of them marked, in 4 folds and two splits."""
    rows = [
        {
            "label": ("marked", "plain")[i % 2],
            "hue": f"{i % 3}",
            "split": "train" if i < 14 else "val",
            "scene": f"s{i // 2 % 4}",
        }
        for i in range(20)
    ]
    return make_index(rows, num_frames=6, size=(32, 32))


@pytest.fixture
def run(tmp_path):
    """A run folder of step 30 with untrained weights."""
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoints" / "step-00000030"
    checkpoint.mkdir(parents=True)
    (folder / "checkpoints" / "latest").symlink_to("step-00000030")
    shape = {"width": 24, "depth": 2, "heads": 2}
    tree = {
        "data": {"train": "x.parquet", "num_frames": 4, "crop_px": 16, "workers": 0},
        "model": {"patch_px": 8, "encoder": shape, "predictor": shape},
        "run": {"device": "cpu", "precision": "fp32"},
        "optim": {"total_steps": 1},
    }
    settings = config.validate(tree, "test")
    (folder / "config.yaml").write_text(json.dumps(tree))
    encoder = build(settings.model_copy(update={"run": config.Run(seed=3)})).encoder.state_dict()
    for which in ("encoder", "target_encoder", "predictor"):
        save_file(encoder, checkpoint / f"{which}.safetensors")
    (checkpoint / "state.json").write_text('{"format_version": 1}')
    return folder


@pytest.fixture
def words(run, index, tmp_path):
    """Arguments that every call has."""
    return ["--model_path", str(run), "--dataset", str(index), "--cache", str(tmp_path / "cache")]


def results(run):
    return json.loads((run / "probe.json").read_text())


def confusion(run, name, dataset):
    """Of the head in the file `name`, loaded again, on the clips that were measured."""
    encoder, head, index = load_encoder(run), load_probe(run / name), ClipIndex.open(dataset)
    labels, counts = index.column("label"), np.zeros((2, 2), dtype=int)
    for batch in eval_loader(index, index.select({"split": "val"}), config.load(str(run / "config.yaml")).data, 4, 0):
        answers = head(encoder(normalise(batch.video, torch.float32))).argmax(1)
        np.add.at(counts, ([head.classes.index(labels[i]) for i in batch.clip_ids], answers.numpy()), 1)
    return counts.tolist()


def test_attentive_beside_every_baseline(run, words, capsys):
    quick = ["--lr", "3e-3,1e-3", "--weight_decay", ".01", "--max_steps", "20"]
    assert probe.main([*words, "--eval_mode", "attentive", *quick]) == 0
    (result,) = results(run)
    assert set(result["baselines"]) == {"random_init", "pixels", "motion_energy", "shuffled_frames", "reversed_frames"}
    assert result["baselines"]["pixels"]["top1"]["value"] == 1
    assert set(result["chosen"]) == {"lr", "weight_decay", "steps"} and len(result["selection"][0]) == 3
    assert result["num_clips"] == {"train": 11, "selection": 3, "val": 6} and result["chance"]["accuracy"] == 0.5
    assert len(result["data_hash"]) == len(result["weights_hash"]) == 64 and result["step"] == 30
    said = capsys.readouterr()
    for part in ("encoder, step 30", "reversed_frames", "chance", "class  ", result["data_hash"][:12], "probe.json"):
        assert part in said.out
    assert "features of" in said.err  # the size, before it is written
    assert (run / "probe_attentive_label_confusion.png").is_file()
    assert confusion(run, "probe_attentive_label.safetensors", words[3]) == result["scores"]["confusion"]

    # the same features serve every other probe, and are not made again
    for mode in ("attentive", "knn", "linear_probe"):
        probe.main([*words, "--eval_mode", mode, *quick])
        assert "features of" not in capsys.readouterr().err
    assert [one["eval_mode"] for one in results(run)] == ["attentive", "knn", "linear_probe"]
    assert confusion(run, "probe_linear_probe_label.safetensors", words[3]) == results(run)[2]["scores"]["confusion"]
    assert results(run)[1]["chosen_heads"] is None
    assert results(run)[0] == result


def test_places_are_kept_apart_for_the_encoder_and_its_baselines(run, words, tmp_path, capsys):
    ridge = [*words, "--eval_mode", "linear_probe", "--head", "ridge"]
    for pool in ("slots", "grid:2", "mean", "slots"):
        probe.main([*ridge, "--pool", pool])
    assert [one["pool"] for one in results(run)] == ["grid:2", "mean", "slots"]
    shapes = [json.loads(path.read_text())["shape"][1:] for path in (tmp_path / "cache").rglob("about.json")]
    for places in (1, 2, 8):  # trained, untrained and shuffled of all clips, reversed of those that are measured
        assert shapes.count([1, places, 24]) == 4
    for result in results(run):
        assert set(result["baselines"]) == {
            "random_init",
            "pixels",
            "motion_energy",
            "shuffled_frames",
            "reversed_frames",
        }
        name = {"mean": ""}.get(result["pool"], f"_{result['pool'].replace(':', '')}")
        assert confusion(run, f"probe_linear_probe_label{name}.safetensors", words[3]) == result["scores"]["confusion"]
    assert "pool slots, data " in capsys.readouterr().out.splitlines()[-2]


def test_what_a_run_on_changes_sees_is_other_features_and_no_image(run, words):
    tree = json.loads((run / "config.yaml").read_text())
    before = weights_hash(load_encoder(run))
    (run / "config.yaml").write_text(json.dumps({**tree, "model": {**tree["model"], "input": "changes"}}))
    assert weights_hash(load_encoder(run)) != before
    with pytest.raises(UserError, match=r"^a single frame has no changes, which model\.input: changes needs"):
        probe.main([*words[:2], "--dataset", "digits", "--eval_mode", "knn"])
    probe.main([*words, "--eval_mode", "knn", "--baselines", "shuffled_frames,random_init"])


def test_folds_measure_every_clip_once(run, words):
    probe.main([*words, "--eval_mode", "linear_probe", "--fold", "scene", "--baselines", "pixels", "--head", "ridge"])
    (result,) = results(run)
    assert set(result["folds"]["accuracy"]) == {"s0", "s1", "s2", "s3"} and result["num_clips"]["val"] == 20
    assert result["scores"]["num_clips"] == 20 and set(result["chosen"]["s0"]) == {"alpha"}
    assert result["baselines"]["pixels"]["folds"]["mean"] == 1


def test_processes_share_the_features_and_one_of_them_measures(run, words, tmp_path):
    more = ["--eval_mode", "knn", "--num_clips", "2"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = os.environ | {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free.getsockname()[1]),
        }
    environment["PYTHONPATH"] = str(Path(probe.__file__).parents[1])
    command = [sys.executable, "-m", "vjepa.probe", *words, *more]
    running = [
        subprocess.Popen(
            command, env=environment | {"RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert "6 clips measured" in said[0][0] and said[1][0] == ""
    probe.main([*words[:-1], str(tmp_path / "alone"), *more, "--out", str(tmp_path / "alone.json")])
    shared, alone = results(run), json.loads((tmp_path / "alone.json").read_text())
    for name in ("accuracy", "num_clips", "chosen", "data_hash", "weights_hash"):
        assert [one[name] for one in shared] == [one[name] for one in alone]
    ids = [
        {path.parent.name: np.load(path).tolist() for path in folder.rglob("clip_ids.npy")}
        for folder in (tmp_path / "cache", tmp_path / "alone")
    ]
    assert ids[0] == ids[1] and all(len(set(found)) == len(found) for found in ids[0].values())
    assert {clip_id for found in ids[0].values() for clip_id in found} == set(range(20))


def test_a_clip_that_cannot_be_read_is_named_and_comes_back_when_it_is_repaired(run, words, index):
    path = index.parent / "clips" / "15.mp4"
    whole = path.read_bytes()
    found = []
    for content in (b"gone", whole):
        path.write_bytes(content)
        probe.main([*words, "--eval_mode", "knn", "--baselines", "none"])
        (result,) = results(run)
        found.append((result["num_unreadable"], len(result["unreadable"]), result["num_clips"]["val"]))
        assert not result["unreadable"] or result["unreadable"][0].startswith(f"{path}: ")
    assert found == [(1, 1, 5), (0, 0, 6)]


@pytest.mark.fast
@pytest.mark.parametrize(
    "words",
    [
        ["--shots", "0,5"],
        ["--shot_draws", "0"],
        ["--k", "0,5"],
        ["--lr", "-1"],
        ["--clip_fps", "nan"],
        ["--train_passes", "-1"],
        ["--weight_decay", "1,x"],
    ],
)
def test_numbers_out_of_range_are_one_line(words, capsys):
    with pytest.raises(SystemExit):
        probe.main(["--model_path", "x", "--dataset", "y", "--eval_mode", "knn", *words])
    assert re.search(
        rf"argument {words[0]}\S*: \S+: not a (whole )?number (above|of at least) [01]$",
        capsys.readouterr().err.strip(),
    )


def test_results_of_other_probes_stay_and_the_same_one_is_replaced(run, words):
    none = ["--baselines", "none"]
    for more in (
        ["--eval_mode", "knn"],
        ["--eval_mode", "linear_probe"],
        ["--eval-mode", "knn", "--label", "hue"],
        ["--eval_mode", "knn"],
    ):
        probe.main([*words, *none, *more])
    assert [(result["eval_mode"], result["label"]) for result in results(run)] == [
        ("linear_probe", "label"),
        ("knn", "hue"),
        ("knn", "label"),
    ]


def test_the_probe_learns_from_the_index_that_it_is_given(run, words):
    """Whatever rows the run names for the probes that close it."""
    tree = json.loads((run / "config.yaml").read_text())
    tree["data"] |= {"labelled": "missing.parquet", "val": "x.parquet"}
    (run / "config.yaml").write_text(json.dumps(tree))
    probe.main([*words, "--eval_mode", "knn", "--baselines", "none"])
    assert results(run)[0]["num_clips"]["train"] > 0


def test_rows_views_and_levels_are_chosen(run, words, tmp_path):
    out = tmp_path / "deep" / "other.json"
    rows = ["--train", "scene=s0,s1", "--selection", "scene=s2", "--val", "scene=s3"]
    looks = ["--num_clips", "2", "--num_crops", "2", "--train_passes", "3", "--levels", "0,1"]
    probe.main([*words, "--eval_mode", "knn", "--baselines", "none", "--no-cache", *rows, *looks, "--out", str(out)])
    (result,) = json.loads(out.read_text())
    assert result["num_clips"] == {"train": 12, "selection": 4, "val": 4}
    assert "num_clips=2" in result["views"]["test"] and "num=3" in result["views"]["learn"]
    assert not (tmp_path / "cache").exists()


def test_a_checkpoint_file_is_measured_as_its_run(run, words):
    file = run / "checkpoints" / "step-00000030" / "encoder.safetensors"
    probe.main([*words, "--eval_mode", "knn", "--baselines", "none"])
    probe.main(["--model_path", str(file), *words[2:], "--eval_mode", "knn", "--baselines", "none"])
    one, other = results(run)
    assert one["weights_hash"] == other["weights_hash"] and one["accuracy"] == other["accuracy"] and other["step"] == 30


def test_a_published_file_is_read_at_the_size_that_is_given(run, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "best.pth"
    state = {f"module.backbone.{name}": tensor for name, tensor in load_encoder(run).state_dict().items()}
    torch.save({"encoder": state, "target_encoder": state, "predictor": {}, "epoch": 3}, file)
    size = ["--num_frames", "4", "--crop_px", "16"]
    with pytest.raises(UserError, match="heads="):
        probe.main(["--model_path", str(file), *words[2:], "--eval_mode", "knn", *size])
    own.write(load.read(run), tmp_path / "export.safetensors")
    probe.main(
        [
            "--model_path",
            str(tmp_path / "export.safetensors"),
            *words[2:],
            "--eval_mode",
            "knn",
            "--baselines",
            "none",
            *size,
        ]
    )
    (result,) = json.loads((tmp_path / "probe.json").read_text())
    assert result["encoder"] == "encoder" and result["step"] is None and result["data"]["crop_px"] == 16


@pytest.fixture
def sizes(make_index):
    """24 short videos, half of them marked, with numbers and many classes that tell the marked ones."""
    rows = [
        {
            "label": ("marked", "plain")[i % 2],
            "size": f"{3 * (i % 2) + 0.01 * i + 0.3}",
            "tags": ("mark|a", "b", "mark|b", "a|b")[i % 4],
            "holes": "" if i % 3 == 0 else f"{i % 2 + 0.013 * i}",
            "same": "1.5",
            "bad": "nan" if i == 2 else f"{i / 7:.3f}",
            "split": "train" if i < 12 else "selection" if i < 16 else "val",
        }
        for i in range(24)
    ]
    return make_index(rows, num_frames=6, size=(32, 32))


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("knn", []),
        ("linear_probe", []),
        ("attentive", ["--lr", "3e-3", "--weight_decay", ".01", "--max_steps", "20"]),
    ],
)
def test_labels_of_every_kind_share_one_pass_over_the_clips(run, sizes, tmp_path, capsys, mode, more):
    words = ["--model_path", str(run), "--dataset", str(sizes), "--cache", str(tmp_path / "cache"), "--eval_mode", mode]
    probe.main([*words, "--label", "label,size,tags,holes", "--baselines", "pixels,reversed_frames", *more])
    said = capsys.readouterr()
    assert said.err.count("features of") == 2  # of all clips, and of those that are shown backwards
    for line in ("label: read as 2 classes", "size: read as numbers", "tags: read as many classes", "holes: read as"):
        assert line in said.err
    for part in ("macro F1", "R2 [95 %]", "RMSE", "Spearman", "mAP [95 %]", "largest errors:", "AP"):
        assert part in said.out
    found = {one["label"]: one for one in results(run)}
    assert [found[name]["task"] for name in found] == ["classify", "regress", "multilabel", "regress"]
    assert found["label"]["accuracy"] > 0.9 and found["size"]["R2"] > 0.9
    assert found["tags"]["baselines"]["pixels"]["map"]["value"] > found["tags"]["chance"]["mAP"]
    assert found["size"]["chance"]["R2"] <= 0 and found["size"]["baselines"]["pixels"]["spearman"]
    assert found["holes"]["num_clips"] == {"train": 8, "selection": 2, "val": 6}
    # the same as alone, from what is kept
    probe.main([*words, "--label", "size", "--baselines", "pixels,reversed_frames", *more])
    assert "features of" not in capsys.readouterr().err
    (again,) = [one for one in results(run) if one["label"] == "size"]
    assert again == found["size"]
    if mode != "knn":
        head, index = load_probe(run / f"probe_{mode}_size_regress.safetensors"), ClipIndex.open(sizes)
        encoder, data = load_encoder(run), config.load(str(run / "config.yaml")).data
        truth = [float(text) for text in index.column("size")]
        for batch in eval_loader(index, index.select({"split": "val"}), data, 8, 0):
            errors = head.answers(encoder(normalise(batch.video, torch.float32)))[:, 0].numpy() - [
                truth[i] for i in batch.clip_ids
            ]
            assert np.sqrt(np.mean(errors**2)) == pytest.approx(found["size"]["scores"]["rmse"]["value"], rel=0.02)
        assert load_probe(run / f"probe_{mode}_tags_multilabel.safetensors").link == "sigmoid"


def test_tasks_are_chosen_and_results_of_each_stay(run, sizes, tmp_path, capsys):
    words = ["--model_path", str(run), "--dataset", str(sizes), "--cache", str(tmp_path / "cache")]
    words += ["--eval_mode", "linear_probe", "--baselines", "none"]
    probe.main([*words, "--label", "tags", "--task", "classify"])
    assert "read as" not in capsys.readouterr().err  # nothing had to be found out
    probe.main([*words, "--label", "tags", "--head", "ridge", "--class_weights", "balanced"])
    assert [(one["task"], one["method"]["head"], one["method"]["class_weights"]) for one in results(run)] == [
        ("classify", "logistic", "none"),
        ("multilabel", "ridge", "balanced"),
    ]
    names = {Path(one["chosen_heads"]).name for one in results(run)}
    assert len(names) == 2 and all((run / name).is_file() for name in names)


def test_few_labels_are_measured_beside_all(run, sizes, tmp_path, capsys):
    words = ["--model_path", str(run), "--dataset", str(sizes), "--cache", str(tmp_path / "cache")]
    words += ["--baselines", "pixels", "--label", "label,tags", "--shots", "1,3,50", "--shot_draws", "3"]
    for mode in ("knn", "linear_probe"):
        probe.main([*words, "--eval_mode", mode])
        said = capsys.readouterr().out
        assert "accuracy, clips a class 1" in said and "mAP, clips a class" in said
        assert "mean [95 % interval] of 3 draws" in said
        assert "2 classes have fewer than 50 clips, of which all are taken" in said
    for one in results(run):
        few, of_pixels = one["few_labels"], one["baselines"]["pixels"]["few_labels"]
        assert set(few) == set(of_pixels) == {"1", "3", "50"} and len(few["3"]["draws"]) == 3
        assert few["50"]["draws"] == [one[one["measure"]]] * 3  # all that there are
        mean, half = np.mean(few["3"]["draws"]), stats.t.ppf(0.975, 2) * stats.sem(few["3"]["draws"])
        assert (few["3"]["low"], few["3"]["high"]) == pytest.approx((mean - half, mean + half))
    probe.main([*words[:-6], "--label", "size", "--shots", "2,6,50", "--eval_mode", "linear_probe"])
    said = capsys.readouterr().out
    assert "R2, clips  " in said and "train has fewer than 50 clips, of which all are taken" in said
    before = results(run)
    probe.main([*words, "--eval_mode", "linear_probe"])
    assert sorted(results(run), key=str) == sorted(before, key=str)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--label", "same"], "train, same: every clip is '1.5'; a probe needs two classes"),
        (["--label", "same", "--task", "regress"], "train, same: every value is 1.5"),
        (["--label", "label,bad"], "train, bad: 1 of 12 values are no finite number, such as 'nan'"),
        (["--label", "label", "--task", "regress"], "train, label: 12 of 12 values are no finite number"),
        (["--label", "size", "--head", "logistic"], "--head logistic: numbers are learned by ridge regression"),
        (["--label", "size", "--class_weights", "balanced"], "--class_weights balanced: numbers have no classes"),
        (["--label", "size", "--shots", "5,1"], "--shots 1: size is a number; give 2 clips or more"),
        (["--label", "label,taste"], "no column 'taste'"),
    ],
)
def test_labels_that_teach_nothing_are_one_line_before_anything_is_read(run, sizes, tmp_path, more, message):
    words = ["--model_path", str(run), "--dataset", str(sizes), "--cache", str(tmp_path / "cache")]
    with pytest.raises(UserError, match=message) as error:
        probe.main([*words, "--eval_mode", "linear_probe", *more])
    assert "\n" not in str(error.value) and not (tmp_path / "cache").exists()


def test_several_indexes_are_measured_as_one(run, words, index, tmp_path):
    records = list(ClipIndex.open(index).records())
    halves = [str(index.with_name(name)) for name in ("even.parquet", "odd.parquet")]
    for start, path in enumerate(halves):
        write_index(Path(path), records[start::2])
    quick = ["--eval_mode", "linear_probe", "--baselines", "none", "--fold", "scene"]
    probe.main([*words, *quick])
    probe.main([*words, *quick, "--dataset", ",".join(halves)])
    whole, joined = results(run)
    assert joined["dataset"] == ", ".join(halves) and joined["num_clips"] == whole["num_clips"]
    assert joined["accuracy"] == whole["accuracy"] and joined["folds"] == whole["folds"]
    with pytest.raises(UserError, match="digits: is a data set of images, which is read alone"):
        probe.main([*words, *quick, "--dataset", f"{halves[0]},digits"])
    with pytest.raises(UserError, match=r"even\.parquet: is named twice"):
        probe.main([*words, *quick, "--dataset", f"{halves[0]},{halves[0]}"])


def test_digits_need_no_index(run, tmp_path):
    words = ["--model_path", str(run), "--dataset", "digits", "--cache", str(tmp_path / "cache"), "--eval_mode", "knn"]
    probe.main([*words, "--pool", "grid:2"])
    (result,) = results(run)
    assert set(result["baselines"]) == {"random_init", "pixels"} and result["data"]["num_frames"] == 1
    assert result["baselines"]["pixels"]["top1"]["value"] > 0.9
    with pytest.raises(UserError, match="--fold: is for clip indexes"):
        probe.main([*words, "--fold", "scene"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model_path", "/nowhere"], "/nowhere: no such run folder"),
        (["--label", "taste"], "no column 'taste'"),
        (["--val", "split"], "COLUMN=VALUE"),
        (["--train", "split=test"], "none of its"),
        (["--levels", "7"], "--levels 7: give last"),
        (["--baselines", "magic"], "no baseline 'magic'"),
        (["--pool", "middle"], "--pool middle: give mean, slots, grid"),
        (["--pool", "grid"], "--pool grid: 4x4 cells are more than the 2x2 tokens of a time slot; give grid:2 or less"),
        (
            ["--eval_mode", "attentive", "--pool", "slots"],
            "--pool slots: attentive heads read all tokens in their places; leave it out",
        ),
        (
            ["--anticipation_s", "0", "--rollout", "both", "--pool", "all"],
            "--pool all: a roll-out has time slots of its own",
        ),
        (["--fold", "split"], "needs 3 or more values"),
        (["--fold", "scene", "--val", "split=val"], "give one or the other"),
        (["--crop_px", "12"], "--crop_px 12: is not a whole"),
        (["--crop_px", "4"], r"--crop_px 4: crop_px: a side of 8 px or more, or \[height, width\], got 4$"),
        (
            ["--clip_fps", "2", "--frame_step", "2"],
            r"--clip_fps 2.0 --frame_step 2: clip_fps and frame_step: each says",
        ),
        (["--selection", "split=train"], "are in data.train too"),
    ],
)
def test_bad_input_is_one_line(words, more, message):
    with pytest.raises(UserError, match=message) as error:
        probe.main([*words, "--eval_mode", "knn", *more])
    assert "\n" not in str(error.value)


def test_a_foreign_file_is_not_overwritten(run, words):
    (run / "probe.json").write_text("my notes")
    with pytest.raises(UserError, match="--out"):
        probe.main([*words, "--eval_mode", "knn"])
    assert (run / "probe.json").read_text() == "my notes"


def test_help_loads_no_tensor_library():
    code = (
        "import sys; from vjepa import probe, report\nfor main in (probe.main, report.main):\n  try: "
        "main(['--help'])\n  except SystemExit: pass\n"
    )
    start = time.perf_counter()
    code += "print(*{'torch', 'sklearn', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
    assert "--eval-mode" in done.stdout
    assert time.perf_counter() - start < 10


@pytest.mark.fast
def test_the_same_weights_have_one_hash(run):
    encoder = load_encoder(run)
    assert weights_hash(encoder) == weights_hash(load_encoder(run))
    other = untrained(encoder, 0)
    assert weights_hash(untrained(encoder, 0)) == weights_hash(other) != weights_hash(encoder)
    assert np.all([not parameter.requires_grad for parameter in other.parameters()])
