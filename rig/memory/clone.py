"""The RAM of a machine that goes on from a template: the template's pages, but for those that it has written to since.

QEMU has the template's RAM, a file that nobody can write to any more, mapped copy-on-write. A page that was never
written to is one of that file; one that was is anonymous memory of QEMU's process, and /proc/PID/pagemap tells the two
apart (Documentation/admin-guide/mm/pagemap.rst). So a capture reads and keeps only what is the machine's own, and a
comparison reads no more than that, whoever wrote: CPUs, devices, the debugger.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NoReturn

import numpy as np
import xxhash

from rig.memory.image import FileRange, RangesMemory, read_all
from rig.memory.snapshot import Pages, Words
from rig.model import PAGE_SIZE

_WORDS = PAGE_SIZE // 8
_BATCH = 1024  # pages that are compared at a time
_ENTRY = 8  # bytes of pagemap for a page
_OF_A_FILE = np.uint64(1 << 61)  # or shared anonymous memory
_IN_MEMORY = np.uint64(1 << 63 | 1 << 62)  # or swapped out


class ClonedRam:
    """RAM of the process `pid`, which has mapped `template` (a descriptor that stays the caller's) copy-on-write.

    hashes: xxh3_64 of each page of the template. lost: called when the process, or its mapping, is not there any more;
    raises what that means. Raises OSError when the process may not be looked into.
    """

    def __init__(self, pid: int, template: int, hashes: Words, lost: Callable[[], NoReturn]) -> None:
        self.size = os.fstat(template).st_size
        self.template = template
        self.template_hashes = hashes
        self._lost = lost
        with contextlib.ExitStack() as stack:
            try:
                self._memory, self._pagemap = (
                    stack.enter_context(open(f"/proc/{pid}/{name}", "rb", buffering=0)) for name in ("mem", "pagemap")
                )
                base = _mapped_at(pid, template, self.size)
            except (FileNotFoundError, ProcessLookupError):
                base = None
            self._base = lost() if base is None else base
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def read(self, size: int, offset: int) -> bytes:
        """As os.pread."""
        count = min(size, self.size - offset)
        if count <= 0:
            return b""
        return os.pread(self._memory.fileno(), count, self._base + offset) or self._lost()

    def capture(self) -> ClonedCapture:
        return ClonedCapture(self)

    def own(self) -> Pages:
        """Of each page whether it was written to since the template was made."""
        entries = np.empty(self.size // PAGE_SIZE, np.uint64)
        self._fill(self._pagemap, entries, self._base // PAGE_SIZE * _ENTRY)
        own: Pages = (entries & _IN_MEMORY != 0) & (entries & _OF_A_FILE == 0)
        return own

    def pages(self, pfns: Words) -> Words:
        """The words of these pages (ascending), a row each."""
        found = np.empty((len(pfns), _WORDS), np.uint64)
        for run in _runs(pfns):
            self._fill(self._memory, found[run], self._base + int(pfns[run.start]) * PAGE_SIZE)
        return found

    def _fill(self, file: IO[bytes], words: Words, offset: int) -> None:
        into, done = words.reshape(-1).view(np.uint8).data, 0
        while done < len(into):
            done += os.preadv(file.fileno(), [into[done:]], offset + done) or self._lost()


class ClonedCapture:
    """The pages that the machine had written to by then; the others are the template's."""

    def __init__(self, ram: ClonedRam) -> None:
        self._ram = ram
        self._own = ram.own()
        self._pfns = _pfns(self._own)
        self._pages = ram.pages(self._pfns)
        self._at = {pfn: at for at, pfn in enumerate(self._pfns.tolist())}

    def close(self) -> None:
        """Give the memory back. Nothing can be asked of it afterwards."""
        del self._pages

    def changed(self, left_out: Pages | None = None) -> Words:
        """As rig.memory.ram.Capture."""
        own = self._ram.own() | self._own
        candidates = _pfns(own if left_out is None else own & ~left_out)
        found = [np.zeros(0, np.uint64)]
        for start in range(0, len(candidates), _BATCH):
            batch = candidates[start : start + _BATCH]
            found.append(batch[(self._ram.pages(batch) != self._then(batch)).any(axis=1)])
        return np.concatenate(found)

    def hashes(self) -> Words:
        """xxh3_64 of each page."""
        hashes = self._ram.template_hashes.copy()
        hashes[self._pfns] = [xxhash.xxh3_64_intdigest(page) for page in self._pages]
        return hashes

    def memory(self, ranges: Sequence[FileRange]) -> RangesMemory:
        """As physical memory. ranges: which part of RAM as a file is where. Readable until close()."""
        return RangesMemory(self.read, ranges)

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset` on, as os.pread would: fewer at the end of a page, none at the very end."""
        pfn, into = divmod(offset, PAGE_SIZE)
        at = self._at.get(pfn)
        if at is None:
            return os.pread(self._ram.template, min(size, PAGE_SIZE - into), offset)
        page: bytes = self._pages[at].tobytes()
        return page[into : into + size]

    def _then(self, pfns: Words) -> Words:
        """The words of these pages (ascending) as they were, a row each."""
        found = np.empty((len(pfns), _WORDS), np.uint64)
        own = self._own[pfns]
        found[own] = self._pages[np.searchsorted(self._pfns, pfns[own])]
        others = np.empty((int(np.count_nonzero(~own)), _WORDS), np.uint64)
        numbers = pfns[~own]
        for run in _runs(numbers):
            read_all(self._ram.template, others[run].reshape(-1).view(np.uint8), int(numbers[run.start]) * PAGE_SIZE)
        found[~own] = others
        return found


def _pfns(pages: Pages) -> Words:
    """Which they are, ascending."""
    return np.flatnonzero(pages).astype(np.uint64)


def _runs(pfns: Words) -> Iterator[slice]:
    """Where pages follow upon one another, without a gap."""
    if len(pfns):
        cuts = [0, *(np.flatnonzero(np.diff(pfns) != 1) + 1).tolist(), len(pfns)]
        yield from map(slice, cuts, cuts[1:])


def _mapped_at(pid: int, file: int, size: int) -> int | None:
    """The address at which a process has mapped all of a file privately, maybe piece by piece; None when nowhere."""
    told = os.fstat(file)
    device = f"{os.major(told.st_dev):02x}:{os.minor(told.st_dev):02x}"
    base = end = 0
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            span, access, offset, where, inode, *_ = line.split(maxsplit=5)
            if (where, inode) != (device, str(told.st_ino)) or not access.endswith("p"):
                continue
            start, stop = (int(part, 16) for part in span.split("-"))
            if int(offset, 16) == 0:
                base = end = start
            if start == end and base + int(offset, 16) == start:
                end = stop
                if end - base >= size:
                    return base
    return None
