"""What commands must not wait for: libraries, and rooms, that they do not use."""

from __future__ import annotations

import subprocess
import sys

# Each takes tens of milliseconds, some hundreds.
HEAVY = {
    *("numpy", "capstone", "elftools", "zstandard", "xxhash"),
    *("paramiko", "cryptography", "jinja2", "rich", "asyncio", "qemu.qmp", "sqlite3"),
    *("rig.evidence", "rig.conductor", "rig.report.html"),
}
# What must be there when QEMU is launched, and nothing of what waits for the guest: rig/warmup.py.
AFTER_LAUNCH = HEAVY - {"cryptography", "rig.evidence", "rig.conductor"}
COMMANDS = ("--help", "run --help", "list scenarios", "list checks", "run nosuch", "matrix --plan", "completion bash")
SCRIPT = """
import contextlib, io, sys
from rig.cli import main
for words in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), \
         contextlib.suppress(SystemExit):
        main(words.split())
    print(*sys.modules)
import rig.conductor
print(*sys.modules)
"""


def test_nothing_heavy_is_imported_by_commands_that_do_not_use_it_nor_before_a_guest_boots() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *COMMANDS], capture_output=True, text=True, timeout=60, check=True
    )
    *after, conductor = (set(line.split()) for line in done.stdout.splitlines())
    assert {words: loaded & HEAVY for words, loaded in zip(COMMANDS, after, strict=True)} == {
        words: set() for words in COMMANDS
    }
    assert "rig.vm.qemu" in conductor
    assert conductor & AFTER_LAUNCH == set()
