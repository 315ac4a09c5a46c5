"""What `rig --help` says, and how quickly."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rig
from rig import cli
from tests.cli.pretended import ROOT


def test_help_is_quick_and_imports_no_room() -> None:
    code = "import sys; from rig.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0
    assert "exit codes:" in done.stdout
    assert "rig run panic --guest" in done.stdout
    assert not {"numpy", "msgspec", "rich", "paramiko", "jinja2"} & set(done.stderr.split())


def test_help_of_every_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    running, reading = ("run", "matrix", "rerun", "selftest", "bench"), ("check", "report", "compare", "history")
    for name in (*running, *reading, "list", "fetch", "doctor", "shell", "completion", "cluster"):
        with pytest.raises(SystemExit) as raised:
            cli.main([name, "--help"])
        assert raised.value.code == 0
        text = capsys.readouterr().out
        assert "exit codes:" in text
        assert "--json" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"rig {rig.__version__}\n"
