"""The linters, as tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


OWN_FILES = ("mypy", "bandit")  # those that are told what to look at


@pytest.mark.parametrize(
    "command", ["ruff check", "ruff format --check", "mypy --strict", "bandit -q -c pyproject.toml -r rig"]
)
def test_nothing_to_complain_about(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), *([] if command.startswith(OWN_FILES) else ["."])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", ["rigw", ".ci/run"])
def test_scripts_are_well_formed_and_executable(script: str) -> None:
    path = ROOT / script
    shell = path.read_text().splitlines()[0].removeprefix("#!").removeprefix("/usr/bin/env ")
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o111 == 0o111
