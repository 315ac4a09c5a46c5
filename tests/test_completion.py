"""Completion as a shell does it: the script is read, and asked what a word can become."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rig import cli
from rig.completion import script

ROOT = Path(__file__).resolve().parent.parent

# COMP_WORDS and COMP_CWORD are what bash hands to the function (bash(1), Programmable Completion).
BASH = """
. "$1"; shift
rig() {  # each list of names is asked for once
    kept="$KEPT/$*"
    [ -e "$kept" ] || "$PYTHON" -m rig "$@" >"$kept"
    cat "$kept"
}
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
$(complete -p rig | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "rig.bash"
    path.write_text(script(cli.parser(), "bash"))
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rig", "ru"], {"run"}),
        (["rig", "run", "pti-sh"], {"pti-shadow", "pti-shadow-6.1"}),
        (["rig", "run", "panic", "--guest", "pae-n"], {"pae-nonx", "pae-nopae"}),
        (["rig", "run", "panic", "--kernel", "built-6.1-1"], {"built-6.1-1g"}),
        (["rig", "run", "panic", "--kernel", "READ"], {"README.md"}),
        (["rig", "run", "panic", "--stop-at", "ha"], {"handover"}),
        (["rig", "matrix", "nigh"], {"nightly"}),
        (["rig", "shell", "x86_64-la"], {"x86_64-la57"}),
        (["rig", "build", "built-7.2-"], {"built-7.2-jump"}),
        (["rig", "check", "rig/vm"], {"rig/vm"}),
    ],
)
def test_bash(bash_script: Path, words: list[str], expected: set[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", BASH, "bash", str(bash_script), *words],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "KEPT": str(bash_script.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (set(done.stdout.split()), done.stderr) == (expected, "")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_can_read_its_script(tmp_path: Path) -> None:
    path = tmp_path / "_rig"
    path.write_text(script(cli.parser(), "zsh"))
    done = subprocess.run(["zsh", "-n", str(path)], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_text().startswith("#compdef rig")


def test_every_command_prints_its_names_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "guests", "--names"]) == 0
    assert "x86_64-la57" in capsys.readouterr().out.splitlines()
    assert cli.main(["completion", "bash"]) == 0
    assert "_shtab_rig" in capsys.readouterr().out
