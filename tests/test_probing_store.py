"""Features on disk: made once, found by what they depend on, never half there."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from vjepa.data.plan_rows import Passes, Views
from vjepa.errors import UserError
from vjepa.probing.banks import Extractor, InMemory
from vjepa.probing.banks import SampleViews as seen
from vjepa.probing.store import Store, default_folder
from vjepa.ranks import Ranks
from vjepa.records import ClipBatch

pytestmark = pytest.mark.fast
IDS = np.arange(10, 17)


@dataclass
class Samples:
    """Seven clips whose grey level is their number, of which some cannot be read."""

    broken: tuple[int, ...] = ()
    passes: list[list[int]] = field(default_factory=list)
    die_at: int | None = None

    def facts(self, clip_ids, views):
        return {"ids": clip_ids.tolist(), "views": str(views)}

    def loader(self, clip_ids, views, batch):
        self.passes.append(clip_ids.tolist())
        num = views.num if isinstance(views, Passes) else views.num_clips * views.num_crops
        for start in range(0, len(clip_ids), batch):
            ids = [int(i) for i in clip_ids[start : start + batch]]
            if self.die_at in ids:
                raise KeyboardInterrupt
            read = torch.tensor([i for i in ids if i not in self.broken for _ in range(num)], dtype=torch.int64)
            video = read[:, None, None, None, None].expand(-1, 3, 4, 8, 8).to(torch.uint8)
            yield ClipBatch(video, read, tuple((i, "broken") for i in ids if i in self.broken))


def level(factor=1.0, outputs=("pooled",)):
    """Features that are the grey level times `factor`; `tokens` has three."""

    def run(video, clip_ids):
        pooled = factor * video.float().mean((1, 2, 3, 4))[:, None, None].expand(-1, 1, 2)
        return {name: pooled if name == "pooled" else pooled.expand(-1, 3, -1) for name in outputs}

    return Extractor({"factor": factor}, outputs, run)


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(tmp_path, said):
    return Store(tmp_path, say=said.append)


def test_features_are_made_once_and_mapped(store, said):
    samples = Samples(broken=(12,))
    for _ in range(2):
        banks = store.banks(
            seen(samples, IDS, Views(num_clips=2)), {"a": level(), "b": level(2.0, ("tokens", "pooled"))}, 4
        )
        assert banks["a"]["pooled"].values.shape == (6, 2, 1, 2) and banks["b"]["tokens"].values.shape == (6, 2, 3, 2)
        assert banks["a"]["pooled"].clip_ids.tolist() == [10, 11, 13, 14, 15, 16] and banks["a"]["pooled"].failures == (
            (12, "broken"),
        )
        assert banks["b"]["tokens"].values[:, 1, 2, 0].tolist() == [20, 22, 26, 28, 30, 32]
        assert banks["a"]["pooled"].values.dtype is torch.float16
    assert samples.passes == [IDS.tolist(), [12]] and "7 clips x 2 views" in said[0] and "found" in said[1]


def test_memory_holds_what_a_store_keeps(store):
    extractors = {"a": level(1.1), "b": level(0.3, ("tokens",))}
    for views in (Views(num_clips=2), Passes(3)):
        kept, held = (
            one.banks(seen(Samples((12,)), IDS, views), extractors, batch)
            for one, batch in ((store, 4), (InMemory(), 6))
        )
        for name, output in (("a", "pooled"), ("b", "tokens")):
            one, other = kept[name][output], held[name][output]
            assert torch.equal(one.values, other.values) and one.values.dtype is other.values.dtype
            assert one.clip_ids.tolist() == other.clip_ids.tolist() and one.failures == other.failures


def test_a_clip_that_was_repaired_is_measured_again(store, said):
    samples = Samples(broken=(12, 14))
    store.banks(seen(samples, IDS, Views()), {"a": level()}, 4)
    samples.broken = (14,)
    bank = store.banks(seen(samples, IDS, Views()), {"a": level()}, 4)["a"]["pooled"]
    assert samples.passes == [IDS.tolist(), [12, 14], IDS.tolist()] and "1 clips that could not be read" in said[1]
    assert bank.clip_ids.tolist() == [10, 11, 12, 13, 15, 16] and bank.failures == ((14, "broken"),)


@dataclass(frozen=True)
class Threads(Ranks):
    """Ranks that are threads of this process."""

    barrier: threading.Barrier = None
    said: list = None

    def wait(self):
        self.barrier.wait(60)

    def agree(self, value):
        self.said[self.rank] = value
        self.wait()
        return self.said[0]


@pytest.mark.parametrize(("num", "broken"), [(2, (12, 14)), (3, (10, 11, 12)), (9, (16,))])
def test_ranks_share_a_pass_and_every_clip_is_there_once(store, tmp_path, num, broken):
    alone = store.banks(seen(Samples(broken), IDS, Views(num_clips=2)), {"a": level(), "b": level(2.0, ("tokens",))}, 4)
    barrier, said = threading.Barrier(num), [None] * num
    samples = [Samples(broken) for _ in range(num)]

    def make(rank):
        shared = Store(tmp_path / "shared", say=store.say, ranks=Threads(rank, num, barrier=barrier, said=said))
        return shared.banks(
            seen(samples[rank], IDS, Views(num_clips=2)), {"a": level(), "b": level(2.0, ("tokens",))}, 4
        )

    with ThreadPoolExecutor(num) as pool:
        found = list(pool.map(make, range(num)))
    assert np.concatenate([one.passes[0] for one in samples]).tolist() == IDS.tolist()
    for banks in found:
        for name, output in (("a", "pooled"), ("b", "tokens")):
            one, other = banks[name][output], alone[name][output]
            assert (
                torch.equal(one.values, other.values)
                and one.clip_ids.tolist() == other.clip_ids.tolist()
                and one.failures == other.failures
            )
    assert not list(tmp_path.rglob(".partial-*"))


def test_what_differs_is_made_anew(store):
    samples = Samples()
    keys = set()
    for views, extractor, dtype in [
        (Views(), level(), "fp16"),
        (Views(num_crops=2), level(), "fp16"),
        (Passes(2, seed=1), level(), "fp16"),
        (Passes(2, seed=2), level(), "fp16"),
        (Views(), level(3.0), "fp16"),
        (Views(), level(), "bf16"),
    ]:
        keys.add(
            Store(store.folder, dtype, store.say)
            .banks(seen(samples, IDS, views), {"a": extractor}, 4)["a"]["pooled"]
            .key
        )
    store.banks(seen(samples, IDS[:3], Views()), {"a": level()}, 4)
    assert len(keys) == 6 and len(samples.passes) == 7


def test_a_pass_makes_what_is_missing_alone(store):
    samples = Samples()
    store.banks(seen(samples, IDS, Views()), {"a": level()}, 4)
    banks = store.banks(
        seen(samples, IDS, Views()),
        {"a": Extractor({"factor": 1.0}, ("pooled",), None), "b": level(2.0), "same as b": level(2.0)},
        4,
    )
    assert banks["b"]["pooled"].key == banks["same as b"]["pooled"].key
    assert len(samples.passes) == 2


def test_a_broken_off_write_leaves_nothing(store, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        store.banks(seen(Samples(die_at=16), IDS, Views()), {"a": level()}, 2)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(store.banks(seen(Samples(), IDS, Views()), {"a": level()}, 2)["a"]["pooled"].values) == 7


def test_what_was_cut_short_is_made_again_and_what_was_left_is_removed(store, tmp_path):
    store.banks(seen(Samples(), IDS, Views()), {"a": level()}, 4)
    (values,) = tmp_path.rglob("values.bin")
    values.write_bytes(values.read_bytes()[:-1])
    left = values.parent.parent / ".partial-of-a-crash-1"
    left.mkdir()
    os.utime(left, (0, 0))
    samples = Samples()
    assert len(store.banks(seen(samples, IDS, Views()), {"a": level()}, 4)["a"]["pooled"].values) == 7
    assert len(samples.passes) == 1 and not left.exists()


@pytest.mark.parametrize(("factor", "message"), [(torch.inf, "a: .*diverged"), (1e5, "a: .*--feature_dtype bf16")])
def test_features_that_cannot_be_stored_are_one_line(store, tmp_path, factor, message):
    with pytest.raises(UserError, match=message):
        store.banks(seen(Samples(), IDS, Views()), {"a": level(factor)}, 4)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk_is_told_before_anything_is_written(store, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match=r"take 0.00 MB, and 0.00 MB are free; name another folder with --cache"):
        store.banks(seen(Samples(), IDS, Views()), {"a": level()}, 4)


def test_nothing_readable_is_one_line(store):
    with pytest.raises(UserError, match="row 10: broken"):
        store.banks(seen(Samples(broken=tuple(IDS)), IDS, Views()), {"a": level()}, 4)


def test_the_folder_follows_the_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "vjepa" / "features"
