"""A rig on a terminal: 80 columns, and one that can't be redrawn."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from tests.faults.place import GUESTS, KERNEL, ROOT, open_place

pytestmark = [pytest.mark.vm, pytest.mark.faults, pytest.mark.timeout(300)]
COLUMNS = 80
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(term: str, root: Path, master: Path) -> tuple[int, str]:
    """A run's exit status, and all that it has shown on a terminal of 24 lines and 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, COLUMNS, 0, 0))
    shown = b""

    def read() -> None:
        nonlocal shown
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:  # EIO: nobody has the terminal open any more
            return

    reader = threading.Thread(target=read)
    reader.start()
    with open_place(root, master) as place:
        what = ("run", "panic", "--guest", GUESTS[0], "--kernel", KERNEL)
        status = subprocess.run(
            [sys.executable, "-m", "rig", *what, "--results", str(place.results)],
            cwd=ROOT,
            env={**{k: v for k, v in os.environ.items() if k != "COLUMNS"}, **place.environment, "TERM": term},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            check=False,
        ).returncode
    os.close(theirs)
    reader.join()
    os.close(ours)
    return status, shown.decode()


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_nothing_is_wider_than_the_terminal(term: str, tmp_path: Path, master: Path) -> None:
    status, shown = on_terminal(term, tmp_path / "place", master)
    assert status == 0, shown
    assert ("\x1b[" in shown) == (term == "xterm"), "only what can be redrawn is redrawn"
    lines = [ESCAPES.sub("", line) for line in re.split(r"[\r\n]+", shown)]
    # the path is to be copied whole, however long it is
    assert not [line for line in lines if len(line) > COLUMNS and "evidence: " not in line]
    assert any("PASS" in line for line in lines)
