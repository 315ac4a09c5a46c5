"""The linters, which run beside the unit tests: the slowest of them takes 15 s when it has looked at nothing before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("ruff check .", "ruff format --check .", "mypy --strict", "bandit -q -c pyproject.toml -r rig")
_running: dict[str, subprocess.Popen[str]] = {}


def start() -> None:
    """All that have not been started yet. mypy keeps what it found in .mypy_cache, for the next time."""
    for command in COMMANDS:
        if command not in _running:
            _running[command] = subprocess.Popen(
                [sys.executable, "-m", *command.split()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )


def outcome(command: str, seconds: float) -> tuple[int, str]:
    """Exit code and output.

    :raise subprocess.TimeoutExpired: it takes longer than that from now on
    """
    start()
    process = _running[command]
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


def stop() -> None:
    """Whatever still runs: nobody is going to ask."""
    for process in _running.values():
        process.kill()
        process.wait()
