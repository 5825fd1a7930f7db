"""Fine-tuning as a run: what it starts from, that it resumes bit for bit, what it measures, what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import metrics, settings, weights

import vjepa
from vjepa import config, finetune, report
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.loader import train_loader
from vjepa.data.rand_augment import RandAugment
from vjepa.errors import UserError
from vjepa.interop.probes import load_probe
from vjepa.jepa import build
from vjepa.probing.banks import Bank
from vjepa.probing.classifying import Network, SelectionJudge, answer, labels_of
from vjepa.probing.datasets import Views
from vjepa.probing.protocol import Examples, ProbeMethod, fit_probe
from vjepa.training import checkpoint, finetuning, finetuning_start
from vjepa.training.optim import make_optimizer

PLAIN = [
    "run.device=cpu", "run.precision=fp32", "run.log_every_steps=1", "run.save_every_steps=2", "data.workers=0",
    "optim.total_steps=4", "finetune.rand_augment_ops=1", "test.batch=4", "finetune.eval_every_steps=2",
]  # fmt: skip


@pytest.fixture
def start(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of pre-training, at its first step; features are kept in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = settings(clips, "start")
    method = build(run)
    run.run.folder.path.mkdir()
    run.run.folder.config.write_text(config.dump(run))
    checkpoint.save(run.run.folder, method, make_optimizer(method, run.optim), checkpoint.TrainingState(1), keep=1)
    return Path(run.run.dir or "")


def tuned(start: Path, clips: Path, name: str, *overrides: str, scratch: bool = False) -> config.FinetuneConfig:
    words = [*PLAIN, f"run.dir={start.parent / name}", *overrides]
    return finetuning_start.resolve(config.read_tree(None, words), str(start), [str(clips)], scratch)


def test_a_run_measures_itself_beside_the_frozen_probes(start: Path, clips: Path, capsys) -> None:
    wanted = tuned(start, clips, "tuned", "test.probes=[knn,linear,attentive]", "test.num_clips=2", "test.scratch=true")
    summary = finetuning.finetune(wanted, progress=False)
    kinds = ["fine-tuned", "from scratch", "frozen, knn", "frozen, linear", "frozen, attentive", "chance"]
    assert summary is not None and list(summary["kinds"]) == kinds
    assert all(
        0 <= one["top1"]["low"] <= one["top1"]["value"] <= one["top1"]["high"] for one in summary["kinds"].values()
    )
    assert summary["num_clips"] == {"train": 6, "selection": 2, "val": 4} and summary["scores"]["num_clips"] == 4
    rows = [row for row in metrics(wanted.run.dir) if "selection_accuracy" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert report.main([str(wanted.run.dir)]) == 0
    table = capsys.readouterr().out
    assert all(f"  {kind} " in table for kind in kinds) and "2 clips x 1 crops" in table
    assert finetuning.finetune(wanted, progress=False) == summary  # shown again, not learned again
    assert {path.name for path in (Path(wanted.run.dir) / "pictures").iterdir()} >= {
        "loss_curve.png",
        "label_confusion.png",
    }


@pytest.mark.parametrize("more", [(), ("finetune.head=attentive", "finetune.ema=true")], ids=["mean", "attentive, ema"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(start: Path, clips: Path, more: tuple[str, ...]) -> None:
    straight = tuned(start, clips, "straight", "test.probes=[]", *more)
    finetuning.finetune(straight, progress=False)
    pieces = tuned(start, clips, "pieces", "test.probes=[]", *more)
    for stop, workers in ((1, 0), (3, 1), (None, 0)):
        piece = tuned(start, clips, "pieces", "test.probes=[]", f"data.workers={workers}", *more)
        finetuning.finetune(piece, stop, progress=False)
    first, second = weights(straight.run.dir), weights(pieces.run.dir)
    assert first.keys() == second.keys() == {f"{name}.safetensors" for name in (*straight.networks, "optimizer")}
    for file, tensors in first.items():
        for name, tensor in tensors.items():
            assert torch.equal(second[file][name], tensor), (file, name)
    told = [
        [
            {k: v for k, v in row.items() if k not in ("clips_per_s", "wait_share", "waited")}
            for row in metrics(one.run.dir)
        ]
        for one in (straight, pieces)
    ]
    assert [row["loss"] for row in told[0]] == [row["loss"] for row in told[1]]


def test_clips_are_changed_by_the_number_of_their_sample_wherever_they_are_read(start: Path, clips: Path) -> None:
    """The process that reads them makes no difference, nor what else is in the batch."""
    given = ("finetune.rand_augment_ops=2", "data.global_batch=4", "test.probes=[]")
    loaded = {}
    for name, words in {"plain": ("finetune.rand_augment_ops=0",), "here": (), "there": ("data.workers=2",)}.items():
        run, _, _ = finetuning.prepare(tuned(start, clips, name, *given, *words), progress=False)
        loaded[name] = list(train_loader(run.sources, run.settings.data, run.settings.run.seed, range(3)))
    change, num_changed = RandAugment(2, 9, seed=0), 0
    for step, (plain, here, there) in enumerate(zip(*loaded.values(), strict=True)):
        assert torch.equal(plain.clip_ids, here.clip_ids) and torch.equal(here.video, there.video)
        for place, clip in enumerate(plain.video):
            assert torch.equal(change(step * 4 + place, clip), here.video[place])
            num_changed += not torch.equal(clip, here.video[place])
    assert num_changed > 6


def small_images(root: Path) -> Path:
    """Write a folder of 20 pictures of two classes, the one bright, the other dark."""
    rng = np.random.default_rng(0)
    for number in range(20):
        place = root / ("train" if number < 12 else "val") / ["dark", "bright"][number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (20, 24, 3)) + 160 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_folders_of_images_are_learned_as_vjepa_probe_reads_them(start: Path, tmp_path: Path, workers: int) -> None:
    images = small_images(tmp_path / "images")
    wanted = tuned(start, images, f"tuned{workers}", f"data.workers={workers}", "optim.total_steps=20")
    assert wanted.data.num_frames == 1
    summary = finetuning.finetune(wanted, progress=False)
    assert summary is not None and summary["num_clips"] == {"train": 10, "selection": 2, "val": 8}
    assert summary["kinds"]["fine-tuned"]["top1"]["value"] == 1.0
    assert load_probe(wanted.run.folder.head).classes == ("bright", "dark")
    for words, problem in {
        ("finetune.label=taste",): "--label: is for clip indexes",
        ("data.num_frames=4",): r"data\.num_frames: .* has images",
        ("data.train.where.split=train",): r"data\.train: is for clip indexes",
    }.items():
        with pytest.raises(UserError, match=problem):
            finetuning.prepare(tuned(start, images, "other", *words), progress=False)


def test_several_indexes_are_learned_as_one(start: Path, clips: Path, tmp_path: Path) -> None:
    records = list(ClipIndex.open(clips).records())
    halves = []
    for name, some in {"a": records[::2], "b": records[1::2]}.items():
        halves.append(str(clips.with_name(f"{name}.parquet")))
        write_index(Path(halves[-1]), some)
    words = [*PLAIN, f"run.dir={tmp_path / 'halves'}", "test.probes=[]"]
    wanted = finetuning_start.resolve(config.read_tree(None, words), str(start), halves)
    assert wanted.data.train.index == halves
    summary = finetuning.finetune(wanted, progress=False)
    assert summary is not None and summary["num_clips"]["val"] == 4
    assert sum(summary["num_clips"].values()) == 12


def test_the_head_starts_as_the_linear_probe_of_the_frozen_start(start: Path, clips: Path) -> None:
    wanted = tuned(start, clips, "tuned")
    run, method, work = finetuning.prepare(wanted, progress=False)
    network = Network(method.encoder.eval(), method.head.eval(), run.device, run.dtype)
    finetuning_start.start_head(wanted, network, work.dataset, work.classes, shown=False)
    trial, source = work.dataset.trials[0], work.dataset.source
    answers = answer(network, source, trial.test, Views(), 4)
    encoder = vjepa.load_encoder(start)
    values = []
    for batch in source.loader(np.concatenate([trial.train, trial.selection, trial.test]), Views(), 4):
        values.append(network.tokens(batch.video).mean(1))
    ids = np.concatenate([trial.train, trial.selection, trial.test])
    bank = Bank(torch.cat(values)[:, None, None].detach().half(), ids, ())
    parts = [
        Examples.of(bank, part, labels_of(work.dataset), "x") for part in (trial.train, trial.selection, trial.test)
    ]
    probe = fit_probe(ProbeMethod("linear"), parts[0], parts[1], [parts[2]])
    np.testing.assert_allclose(answers.values, probe.answers[0], atol=2e-3)
    assert encoder.width == 24


def test_frozen_layers_stay_and_the_others_learn(start: Path, clips: Path) -> None:
    wanted = tuned(start, clips, "tuned", "finetune.freeze_layers=2", "test.probes=[]")
    finetuning.finetune(wanted, progress=False)
    before, after = (
        load_file(run.newest.network("encoder")) for run in (config.Run(dir=str(start)).folder, wanted.run.folder)
    )
    for name, tensor in before.items():
        is_frozen = name.startswith(("patch_embed", "blocks.0."))
        assert torch.equal(after[name], tensor) is is_frozen, name


def test_a_fine_tuned_run_is_an_encoder_and_a_head(start: Path, clips: Path) -> None:
    wanted = tuned(start, clips, "tuned", "test.probes=[]", "finetune.ema=true")
    finetuning.finetune(wanted, progress=False)
    video = torch.randn(1, 3, 4, 16, 16)
    head = load_probe(wanted.run.folder.head)
    assert head.classes == ("marked", "plain")
    averaged, learned = (
        vjepa.load_encoder(wanted.run.folder.path),
        vjepa.load_encoder(wanted.run.folder.path, which="encoder"),
    )
    assert head(averaged(video)).shape == (1, 2)
    assert not torch.equal(averaged(video), learned(video))
    assert (
        torch.equal(vjepa.load_encoder(wanted.run.folder.best_file)(video), averaged(video)) or wanted.run.folder.best
    )


def test_from_scratch_starts_at_the_untrained_encoder(start: Path, clips: Path) -> None:
    _, method, _ = finetuning.prepare(tuned(start, clips, "scratch", "run.seed=1", scratch=True), progress=False)
    trained = vjepa.load_encoder(start)
    again = finetuning.prepare(tuned(start, clips, "scratch", "run.seed=1", scratch=True), progress=False)[1]
    for name, tensor in method.encoder.state_dict().items():
        assert torch.equal(tensor, again.encoder.state_dict()[name])
    assert set(method.lr_scales().values()) == {1.0}
    assert any(
        not torch.equal(tensor, trained.state_dict()[name]) for name, tensor in method.encoder.state_dict().items()
    )


def test_the_judge_prefers_right_answers_then_the_smaller_loss() -> None:
    judge = SelectionJudge.__new__(SelectionJudge)
    judge.num_clips = 10
    best, sure, unsure = (
        {"selection_accuracy": right, "selection_loss": loss} for right, loss in ((0.6, 9.0), (0.5, 0.1), (0.5, 0.2))
    )
    assert judge.merit(best) > judge.merit(sure) > judge.merit(unsure)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetune.lable=x"], "finetune.lable: unknown key; did you mean 'label'?"),
        (["model.patch_px=4"], "model.patch_px: the networks are those of the start"),
        (["data.mix=[{index: a, ratio: 0.5}]"], "data.mix: is for pre-training"),
        (["finetune.label=nothing"], "nothing"),
        (["finetune.freeze_layers=9"], "finetune.freeze_layers: 9 of 4 layers"),
        (["finetune.head=attentive", "finetune.head_heads=7"], "finetune.head_heads: 7 do not divide the 24 features"),
        (["data.val.where.split=train"], "data.val: 6 of its 6 clips are in data.train too"),
        (["optim.epochs=1", "optim.total_steps=3"], "optim.total_steps: give either total_steps or epochs"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(start: Path, clips: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        finetuning.prepare(tuned(start, clips, "refused", *words), progress=False)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (start.parent / "refused").exists()


def test_another_config_is_refused_and_other_test_settings_are_measured_again(start: Path, clips: Path) -> None:
    finetuning.finetune(tuned(start, clips, "tuned", "test.probes=[]"), progress=False)
    with pytest.raises(UserError, match="made with another config"):
        finetuning.finetune(tuned(start, clips, "tuned", "test.probes=[]", "finetune.mixup=0.5"), progress=False)
    summary = finetuning.finetune(tuned(start, clips, "tuned", "test.probes=[knn]"), progress=False)
    assert summary is not None and "frozen, knn" in summary["kinds"]


def test_the_command_is_stopped_by_a_signal_and_goes_on(start: Path, clips: Path, tmp_path: Path) -> None:
    words = [*PLAIN, f"run.dir={tmp_path / 'tuned'}", "test.probes=[]", "optim.total_steps=100000"]
    command = [sys.executable, "-m", "vjepa.finetune", "--model_path", str(start), "--dataset", str(clips), *words]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "tuned" / "metrics.jsonl").is_file() and running.poll() is None:
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate()
    assert running.returncode == finetune.STOPPED_EARLY, errors
    steps = json.loads((tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert finetune.main([*command[3:], f"--stop-at-step={steps + 1}"]) == 0
    assert metrics(str(tmp_path / "tuned"))[-1]["step"] == steps + 1
