"""Built as a wheel it works from any folder, and the shipped configs are found by name."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_finds_the_shipped_configs_from_any_folder(tmp_path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--wheel-dir",
        str(tmp_path),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("video_jepa-*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    shipped = [name for name in names if name.endswith(".yaml")]
    assert sorted(shipped) == sorted(f"vjepa/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml"))
    command = [sys.executable, "-m", "vjepa.train", "demo", "--print-config"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    answer = subprocess.run(
        command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 0 and "prepare: demo" in answer.stdout, answer.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import vjepa; print(vjepa.__file__)"],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
