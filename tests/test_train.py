"""The whole way, on small real files: index, train, stop, resume, evidence; and what bad input gets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import losses, metrics, same_weights, settings, weights

from vjepa import command, config, load_encoder, probe
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.errors import UserError
from vjepa.reporting.tables import closing_table
from vjepa.training.pretraining import train


def with_workers(run: config.Config, workers: int) -> config.Config:
    return run.model_copy(update={"data": run.data.model_copy(update={"workers": workers})})


def test_six_steps_are_three_and_three_more_bit_for_bit(clips) -> None:
    whole, parts = settings(clips, "whole"), settings(clips, "parts")
    summary = train(whole, progress=False)
    assert train(parts, stop_at_step=3, progress=False) is None
    resumed = train(with_workers(parts, 2), progress=False)
    assert summary is not None and resumed is not None
    assert losses(whole.run.dir) == losses(parts.run.dir) and len(losses(whole.run.dir)) == 6
    assert summary["final_loss"] == resumed["final_loss"] == losses(whole.run.dir)[-1]
    assert same_weights(whole, parts)


GROWING = {"kind": "random", "ratio": 0.5, "final_ratio": 0.75, "ratio_stages": 2}
OBJECTIVES: dict[str, dict] = {
    "ema": {
        "objective": {"loss": "huber", "huber_delta": 0.5, "cycle": 0.1, "vicreg_invariance": 1, "sigreg": 0.05},
        "masks": [GROWING],
    },
    "pixels": {"objective": {"targets": "pixels", "loss": "mse"}, "masks": [GROWING]},
    "none": {"objective": {"targets": "none", "sigreg": 0.05}, "masks": [GROWING]},
    "views": {
        "objective": {
            "targets": "none",
            "prediction": 0,
            "view_invariance": 1,
            "sigreg": 0.05,
            "projector_widths": [32, 8],
        },
        "data": {"clips_per_decode": 2},
        "masks": [GROWING, GROWING],
    },
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_goes_on_bit_for_bit_and_logs_its_terms_apart(clips, kind) -> None:
    whole, parts = (settings(clips, name, **OBJECTIVES[kind], optim={"total_steps": 7}) for name in ("whole", "parts"))
    for run, stops in ((whole, [6]), (parts, [3, 6])):
        for stop in stops:
            assert train(run, stop_at_step=stop, progress=False) is None
    assert (
        losses(whole.run.dir) == losses(parts.run.dir)
        and len(losses(whole.run.dir)) == 6
        and same_weights(whole, parts)
    )
    weight_of = {name: weight for name, weight in whole.objective.weights.items() if weight}
    facts = {
        "step",
        "loss",
        "grad_norm",
        "lr",
        "clips_per_s",
        "loader_wait",
        "num_replaced",
        *(f"gradient/{name}" for name in whole.objective.networks if name != "target_encoder"),
        *(["ema_decay"] if whole.objective.targets == "ema" else []),
    }
    for row in metrics(whole.run.dir)[1:]:  # after that of the untrained networks
        assert {name for name in row if not name.startswith("health/")} == weight_of.keys() | facts
        assert row["loss"] == pytest.approx(sum(weight * row[name] for name, weight in weight_of.items()), rel=1e-5)


def test_a_student_learns_from_a_teacher_that_learned_from_pixels(clips) -> None:
    """SALT: two stages; the second goes on bit for bit when the teacher's own run is gone, and the teacher's weights
    stay as they were.
    """
    first = settings(clips, "first", objective={"targets": "pixels", "loss": "mse"})
    train(first, stop_at_step=2, progress=False)
    frozen = {"targets": "frozen", "teacher": first.run.dir}
    model = {
        "patch_px": 8,
        "encoder": {"width": 36, "depth": 1, "heads": 2},
        "predictor": {"width": 12, "depth": 1, "heads": 2},
    }
    with pytest.raises(
        UserError,
        match=r"objective\.teacher: \S+ has 24 features a token, 36 are predicted; set model\.predictor\.out_width: 24",
    ):
        train(settings(clips, "second", objective=frozen, model=model), progress=False)
    with pytest.raises(
        UserError, match=r"objective\.teacher: \S+ has patch_px 8; set model\.patch_px to that, it is 4"
    ):
        train(settings(clips, "second", objective=frozen, model={**model, "patch_px": 4}), progress=False)
    with pytest.raises(
        UserError, match=r"objective\.teacher: \S+ has input frames; set model\.input to that, it is changes"
    ):
        train(settings(clips, "second", objective=frozen, model={**model, "input": "changes"}), progress=False)
    with pytest.raises(UserError, match=r"missing: no such file or folder"):
        train(settings(clips, "second", objective={**frozen, "teacher": "missing"}), progress=False)
    assert not (clips.parent / "second").exists()
    model["predictor"]["out_width"] = 24
    source = {"index": str(clips)}
    measured = {
        "data": {"selection": {**source, "where": {"split": "selection"}}, "val": {**source, "where": {"split": "val"}}}
    }
    whole, parts = (settings(clips, name, objective=frozen, model=model, **measured) for name in ("whole", "second"))
    train(whole, stop_at_step=5, progress=False)
    train(parts, stop_at_step=3, progress=False)
    before = load_encoder(clips.parent / "first").state_dict()
    shutil.rmtree(clips.parent / "first")
    summary = train(parts, progress=False)
    assert summary is not None and "accuracy" in summary["probes"]["label"]["knn"]
    assert losses(whole.run.dir) == losses(parts.run.dir)[:5]
    after = load_encoder(clips.parent / "second" / "teacher.safetensors").state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert load_encoder(clips.parent / "second").width == 36


def test_a_run_leaves_evidence_and_is_only_shown_again(clips) -> None:
    source = {"index": str(clips)}
    data = {"selection": {**source, "where": {"split": "selection"}}, "val": {**source, "where": {"split": "val"}}}
    run = settings(
        clips, "run", data=data, eval={"baselines": ["random_init", "pixels", "motion_energy", "shuffled_frames"]}
    )
    summary = train(run, progress=False)
    assert summary is not None and run.run.dir is not None
    for entry in summary["probes"]["label"].values():
        assert set(entry["baselines"]) == {"random_init", "pixels", "motion_energy", "shuffled_frames"}
        for measured in (entry, entry["chance"]):
            assert 0 <= measured["low"] <= measured["accuracy"] <= measured["high"] <= 1
        assert entry["chance"]["accuracy"] == 0.5
    folder = Path(run.run.dir)
    assert {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "tensorboard",
        "pictures",
        "checkpoints",
    } <= set(os.listdir(folder))
    assert {"loss_curve.png", "mask.png", "features_pca.png"} == set(os.listdir(folder / "pictures"))
    assert "label" in closing_table(summary)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert train(run, progress=False) == summary
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_a_run_is_measured_by_may_change_and_is_measured_again(clips, capsys) -> None:
    source = {"index": str(clips)}
    data = {"selection": {**source, "where": {"split": "selection"}}, "val": {**source, "where": {"split": "val"}}}
    first = train(settings(clips, "run", data=data, eval={"baselines": []}), progress=False)
    run = settings(clips, "run", data=data, eval={"baselines": ["pixels"]})
    again = train(run, progress=False)
    assert first is not None and again is not None and again["final_loss"] == first["final_loss"]
    assert again["probes"]["label"]["knn"]["accuracy"] == first["probes"]["label"]["knn"]["accuracy"]
    assert list(again["probes"]["label"]["knn"]["baselines"]) == ["pixels"]
    said = "summary.json: is of fewer steps, other clips, labels or eval settings; measured again"
    assert said in capsys.readouterr().err
    assert config.load(str(Path(str(run.run.dir), "config.yaml"))) == run

    rows = [{**row, "label": "ab"[number // 2 % 2]} for number, row in enumerate(ClipIndex.open(clips).records())]
    write_index(clips, rows)  # the same clips, labelled otherwise
    relabelled = train(run, progress=False)
    assert relabelled is not None and relabelled["evidence"] != again["evidence"] and said in capsys.readouterr().err
    assert train(run, progress=False) == relabelled and said not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"run: made with another config \(optim.lr was"):
        train(settings(clips, "run", data=data, optim={"lr": 1.0}), progress=False)


def test_labels_that_no_probe_can_learn_are_an_error_before_the_first_step(clips) -> None:
    source = {"index": str(clips)}
    data = {"selection": {**source, "where": {"split": "selection"}}, "val": {**source, "where": {"split": "val"}}}
    records = list(ClipIndex.open(clips).records())
    write_index(clips, [{**row, "one": "x", "few": row["uri"] if row["split"] != "val" else None} for row in records])
    for label, said in (
        ("one", r"data\.train \(or data\.labelled\), one: every clip is 'x'; a probe needs two classes"),
        ("few", r"data\.val: none of its clips has a value in few"),
    ):
        run = settings(clips, "run", data=data, eval={"labels": ["label", label]})
        with pytest.raises(UserError, match=said):
            train(run, progress=False)
        assert not Path(str(run.run.dir)).exists()


def test_an_unreadable_file_is_counted_named_and_replaced(clips) -> None:
    (clips.parent / "clips" / "03.mp4").write_bytes(b"")
    run = settings(clips, "run")
    summary = train(run, progress=False)
    assert summary is not None
    assert summary["num_replaced"] == 4  # 24 samples are 4 passes over 6 clips
    assert list(summary["replaced"]) == [str(clips.parent / "clips" / "03.mp4")]


def test_images_train_with_the_same_command(images) -> None:
    run = settings(images, "run", data={"train": {"index": str(images)}, "num_frames": 1}, optim={"total_steps": 2})
    summary = train(run, progress=False)
    assert summary is not None and np.isfinite(summary["final_loss"])


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_steps_give_the_losses_of_plain_ones(clips) -> None:
    """Two mask sets of different sizes, in one pass of the context encoder; a predictor without blocks, which would
    take as long again to compile.
    """
    tree = {
        "masks": [{"kind": "tube", "ratio": ratio} for ratio in (0.5, 0.75)],
        "model": {"predictor": {"kind": "mlp", "width": 12, "depth": 1}},
    }
    plain, compiled = (
        settings(clips, name, run={"compile": name == "compiled"}, **tree) for name in ("plain", "compiled")
    )
    train(plain)
    train(compiled)
    assert losses(compiled.run.dir) == pytest.approx(losses(plain.run.dir), rel=1e-5)


@pytest.fixture
def mix(images) -> dict:
    """The section `data` of a run that takes every other step on images, in batches of 6."""
    return {"mix": [{"index": str(images), "ratio": 0.5, "num_frames": 1, "global_batch": 6}]}


def test_images_and_clips_train_in_one_run_and_resume_bit_for_bit(clips, mix) -> None:
    whole, parts = settings(clips, "whole", data=mix), settings(clips, "parts", data=mix)
    summary = train(whole, progress=False)
    assert train(with_workers(parts, 2), stop_at_step=3, progress=False) is None
    resumed = train(parts, progress=False)
    assert summary is not None and resumed is not None and same_weights(whole, parts)
    rows = [row for row in metrics(whole.run.dir) if row["step"]]
    assert (
        losses(whole.run.dir) == losses(parts.run.dir) and len(rows) == 6 and np.isfinite(losses(whole.run.dir)).all()
    )
    by_source = [[row["loss"] for row in rows if row.get("source", 0) == source] for source in (0, 1)]
    assert summary["sources"] == resumed["sources"] == [
        {"name": "data.train", "clips": 6, "steps": 3, "final_loss": by_source[0][-1]},
        {"name": "data.mix.0", "clips": 4, "steps": 3, "final_loss": by_source[1][-1]},
    ]  # fmt: skip
    assert summary["final_loss"] == by_source[0][-1]


def test_an_unreadable_file_of_a_mix_is_named_in_the_summary(clips, mix) -> None:
    broken = [clips.parent / "clips" / "03.mp4", clips.parent / "images" / "3.png"]  # row 3 of both indices
    for path in broken:
        path.write_bytes(b"")
    summary = train(settings(clips, "run", data=mix), progress=False)
    assert summary is not None and set(summary["replaced"]) == {str(path) for path in broken}
    assert (
        all(summary["replaced"].values()) and summary["num_replaced"] >= 2 + 4
    )  # 12 samples of 6 clips, 18 of 4 images


def test_epochs_of_a_mix_are_passes_over_data_train(clips, mix) -> None:
    run = settings(clips, "run", data=mix, optim={"total_steps": None, "epochs": 2})
    summary = train(run, progress=False)
    assert summary is not None and summary["sources"][0]["steps"] == 3  # 2 x 6 clips, 4 a step
    assert 5 <= summary["steps"] <= 7


def test_a_bad_source_of_a_mix_is_one_line_and_nothing_is_touched(clips) -> None:
    wrong = {
        "no such clip index": {"index": "missing.parquet"},
        "matches split=nowhere": {"index": str(clips), "where": {"split": "nowhere"}},
    }
    for message, source in wrong.items():
        with pytest.raises(UserError, match=message) as error:
            train(settings(clips, "run", data={"mix": [{"ratio": 0.5, **source}]}), progress=False)
        assert "\n" not in str(error.value) and not (clips.parent / "run").exists()


def test_a_mix_does_not_learn_from_what_is_measured(clips, mix) -> None:
    data = {
        "val": {"index": str(clips), "where": {"split": "val"}},
        "selection": {"index": str(clips), "where": {"split": "selection"}},
    }
    stills = {"index": str(clips), "ratio": 0.1, "num_frames": 1}
    with pytest.raises(UserError, match=r"data\.mix\.1: 4 of its 12 clips are in data\.val too"):
        train(settings(clips, "run", data={**data, "mix": [*mix["mix"], stills]}), progress=False)
    assert not (clips.parent / "run").exists()


@pytest.mark.parametrize("part", ["val", "selection"])
def test_pre_training_does_not_see_what_is_measured(clips, part) -> None:
    """Probes that learn from rows of their own leave data.train unchecked by their splits."""
    data = {name: {"index": str(clips), "where": {"split": name}} for name in ("val", "selection")}
    data["labelled"] = {"index": str(clips), "where": {"split": "train"}}
    data["train"] = {"index": str(clips), "where": {"split": ["train", part]}}
    with pytest.raises(UserError, match=rf"data\.train: \d+ of its \d+ clips are in data\.{part} too"):
        train(settings(clips, "run", data=data), progress=False)
    assert not (clips.parent / "run").exists()


def test_epochs_are_passes_over_the_clips(clips) -> None:
    run = settings(clips, "run", optim={"total_steps": None, "epochs": 2})
    summary = train(run, progress=False)
    assert summary is not None and summary["steps"] == 3  # 2 x 6 clips, 4 a step


def test_a_loss_that_is_not_finite_ends_the_run_and_what_is_saved_is_finite(clips) -> None:
    run = settings(clips, "run", optim={"lr": 1e30, "warmup_steps": 0, "clip_grad": None}, run={"save_every_steps": 1})
    with pytest.raises(UserError, match=r"was not finite in 3 steps in a row, up to step \d; lower optim\.lr"):
        train(run, progress=False)
    for tensor in weights(run.run.dir)["encoder.safetensors"].values():
        assert tensor.isfinite().all()


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 2), (signal.SIGHUP, 2), (signal.SIGINT, 1)])
def test_a_stop_of_the_whole_job_saves_costs_no_clip_and_the_same_command_goes_on(
    clips, prefetch, number, times
) -> None:
    """Slurm, systemd and shells send it to every process of a group, those that decode too; some send it twice."""
    run = settings(clips, "run", optim={"total_steps": 100_000}, data={"workers": 2, "prefetch": prefetch})
    (clips.parent / "run.yaml").write_text(config.dump(run))
    line = [sys.executable, "-m", "vjepa.train", str(clips.parent / "run.yaml")]
    output = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(line, **output, start_new_session=True, preexec_fn=hear_a_hang_up)
    metrics = Path(run.run.dir or "") / "metrics.jsonl"
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text()):
            time.sleep(0.1)
        for _ in range(times):
            os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75 and "the same command goes on from there" in stderr
    state = json.loads((Path(run.run.dir or "") / "checkpoints" / "latest" / "state.json").read_text())
    assert state["step"] == len(losses(run.run.dir)) > 0 and not state["unreadable"]
    assert not list(clips.parent.glob("*.quarantine.jsonl"))


def hear_a_hang_up() -> None:
    """Undo what `nohup`, under which these tests may run, asks of all programs below it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_second_process_in_one_run_folder_is_one_line(clips) -> None:
    """A job that was queued twice. One that was killed holds nothing."""
    run = settings(clips, "run", optim={"total_steps": 100_000}, run={"save_every_steps": 5})
    (clips.parent / "run.yaml").write_text(config.dump(run))
    line = [sys.executable, "-m", "vjepa.train", str(clips.parent / "run.yaml")]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and run.run.folder.latest is None:
        time.sleep(0.1)
    with pytest.raises(UserError, match=rf"process {process.pid} on \S+ trains here now"):
        train(run, progress=False)
    process.kill()
    process.wait()
    step = json.loads(run.run.folder.require().state.read_text())["step"]
    assert train(run, stop_at_step=step + 1, progress=False) is None
    assert json.loads(run.run.folder.require().state.read_text())["step"] == step + 1


def test_training_in_a_thread(clips) -> None:
    """Of a notebook or a server: signals are the main thread's."""
    found = []
    thread = threading.Thread(target=lambda: found.append(train(settings(clips, "run"), progress=False)))
    thread.start()
    thread.join()
    assert found and found[0]["steps"] == 6


def test_bad_input_is_one_line_and_nothing_is_touched(clips, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run = settings(clips, "run", optim={"total_steps": 1})
    train(run, progress=False)
    (tmp_path / "run.yaml").write_text(config.dump(run))

    def fails(*words: str) -> str:
        name, *options = words
        monkeypatch.setattr(sys, "argv", [name, *options])
        with pytest.raises(SystemExit) as exit:
            command.run(import_module(name).main)
        lines = [line for line in capsys.readouterr().err.splitlines() if line]
        assert exit.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    before = sorted(path for path in tmp_path.rglob("*"))
    train_it = ("vjepa.train", "run.yaml")
    assert f"optim.lr was {run.optim.lr}, now 0.1" in fails(*train_it, "optim.lr=.1")
    assert "missing.parquet" in fails(*train_it, "data.train=missing.parquet", "run.dir=new")
    assert "no mps device" in fails(*train_it, "run.device=mps", "run.dir=new")
    assert "nowhere" in fails(*train_it, "data.train.where.split=nowhere", "run.dir=new")
    assert "1x1 cells" in fails(*train_it, "data.crop_px=8", "masks=[{kind: tube}, {kind: tube}]", "run.dir=new")
    assert "no_such" in fails("data_prep.index", "no_such", "--out", "new.parquet")
    assert "neither a run" in fails(
        "vjepa.probe", "--model_path", "clips", "--dataset", "clips.parquet", "--eval_mode", "knn"
    )
    assert sorted(path for path in tmp_path.rglob("*")) == before

    latest = tmp_path / "run" / "checkpoints" / "latest"
    shutil.copy(latest / "predictor.safetensors", latest / "encoder.safetensors")
    assert "encoder.safetensors" in fails(*train_it)


def test_probe_command_measures_a_run(clips, tmp_path) -> None:
    run = settings(clips, "run", optim={"total_steps": 1})
    train(run, progress=False)
    for mode in ("knn", "linear_probe"):
        assert (
            probe.main(["--model_path", str(run.run.dir), "--dataset", str(clips), "--eval_mode", mode, "--no-cache"])
            == 0
        )
    results = json.loads((Path(run.run.dir or "") / "probe.json").read_text())
    assert [result["eval_mode"] for result in results] == ["knn", "linear_probe"]
    assert all(0 <= result["accuracy"] <= 1 for result in results)


def test_a_run_starts_from_the_weights_of_another(clips) -> None:
    train(settings(clips, "first"), progress=False)
    first = clips.parent / "first"
    second = settings(
        clips, "second", run={"init_from": str(first)}, optim={"total_steps": 1, "lr": 1e-12, "final_lr": 1e-12}
    )
    train(second, progress=False)
    before, after = (
        load_file(clips.parent / name / "checkpoints/latest/encoder.safetensors") for name in ("first", "second")
    )
    for key, tensor in before.items():
        np.testing.assert_allclose(after[key], tensor, atol=1e-6)
    kept = settings(clips, "kept", run={"init_from": str(first)})
    assert train(kept, stop_at_step=2, progress=False) is None
    moved = first.rename(clips.parent / "moved")
    assert train(kept, progress=False) is not None  # going on needs no other run
    moved.rename(first)
    wider = settings(
        clips,
        "third",
        run={"init_from": str(first)},
        model={"patch_px": 8, "encoder": {"width": 48, "depth": 2, "heads": 2}},
    )
    with pytest.raises(UserError, match=r"first has other networks than this run; give model\.encoder\.width=24$"):
        train(wider, progress=False)
    assert not (clips.parent / "third").exists()
    with pytest.raises(UserError, match=r"nothing: no such file or folder"):
        train(settings(clips, "fourth", run={"init_from": "nothing"}), progress=False)


def test_the_probe_during_training_changes_nothing_and_says_which_checkpoint_is_best(clips) -> None:
    val = {
        "data": {
            "val": {"index": str(clips), "where": {"split": "val"}},
            "selection": {"index": str(clips), "where": {"split": "selection"}},
        }
    }
    model = {"encoder": {"width": 24, "depth": 2, "heads": 2, "drop_path": 0.2}}
    probed = {**val, "eval": {"every_steps": 2}, "run": {"keep_checkpoints": 1, "save_every_steps": 3}, "model": model}
    watched = settings(clips, "watched", **probed)
    plain = settings(clips, "plain", **val, model=model)
    summary = train(watched, progress=False)
    train(plain, progress=False)
    assert losses(watched.run.dir) == losses(plain.run.dir) and same_weights(watched, plain)
    seen = {row["step"]: (row["knn"], row["knn_random_init"]) for row in metrics(watched.run.dir) if "knn" in row}
    assert list(seen) == [2, 4, 6] and len({random for _, random in seen.values()}) == 1
    checkpoints = Path(watched.run.dir, "checkpoints")
    first_best = max(seen, key=lambda step: (seen[step][0], -step))
    assert summary["measured"] == {"encoder": "encoder", "step": first_best}
    assert (checkpoints / "best").resolve().name == f"step-{first_best:08}" and (
        checkpoints / "latest"
    ).resolve().name == "step-00000006"
    assert {path.name for path in checkpoints.glob("step-*")} == {f"step-{first_best:08}", "step-00000006"}
    video = torch.rand(1, 3, 4, 16, 16)
    for folder, best in ((watched.run.dir, "best"), (plain.run.dir, "latest")):
        place = Path(folder, "checkpoints")
        assert torch.equal(
            load_encoder(place / "best.pth")(video), load_encoder((place / best).resolve(), which="encoder")(video)
        )
    resumed = settings(clips, "resumed", **probed)
    train(resumed, stop_at_step=3, progress=False)
    train(resumed, progress=False)
    assert (
        metrics(resumed.run.dir)[-1]["knn"] == seen[6][0]
        and Path(resumed.run.dir, "checkpoints/best").resolve().name == f"step-{first_best:08}"
    )


def test_a_probe_during_training_needs_labelled_clips(clips) -> None:
    with pytest.raises(UserError, match=r"eval\.every_steps: probes need labelled clips"):
        settings(clips, "x", eval={"every_steps": 2})
