"""Engines: every file gets its answer, wherever it is scanned and whatever is lost on the way."""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from data_prep.listing.entry import Entry
from data_prep.scanning import engines
from data_prep.scanning.build import build_index
from data_prep.scanning.engines import LOST, Work, scan_in_processes
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.track import FileScan
from vjepa.errors import UserError

WORK = Work(ScanOptions(), deadline_s=60.0, workers=2)


def test_processes_answer_for_every_file_as_it_is_numbered(make_video, tmp_path):
    entries = [Entry(str(make_video(f"{name}.mp4", 3 + i)), name) for i, name in enumerate("abc")]
    entries.insert(1, Entry(str(tmp_path / "none.mp4"), "none"))
    answers = {number: found.clips(ScanOptions())[0] for number, found in scan_in_processes(iter(entries), WORK)}
    assert [answers[number]["num_frames"] for number in range(4)] == [3, 0, 4, 5]
    assert "No such file" in answers[1]["status"]


class FakeRay:
    """Actors that answer at once, in the order in which they were asked; names of files say what befalls them.

    num_places: actors that find a place; the others wait for ever. broken: how many of these cannot start.
    """

    class RayError(Exception):
        pass

    def __init__(self, num_places, broken=0):
        self.exceptions = SimpleNamespace(RayError=self.RayError)
        self.num_places, self.broken = num_places, broken
        self.actors, self.killed = [], []

    def cluster_resources(self):
        return {"CPU": 3.0}

    def remote(self, **_):
        return lambda actor: SimpleNamespace(remote=self._start)

    def _start(self, work):
        number = len(self.actors)
        waits = number >= self.num_places
        ready = self._call("waits" if waits else "breaks" if number < self.broken else None)
        self.actors.append(SimpleNamespace(ready=ready, scan=self._call(None)))
        return self.actors[-1]

    def _call(self, fate):
        return SimpleNamespace(remote=lambda entry=None: _Ref(fate, entry))

    def wait(self, refs, num_returns):
        assert refs and num_returns == 1
        done = next(ref for ref in refs if ref.fate != "waits")
        return [done], [ref for ref in refs if ref is not done]

    def get(self, ref):
        name = ref.entry.name if ref.entry else ""
        if ref.fate == "breaks" or name == "lost":
            raise self.RayError("No module\nnamed 'data_prep'")
        return FileScan({"codec": name})

    def kill(self, actor):
        self.killed.append(actor)


class _Ref:
    def __init__(self, fate, entry):
        self.fate, self.entry = fate, entry


def hand_out(ray, names, workers=None):
    entries = enumerate(Entry(f"/{name}", name) for name in names)
    return dict(engines._hand_out(ray, entries, Work(ScanOptions(), 60.0, workers)))


@pytest.mark.fast
@pytest.mark.parametrize(("num_places", "broken", "workers"), [(3, 0, None), (1, 0, None), (2, 1, 9), (3, 2, 3)])
def test_actors_that_have_no_place_or_cannot_start_get_nothing(num_places, broken, workers):
    ray = FakeRay(num_places, broken)
    answers = hand_out(ray, ["a", "b", "c", "d", "e"], workers)
    assert [answers[number].columns["codec"] for number in range(5)] == ["a", "b", "c", "d", "e"]
    assert len(ray.actors) == (workers or 3) and ray.killed == ray.actors


@pytest.mark.fast
def test_a_file_whose_machines_were_lost_has_a_reason_and_is_tried_again_by_a_new_scan():
    answers = hand_out(FakeRay(2), ["a", "lost", "c"])
    assert [answers[number].status for number in (0, 2)] == [None, None] and answers[1].status.startswith(LOST)
    assert "file_bytes" not in answers[1].columns  # so that it differs from what the file is like


@pytest.mark.fast
def test_a_cluster_without_this_program_is_named():
    ray = FakeRay(2, broken=2)
    with pytest.raises(
        UserError,
        match=r"no actor could start; install video-jepa on every node of the cluster \(No module named 'data_prep'\)",
    ):
        hand_out(ray, ["a"], workers=2)
    assert ray.killed == ray.actors


def test_ray_makes_the_same_index_though_an_actor_is_killed(make_video, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    for i in range(6):
        make_video(f"clips/{i}.mp4", 3 + i)
    (tmp_path / "clips/2.mp4").write_text("text")
    build_index(tmp_path / "clips", tmp_path / "here.parquet", workers=1, progress=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(engines.__file__).parents[1]))

    def engine(entries, work):
        for place, answer in enumerate(engines.scan_on_ray(entries, work)):
            yield answer
            if place == 0:
                _kill_an_actor()

    ray.init(num_cpus=2, object_store_memory=80 << 20, log_to_driver=False, include_dashboard=False)
    try:
        monkeypatch.setitem(engines.ENGINES, "ray", engine)
        build_index(tmp_path / "clips", tmp_path / "ray.parquet", workers=2, progress=False, engine="ray")
    finally:
        ray.shutdown()
    assert pq.read_table(tmp_path / "ray.parquet").equals(pq.read_table(tmp_path / "here.parquet"))
    assert [path.name for path in tmp_path.glob(".*.jsonl")] == []


def test_an_address_where_nothing_answers_is_one_line_at_once(monkeypatch):
    """Ray itself asks again for minutes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=f"engine ray: no Ray cluster answers at {address}"):
        engines._connect(FakeRay(num_places=1))


def _kill_an_actor():
    """One of the actors of this very process, of which Ray writes the name where their command lines were."""
    if sys.platform != "linux":
        return
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            if _command(folder).startswith(b"ray::_Actor") and os.getpid() in _ancestors(int(folder.name)):
                os.kill(int(folder.name), signal.SIGKILL)
                return
    pytest.fail("no actor was found")


def _command(folder):
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:
        return b""


def _ancestors(pid):
    try:
        while pid > 1:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            yield pid
    except OSError:
        return
