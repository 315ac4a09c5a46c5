"""What a process and all that it started take of the machine's memory, looked at while they run."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

MIB = 1 << 20
LOOK = 0.25  # seconds between two looks


def family(pid: int) -> Iterator[int]:
    """A process and all its descendants that are there now."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def proportional(pid: int) -> float:
    """MiB that a process takes: PSS, in which what several share is counted in parts. 0 for one that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "Pss":
                return int(rest.split()[0]) / 1024
    return 0.0


def unmapped_files(pids: list[int]) -> float:
    """MiB of memory files (memfds) that only are open in these processes: no mapping counts what is in them."""
    blocks: dict[int, float] = {}
    mapped: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(entry).startswith("/memfd:"):
                        found = entry.stat()
                        blocks[found.st_ino] = found.st_blocks * 512 / MIB
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                words = line.split(maxsplit=5)
                if len(words) == 6 and words[5].startswith("/memfd:"):
                    mapped.add(int(words[4]))
    return sum(size for inode, size in blocks.items() if inode not in mapped)


class Watcher:
    """The most memory (MiB) that a process and its descendants took, while it was watched. A context manager."""

    def __init__(self, pid: int) -> None:
        self.peak = 0.0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(LOOK):
            pids = list(family(self._pid))
            self.peak = max(self.peak, sum(map(proportional, pids)) + unmapped_files(pids))
