"""QEMU's log, a file for each of its threads (`-d tid`).

Under TCG each CPU of the guest has a thread of its own. In a single file their lines would be mixed up, so that of
several running CPUs nothing could be told.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

Marks = Mapping[Path, int]  # where each file ended, bytes


class ThreadLogs:
    """A directory that QEMU writes one file a thread into. What was recorded is kept apart from what QEMU says by
    itself: `take` returns it, `rest` leaves it out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: dict[Path, list[tuple[int, int]]] = {}

    def create(self) -> None:
        self._folder.mkdir()

    @property
    def pattern(self) -> str:
        """For QEMU's -D: %d becomes the thread's number."""
        return str(self._folder / "%d")

    def marks(self) -> dict[Path, int]:
        """Where the files end now, in the order of the threads' numbers: that of the CPUs."""
        files = sorted(self._folder.iterdir(), key=lambda path: int(path.name))
        return {path: path.stat().st_size for path in files}

    def grown(self, since: Marks) -> int:
        """Bytes that all files have together got since then."""
        return sum(size - since.get(path, 0) for path, size in self.marks().items())

    def take(self, since: Marks, most: int) -> list[str]:
        """What was written since then, by thread; of all together the first `most` bytes."""
        parts = []
        for path, end in self.marks().items():
            start = since.get(path, 0)
            if end > start:
                self._taken.setdefault(path, []).append((start, end))
                with path.open("rb") as log:
                    log.seek(start)
                    blob = log.read(min(end - start, most))
                most -= len(blob)
                parts.append(blob.decode(errors="replace"))
        return parts

    def text(self) -> str:
        """All of it, what was recorded too."""
        return "".join(path.read_text(errors="replace") for path in self.marks())

    def rest(self) -> str:
        """What was not taken."""
        parts = []
        for path in self.marks():
            blob, at = path.read_bytes(), 0
            for start, end in [*self._taken.get(path, []), (len(blob), len(blob))]:
                parts.append(blob[at:start].decode(errors="replace"))
                at = end
        return "".join(parts)

    def remove(self) -> None:
        shutil.rmtree(self._folder)
