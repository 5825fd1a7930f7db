"""The layout of a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from vjepa.errors import UserError
from vjepa.run_folder import Checkpoint, RunFolder

pytestmark = pytest.mark.fast


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with checkpoints of steps 3 and 12, the older one the best."""
    run = RunFolder(tmp_path / "runs" / "one")
    for step in (3, 12):
        checkpoint = run.checkpoint(step)
        checkpoint.path.mkdir(parents=True)
        for path in (checkpoint.network("encoder"), checkpoint.state):
            path.touch()
    run.name(run.checkpoint(12), run.checkpoint(3))
    run.config.touch()
    return run


def test_a_run_knows_its_checkpoints(run: RunFolder) -> None:
    assert [checkpoint.step for checkpoint in run.all_checkpoints] == [3, 12]
    assert run.latest == run.require() == run.checkpoint(12) and run.best == run.checkpoint(3)


def test_a_run_is_found_from_whatever_lies_in_it(run: RunFolder) -> None:
    inside = [run.path, run.checkpoints / "latest", run.checkpoint(3).path, run.checkpoint(3).network("encoder")]
    assert all(RunFolder.above(path) == run for path in [*inside, run.best_file])
    assert RunFolder.above(run.path.parent) is None
    linked = Checkpoint(run.checkpoints / "latest")
    assert linked.is_one and linked.step == 12 and linked.run == run


def test_what_is_no_run_is_one_line(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run folder, it has no config\.yaml"):
        RunFolder(tmp_path).require()
    fresh = RunFolder(tmp_path / "fresh")
    fresh.path.mkdir()
    fresh.config.touch()
    assert fresh.latest is None and fresh.best is None and fresh.all_checkpoints == []
    with pytest.raises(UserError, match="no checkpoint yet; train it first"):
        fresh.require()
    copied = Checkpoint(tmp_path / "copy")
    assert copied.step is None and copied.run is None


def test_a_checkpoint_is_found_from_whatever_lies_in_it(run: RunFolder) -> None:
    third, twelfth = run.checkpoint(3), run.checkpoint(12)
    assert run.checkpoint_of(run.path) == run.checkpoint_of(run.checkpoints / "latest") == twelfth
    assert run.checkpoint_of(third.path) == run.checkpoint_of(third.network("encoder")) == third
    assert run.checkpoint_of(run.best_file) is None and run.checkpoint_of(run.config) is None
