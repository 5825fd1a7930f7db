"""Engines: every task gets its answer, wherever it is done and whatever is lost on the way."""

import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from data_prep import engines
from data_prep.copying.shard import ShardOptions, make_shards
from data_prep.copying.transcode import transcode
from data_prep.engines import in_processes
from data_prep.listing.entry import Entry
from data_prep.scanning.build import build_index
from data_prep.scanning.options import ScanOptions
from data_prep.scanning.scanner import LOST, Scan
from data_prep.scanning.track import FileScan
from vjepa.data.clip_index import ClipIndex
from vjepa.errors import UserError

SCAN = Scan(ScanOptions(), deadline_s=60.0)


def test_processes_answer_for_every_file_as_it_is_numbered(make_video, tmp_path):
    entries = [Entry(str(make_video(f"{name}.mp4", 3 + i)), name) for i, name in enumerate("abc")]
    entries.insert(1, Entry(str(tmp_path / "none.mp4"), "none"))
    found = dict(in_processes(enumerate(entries), SCAN, workers=2))
    answers = {number: scan.clips(ScanOptions())[0] for number, scan in found.items()}
    assert [answers[number]["num_frames"] for number in range(4)] == [3, 0, 4, 5]
    assert "No such file" in answers[1]["status"]


class FakeRay:
    """Actors that answer at once, in the order in which they were asked; names of files say what befalls them.

    num_places: actors that find a place; the others wait for ever. broken: how many of these cannot start.
    """

    class RayError(Exception):
        pass

    class RayTaskError(RayError):
        cause = UserError("no space")

    def __init__(self, num_places, broken=0):
        self.exceptions = SimpleNamespace(RayError=self.RayError, RayTaskError=self.RayTaskError)
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
        self.actors.append(SimpleNamespace(ready=ready, do=self._call(None)))
        return self.actors[-1]

    def _call(self, fate):
        return SimpleNamespace(remote=lambda task=(0, None): _Ref(fate, *task))

    def wait(self, refs, num_returns):
        assert refs and num_returns == 1
        done = next(ref for ref in refs if ref.fate != "waits")
        return [done], [ref for ref in refs if ref is not done]

    def get(self, ref):
        name = ref.entry.name if ref.entry else ""
        if ref.fate == "breaks" or name == "lost":
            raise self.RayError("No module\nnamed 'data_prep'")
        if name == "raises":
            raise self.RayTaskError
        return [(ref.number, FileScan({"codec": name}))]

    def kill(self, actor):
        self.killed.append(actor)


class _Ref:
    def __init__(self, fate, number, entry):
        self.fate, self.number, self.entry = fate, number, entry


def hand_out(ray, names, workers=None):
    entries = enumerate(Entry(f"/{name}", name) for name in names)
    return dict(engines._hand_out(ray, entries, SCAN, workers))


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
def test_what_the_work_raises_there_is_raised_here():
    ray = FakeRay(2)
    with pytest.raises(UserError, match="no space"):
        hand_out(ray, ["a", "raises", "c"])
    assert ray.killed == ray.actors


@pytest.mark.fast
def test_a_cluster_without_this_program_is_named():
    ray = FakeRay(2, broken=2)
    with pytest.raises(
        UserError,
        match=r"no actor could start; install video-jepa on every node of the cluster \(No module named 'data_prep'\)",
    ):
        hand_out(ray, ["a"], workers=2)
    assert ray.killed == ray.actors


@pytest.fixture(scope="module")
def cluster():
    """A local one, of which the nodes find this program."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(engines.__file__).parents[1]))
        ray.init(num_cpus=2, object_store_memory=80 << 20, log_to_driver=False, include_dashboard=False)
        yield
        ray.shutdown()


@pytest.fixture
def losing(cluster, monkeypatch):
    """An engine ray of which an actor is killed after the first result."""

    def engine(*given):
        for place, answer in enumerate(engines.on_ray(*given)):
            yield answer
            if place == 0:
                _kill_an_actor()

    monkeypatch.setitem(engines.ENGINES, "ray", engine)


def folder_of_clips(make_video, tmp_path):
    for i in range(6):
        make_video(f"clips/{i}.mp4", 3 + i)
    (tmp_path / "clips/2.mp4").write_text("text")
    return build_index(tmp_path / "clips", tmp_path / "here.parquet", workers=1, progress=False)


def same_but_the_time(one, other):
    """All that two folders of copies hold is the same, save when the copies were written."""
    files = [{str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in (one, other)]
    assert files[0] == files[1]
    media = [name for name in files[0] if name.endswith((".mp4", ".tar"))]
    assert media and all((one / name).read_bytes() == (other / name).read_bytes() for name in media)
    tables = [pq.read_table(folder / "index.parquet").drop_columns(["modified_ns"]) for folder in (one, other)]
    return tables[0].equals(tables[1])


def test_ray_makes_the_same_index_though_an_actor_is_killed(losing, make_video, tmp_path):
    folder_of_clips(make_video, tmp_path)
    build_index(tmp_path / "clips", tmp_path / "ray.parquet", workers=2, progress=False, engine="ray")
    assert pq.read_table(tmp_path / "ray.parquet").equals(pq.read_table(tmp_path / "here.parquet"))
    assert [path.name for path in tmp_path.glob(".*.jsonl")] == []


def test_ray_makes_the_same_copies_though_an_actor_is_killed(losing, make_video, tmp_path):
    index = folder_of_clips(make_video, tmp_path)
    for name, engine in (("here", "processes"), ("ray", "ray")):
        transcode(index, tmp_path / name, workers=2, progress=False, engine=engine)
    assert same_but_the_time(tmp_path / "here", tmp_path / "ray")


def test_ray_makes_the_same_shards_in_their_order_though_an_actor_is_killed(losing, make_video, tmp_path):
    index = folder_of_clips(make_video, tmp_path)
    for name, engine in (("here", "processes"), ("ray", "ray")):
        make_shards(index, tmp_path / name, ShardOptions(num_shards=4), workers=2, progress=False, engine=engine)
    assert same_but_the_time(tmp_path / "here", tmp_path / "ray")
    assert ClipIndex.open(tmp_path / "ray/index.parquet").uris() == sorted(
        ClipIndex.open(tmp_path / "ray/index.parquet").uris()
    )


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
