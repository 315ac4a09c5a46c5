"""What a rig has left behind: processes, shared memory, temporary files, locks, hidden directories."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from tests.faults.place import Place
from tests.faults.subject import GLANCE, MARK
from tests.processes import is_running

GRACE = 5.0  # seconds in which the kernel must have ended what dies with a killed rig
SHARED = Path("/dev/shm")


def shared() -> frozenset[Path]:
    """Shared memory that has a name of the rig's or QEMU's: others use this machine, too."""
    return frozenset(path for path in SHARED.iterdir() if path.name.lower().startswith(("rig", "qemu")))


def marked(mark: str, place: Place) -> list[int]:
    """The processes of one rig that run: by the variable that they have inherited or, where a process is given no
    environment, by the directory that they were told to work in."""
    variable, directory = f"{MARK}={mark}".encode(), os.fsencode(place.root)
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            environment, argv = (Path(f"/proc/{name}/{what}").read_bytes() for what in ("environ", "cmdline"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if (variable in environment.split(b"\0") or directory in argv) and is_running(int(name)):
            found.append(int(name))
    return found


def leftovers(place: Place, mark: str, before: frozenset[Path]) -> list[str]:
    """In words, one for each; empty when nothing is left. Waits GRACE seconds for processes to end.

    A socket that listens ends with its process, and so does a lock: what is looked at is whether they can be had.
    """
    until = time.monotonic() + GRACE
    while (alive := marked(mark, place)) and time.monotonic() < until:
        time.sleep(GLANCE)
    found = [f"process {pid} {Path(f'/proc/{pid}/comm').read_text().strip()}" for pid in alive]
    found += [f"temporary {path.name}" for path in place.temporary.iterdir()]
    found += [f"hidden {path.name}" for path in _hidden(place.results)]
    found += [f"shared memory {path.name}" for path in sorted(shared() - before)]
    if place.cache.is_dir():
        found += [f"in the cache: {path.name}" for path in _parts(place.cache)]
        lock = place.cache / "lock"
        if lock.exists() and not _is_free(lock):
            found.append("the cache's lock is held")
    return found


def _hidden(results: Path) -> list[Path]:
    return sorted(results.glob(".*")) if results.is_dir() else []


def _parts(cache: Path) -> list[Path]:
    return [*(cache / "tmp").glob("*"), *(path for path in cache.glob("*/.*"))]


def _is_free(lock: Path) -> bool:
    with lock.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
