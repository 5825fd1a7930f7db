"""A decoder that hangs or crashes costs its clip, not the run: killed, named, in quarantine, and everything else as it
would be.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import scanned
from hang import DeadOnArrival, Trouble

from vjepa.config import Data
from vjepa.data.clip_index import ClipIndex, write_index
from vjepa.data.images import ArrayImages, ReadImages
from vjepa.data.loader import ClipLoader, eval_loader, plan_loader, train_loader
from vjepa.data.plan_rows import RowPlan, Views
from vjepa.data.plan_training import TrainPlan
from vjepa.data.quarantine import quarantine_path, quarantined
from vjepa.data.reader import Reader
from vjepa.data.sources import Part, TrainSource
from vjepa.errors import UserError


@pytest.fixture
def index(make_video, tmp_path):
    rows = [
        {"uri": f"clips/{i}.mp4", "label_id": -1} | scanned(make_video(f"clips/{i}.mp4", 16, mark=True))
        for i in range(5)
    ]
    write_index(tmp_path / "x.parquet", rows)
    return ClipIndex.open(tmp_path / "x.parquet")


def settings(**changes):
    return Data(
        **{
            "train": {"index": "x.parquet"},
            "num_frames": 4,
            "crop_px": 16,
            "global_batch": 4,
            "workers": 2,
            "deadline_s": 1.0,
        }
        | changes
    )


def source(index, data):
    return [TrainSource("data.train", data, (Part("data.train", index, index.select({})),))]


def plain(index, data):
    return Reader(TrainPlan(source(index, data), data, 0))


def troubled(index, tmp_path, how, data):
    return Reader(TrainPlan(source(index, data), data, 0), Trouble(tmp_path / "notes", how))


def equal(one, other):
    return torch.equal(one.video, other.video) and torch.equal(one.clip_ids, other.clip_ids)


@pytest.mark.parametrize(("how", "reason"), [("spin", "took longer than 1 s"), ("crash", "SIGSEGV")])
def test_a_decoder_that_spins_with_the_gil_or_crashes_is_replaced_and_its_clip_named(
    index, tmp_path, capfd, how, reason
):
    data = settings()
    expected = [plain(index, data)[step] for step in range(10)]
    batches = list(ClipLoader(troubled(index, tmp_path, how, data), range(10), data))
    assert len(batches) == 10
    for batch, without_trouble in zip(batches, expected, strict=True):
        same = without_trouble.clip_ids != 2
        assert not (batch.clip_ids == 2).any() and batch.num_replaced == int((~same).sum())
        assert equal_at(batch, without_trouble, same)
        assert all(clip_id == 2 and reason in why for clip_id, why in batch.failures)
    (line,) = quarantine_path(index.path).read_text().splitlines()
    assert json.loads(line)["uri"] == "clips/2.mp4" and reason in json.loads(line)["reason"]
    said = capfd.readouterr().err
    assert said.count("clips/2.mp4") == 1 and reason in said and "x.parquet.quarantine.jsonl" in said
    assert (
        len((tmp_path / "notes").read_text().splitlines()) <= 2
    )  # both processes may have begun it before the first was late


def equal_at(one, other, places):
    return torch.equal(one.video[places], other.video[places]) and torch.equal(
        one.clip_ids[places], other.clip_ids[places]
    )


def test_later_runs_read_the_quarantine_and_give_the_same_batches_at_once(index, tmp_path):
    data = settings()
    first = list(ClipLoader(troubled(index, tmp_path, "crash", data), range(6), data))
    for workers in (0, 1):
        later = list(train_loader(source(index, data), settings(workers=workers), 0, range(6)))
        assert all(equal(*pair) for pair in zip(first, later, strict=True))
        assert {why for batch in later for _, why in batch.failures} == {
            f"in quarantine: {quarantined(index)[2].removeprefix('in quarantine: ')}"
        }
    (batch,) = eval_loader(index, np.arange(5), settings(), 5, 0)
    assert batch.clip_ids.tolist() == [0, 1, 3, 4] and [i for i, _ in batch.failures] == [2]


def test_a_process_that_was_killed_once_for_want_of_memory_does_not_cost_its_clip(index, tmp_path):
    data = settings()
    batches = list(ClipLoader(troubled(index, tmp_path, "killed", data), range(6), data))
    expected = [plain(index, data)[step] for step in range(6)]
    assert (
        all(equal(*pair) for pair in zip(batches, expected, strict=True)) and not quarantine_path(index.path).exists()
    )


def test_evaluation_leaves_the_clip_out_and_names_it(index, tmp_path):
    plan = RowPlan(index, np.arange(5), settings(workers=1), 2, Views())
    batches = list(plan_loader(plan, plan.data, Trouble(tmp_path / "notes")))
    assert [batch.clip_ids.tolist() for batch in batches] == [[0, 1], [3], [4]] and "took longer" in batches[
        1
    ].failures[0][1]


def test_a_picture_that_crashes_its_process_is_left_out_of_the_run(tmp_path, capfd):
    images = ArrayImages("noise", np.zeros((5, 16, 16, 3), np.uint8))
    plan = RowPlan(images, np.arange(5), settings(num_frames=1), 2, Views())
    trouble = Trouble(tmp_path / "notes", "crash", read=ReadImages(images))
    batches = list(plan_loader(plan, plan.data, trouble))
    assert [batch.clip_ids.tolist() for batch in batches] == [[0, 1], [3], [4]]
    assert [clip_id for clip_id, _ in batches[1].failures] == [2] and "SIGSEGV" in batches[1].failures[0][1]
    said = capfd.readouterr().err
    assert "noise image 2: the decoder crashed (SIGSEGV); the clip is left out of this run alone" in said


def test_a_process_that_dies_without_reading_ends_the_run_in_one_line(index):
    data = settings()
    with pytest.raises(UserError, match=r"a decoding process died \(exit code 3\)"):
        list(ClipLoader(Reader(DeadOnArrival(source(index, data), data, 0)), range(3), data))


def test_no_process_is_left_when_the_reader_goes_away(index):
    batches = iter(train_loader(source(index, settings()), settings(), 0, range(1000)))
    next(batches)
    pids = [worker.process.pid for worker in batches.gi_frame.f_locals["self"].workers]
    batches.close()
    deadline = time.monotonic() + 10
    while any(map(exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2 and not any(map(exists, pids))


def exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


TRAINER = """
import sys, time
from pathlib import Path
from hang import Trouble
from vjepa.config import Data
from vjepa.data.loader import ClipLoader
from vjepa.data.plan_training import TrainPlan
from vjepa.data.reader import Reader
from vjepa.data.sources import open_sources

if __name__ == "__main__":
    data = Data(train={"index": sys.argv[1]}, num_frames=4, crop_px=16, global_batch=4, deadline_s=600)
    reader = Reader(TrainPlan(open_sources(data), data, 0), Trouble(Path(sys.argv[2]), bad_row=int(sys.argv[3])))
    batches = iter(ClipLoader(reader, range(1000), data))
    next(batches)
    print("running", flush=True)
    time.sleep(600)
"""


def descendants(pid):
    """The processes that are there below `pid`; those that are dead and wait for their parent do not count."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            parents[int(stat.parent.name)] = int(parent) if state != "Z" else None
    found, seen = {pid}, 0
    while len(found) > seen:
        seen = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {pid}


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


HELD_BY_AN_ERROR = """
import sys
from vjepa.config import Data
from vjepa.data.clip_index import ClipIndex
from vjepa.data.loader import eval_loader
index = ClipIndex.open("x.parquet")
data = Data(train={"index": "x.parquet"}, num_frames=4, crop_px=16, global_batch=4)
batches = iter(eval_loader(index, index.select({}), data, 1, 2))
next(batches)
held = [batches]
held.append(held)
sys.exit(3)
"""


def test_processes_that_an_error_holds_do_not_keep_a_program_from_its_end(index, tmp_path):
    """A full disk ends a run by an error whose traceback is part of a circle, so nothing is closed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    program = [sys.executable, "-c", HELD_BY_AN_ERROR]
    assert subprocess.run(program, cwd=tmp_path, env=environment, timeout=300, check=False).returncode == 3


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("doing", ["waiting", "spinning with the GIL"])
def test_no_process_outlives_a_trainer_that_is_killed(index, tmp_path, doing):
    (tmp_path / "trainer.py").write_text(TRAINER)
    bad_row = 2 if doing != "waiting" else -1
    command = [sys.executable, str(tmp_path / "trainer.py"), str(index.path), str(tmp_path / "notes"), str(bad_row)]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    try:
        if doing == "waiting":
            assert trainer.stdout.readline() == "running\n"
        else:
            wait_until((tmp_path / "notes").exists, 60)
        below = descendants(trainer.pid)
        assert len(below) >= 3  # the fork server and two processes that decode
    finally:
        trainer.kill()
        trainer.wait()
        trainer.stdout.close()
    wait_until(lambda: not any(map(is_alive, below)), 60)
    left = [pid for pid in below if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_file_that_changed_leaves_quarantine(index):
    quarantine_path(index.path).write_text(
        json.dumps(
            {"uri": "clips/2.mp4", "offset": None, "first_frame": 0, "content_hash": "another", "reason": "took longer"}
        )
        + "\n"
    )
    assert quarantined(index) == {}


def test_a_damaged_line_of_the_quarantine_is_named(index):
    quarantine_path(index.path).write_text("text\n")
    with pytest.raises(UserError, match=r"x\.parquet\.quarantine\.jsonl: line 1"):
        quarantined(index)
