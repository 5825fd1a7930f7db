"""vjepa.command: how options become settings, and how every command ends."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Literal

import pytest

from vjepa import command
from vjepa.command import Option
from vjepa.probing import knn, sweep
from vjepa.probing.settings import ExtractSettings, ProbeSettings

BODIES = {
    "much": "print('line\\n' * 100_000); return 0",
    "little": "print('line'); return 0",
    "help": "import argparse; argparse.ArgumentParser().parse_args(['--help'])",
}


def run_unread(body: str, stdout: int) -> subprocess.CompletedProcess[str]:
    program = f"from vjepa.command import run\ndef main(arguments):\n    {body}\nrun(main)"
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"
    }  # with it argparse meets the error, and keeps it
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60
    )


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_command_whose_reader_has_gone_ends_without_a_word(body: str) -> None:
    """As `COMMAND | head` does once it has its lines."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = run_unread(body, writer)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"), "/x/y: cannot be written: No space left on device"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/x"), "/x: cannot be written: Read-only file system"),
        (RuntimeError("writing: No space left on device (os error 28)"), "cannot be written: No space left on device"),
    ],
)
def test_a_disk_that_keeps_nothing_is_one_line(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: object) -> int:
        raise error

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as ended:
        command.run(main)
    written = capsys.readouterr().err
    assert ended.value.code == 2 and written.startswith(f"error: {told}") and written.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_an_error_of_another_kind_is_not_hidden(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read is no disk that keeps nothing."""

    def main(arguments: object) -> int:
        raise OSError(number, os.strerror(number), "/x")

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(OSError, match="/x"):
        command.run(main)


def test_another_broken_pipe_is_an_error_as_any_other() -> None:
    body = "import os; reader, writer = os.pipe(); os.close(reader); os.write(writer, b'x')"
    ended = run_unread(body, subprocess.DEVNULL)
    assert ended.returncode == 1 and "BrokenPipeError" in ended.stderr


@dataclass(frozen=True)
class Asked:
    out_file: Annotated[str, Option("where to")]
    how_many: Annotated[int, Option("so many", "N", least=1)] = 3
    rates: Annotated[tuple[float, ...] | None, Option("some rates", above=0)] = None
    kind: Annotated[Literal["a", "b"] | None, Option("which")] = None
    size: Annotated[Literal[1, 2], Option("how large")] = 2
    dry: Annotated[bool, Option("do nothing")] = False
    rows: Annotated[list[str] | None, Option("some rows")] = None


def ask(*words: str) -> Asked:
    return command.parse(Asked, "test", "Ask.", words)


@pytest.mark.fast
def test_options_become_the_fields_of_settings_with_their_types() -> None:
    assert ask("--out_file", "x") == Asked("x")
    words = ["--out-file", "x", "--how-many", "5", "--rates", ".5,2", "--kind", "b", "--size", "1", "--dry"]
    assert ask(*words, "--rows", "a=1", "--rows", "b=2,3") == Asked("x", 5, (0.5, 2.0), "b", 1, True, ["a=1", "b=2,3"])


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "arguments are required: --out_file"),
        (["--how_many", "0"], "0: not a whole number of at least 1"),
        (["--rates", "1,0"], "0: not a number above 0"),
        (["--kind", "c"], "invalid choice: 'c'"),
        (["--size", "3"], "invalid choice: 3"),
    ],
)
def test_what_no_field_can_hold_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        ask(*(["--out_file", "x"] if words else []), *words)
    assert error.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.fast
@pytest.mark.parametrize("settings", [ProbeSettings, ExtractSettings])
def test_help_names_every_field_with_both_spellings(settings: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(settings, "test", "Ask.", ["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for field in fields(settings):
        assert f"--{field.name}" in told and f"--{field.name.replace('_', '-')}" in told
        assert field.default is MISSING or field.default in (None, False) or f"(default: {field.default})" in told


@pytest.mark.fast
def test_help_gives_the_choices_that_the_probes_have() -> None:
    for name, choices in (("k", knn.K_CHOICES), ("lr", sweep.LEARNING_RATES), ("weight_decay", sweep.WEIGHT_DECAYS)):
        help = ProbeSettings.__annotations__[name]
        told = help.split("(default: ")[1].split(")")[0]
        assert tuple(float(value) for value in told.split(",")) == choices
