"""The linters, as tests."""

from __future__ import annotations

import subprocess

import pytest

from tests import linters
from tests.linters import ROOT


@pytest.mark.parametrize("command", linters.COMMANDS)
def test_nothing_to_complain_about(command: str) -> None:
    code, said = linters.outcome(command, 300)
    assert code == 0, said


@pytest.mark.parametrize("script", ["rigw", ".ci/run"])
def test_scripts_are_well_formed_and_executable(script: str) -> None:
    path = ROOT / script
    shell = path.read_text().splitlines()[0].removeprefix("#!").removeprefix("/usr/bin/env ")
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o111 == 0o111
