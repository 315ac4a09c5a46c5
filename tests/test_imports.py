"""What commands must not wait for: libraries, and rooms, that they do not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each takes tens of milliseconds, some hundreds.
HEAVY = {
    *("numpy", "capstone", "elftools", "zstandard", "xxhash"),
    *("paramiko", "cryptography", "jinja2", "rich", "asyncio", "qemu.qmp", "sqlite3"),
    *("rig.evidence", "rig.conductor", "rig.report.html"),
}
SCRIPT = """
import contextlib, io, sys
from rig.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), \
     contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(*sys.modules)
"""


@pytest.mark.parametrize(
    "words", ["--help", "run --help", "list scenarios", "list checks", "run nosuch", "matrix --plan", "completion bash"]
)
def test_a_command_imports_nothing_heavy_that_it_does_not_use(words: str) -> None:
    command = [sys.executable, "-c", SCRIPT, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "rig.cli" in loaded
    assert loaded & HEAVY == set()
