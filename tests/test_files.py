"""Files and folders appear whole, or stay as they were."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from vjepa import files

pytestmark = pytest.mark.fast


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_whole_or_as_before_and_keeps_its_ending(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "film.mp4"
    with files.whole_file(path) as partial:
        assert partial.suffix == ".mp4" and partial.parent == path.parent and not path.exists()
        partial.write_text("first")
    with pytest.raises(OSError, match="disk is full"), files.whole_file(path) as partial:
        partial.write_text("half of the sec")
        raise OSError("the disk is full")
    assert everything(tmp_path) == {"new folder/film.mp4": "first"}
    files.write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'


def test_a_folder_is_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a" / "folder"
    with files.whole_folder(path) as partial:
        (partial / "x").write_text("first")
    with pytest.raises(OSError, match="disk is full"), files.whole_folder(path) as partial:
        (partial / "x").write_text("second")
        raise OSError("the disk is full")
    assert everything(tmp_path) == {"a/folder/x": "first"}
    with files.whole_folder(path) as partial:
        (partial / "y").write_text("third")
    assert everything(tmp_path) == {"a/folder/y": "third"}


def test_who_has_no_home_has_a_cache_among_temporary_files(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert files.cache_folder().is_relative_to(tempfile.gettempdir())
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert files.cache_folder() == Path("/x/vjepa")
