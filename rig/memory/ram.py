"""A machine's RAM while the machine lives: what captures are taken of. The machine must be held meanwhile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from rig.memory.image import FileRange, RangesMemory
from rig.memory.snapshot import Pages, Snapshot, Words


class Capture(Protocol):
    """RAM as it was when this was made. Owns memory until close()."""

    def changed(self, left_out: Pages | None = None) -> Words:
        """Pfns (counted in RAM as a file) of the pages in which RAM differs from this now, ascending.

        left_out: those that are of no interest; where they are many, they are not read.
        """

    def hashes(self) -> Words:
        """xxh3_64 of each page."""

    def memory(self, ranges: Sequence[FileRange]) -> RangesMemory:
        """As physical memory. Readable until close()."""

    def close(self) -> None: ...


class Ram(Protocol):
    """RAM as one file of `size` bytes; where it appears in physical memory is rig.vm.machine.ram_ranges()'s to say."""

    size: int

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset` on, fewer where a piece ends, none at the very end, as os.pread."""

    def capture(self) -> Capture: ...


class SharedRam:
    """RAM that is a file, which QEMU has mapped shared. The descriptor stays the caller's."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def capture(self) -> Snapshot:
        return Snapshot(self._fd, self.size)
