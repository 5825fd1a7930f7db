"""vjepa.command.run: how every command ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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


def test_another_broken_pipe_is_an_error_as_any_other() -> None:
    body = "import os; reader, writer = os.pipe(); os.close(reader); os.write(writer, b'x')"
    ended = run_unread(body, subprocess.DEVNULL)
    assert ended.returncode == 1 and "BrokenPipeError" in ended.stderr
