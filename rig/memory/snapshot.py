"""A memory image as it was: a copy in this process's own memory, to be compared, hashed and read.

Not in a file of its own, which would have to be read again for every comparison. Of what was never written nothing is
kept, neither of holes nor of chunks that are all zero. No huge pages are asked for: where the machine is itself a guest
whose host takes back what is free, they are what the host has to give again, 4 KiB at a time, and the copying takes
three times as long.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from rig.memory.holes import CHUNK, next_data
from rig.memory.image import ZERO_PAGE, FileRange, RangesMemory, read_all, require_whole
from rig.model import PAGE_SIZE

Words = NDArray[np.uint64]
Pages = NDArray[np.bool_]  # of each page of a memory, whether it is one of them

_WORDS = PAGE_SIZE // 8
_ZERO_HASH = xxhash.xxh3_64_intdigest(ZERO_PAGE)
_SLAB = 64 * CHUNK  # bytes mapped at a time: room for that many chunks
_EMPTY = -1
_POPULATE_WRITE = 23  # madvise(2), since Linux 5.14; Python has no name for it


class Snapshot:
    """The first `size` bytes of a file as they were when it was made. Sizes are in bytes, whole pages.

    Owns memory until close(). Raises EvidenceError when a file is shorter than the snapshot, at any time.
    """

    def __init__(self, fd: int, size: int) -> None:
        require_whole(fd, size)
        self._fd = fd
        self.size = size
        self._slabs: list[mmap.mmap] = []
        # For each chunk, where it is kept, counted in chunks; _EMPTY for one that is all zero.
        self._slot = np.full(-(-size // CHUNK), _EMPTY, np.int32)
        kept, start = 0, 0
        while (start := next_data(fd, start, size) // CHUNK * CHUNK) < size:
            self._populate(kept)
            chunk = self._kept(kept, self._length(start))
            read_all(fd, chunk.view(np.uint8), start)
            if chunk[0] or chunk.any():  # else the next one is read into the same place
                self._slot[start // CHUNK] = kept
                kept += 1
            start += CHUNK

    @property
    def kept(self) -> int:
        """Bytes of memory that the copy takes."""
        return int(np.count_nonzero(self._slot != _EMPTY)) * CHUNK

    def close(self) -> None:
        """Give the memory back. Nothing can be asked of it afterwards."""
        self._slabs.clear()  # unmapped with its last view, which the traceback of an error may still hold

    def changed(self, left_out: Pages | None = None, *, other: int | None = None) -> Words:
        """Pfns of the pages in which the file as it is now, or another one, differs from this, ascending. Each byte of
        it is read once, but for chunks that are left out altogether."""
        fd = self._fd if other is None else other
        require_whole(fd, self.size)
        found = [np.zeros(0, np.uint64)]
        buffer = np.empty(min(CHUNK, self.size) // 8, np.uint64)
        for start in self._unless_both_empty(fd):
            if left_out is not None and left_out[start // PAGE_SIZE :][: CHUNK // PAGE_SIZE].all():
                continue
            now = buffer[: self._length(start) // 8]
            read_all(fd, now.view(np.uint8), start)
            slot = int(self._slot[start // CHUNK])
            if slot == _EMPTY:
                differs = now.reshape(-1, _WORDS).any(axis=1)
            else:
                before = self._kept(slot, now.nbytes)
                if np.array_equal(now, before):
                    continue
                differs = (now != before).reshape(-1, _WORDS).any(axis=1)
            found.append(np.flatnonzero(differs).astype(np.uint64) + np.uint64(start // PAGE_SIZE))
        pages = np.concatenate(found)
        return pages if left_out is None else pages[~left_out[pages]]

    def hashes(self) -> Words:
        """xxh3_64 of each page."""
        hashes = np.full(self.size // PAGE_SIZE, _ZERO_HASH, np.uint64)
        digest = xxhash.xxh3_64_intdigest
        for number in np.flatnonzero(self._slot != _EMPTY).tolist():
            start = number * CHUNK
            words = self._kept(int(self._slot[number]), self._length(start)).reshape(-1, _WORDS)
            # The first word decides for most pages, so few zero pages have to be looked at in full.
            filled = words[:, 0] != 0
            rest = np.flatnonzero(~filled)
            filled[rest] = words[rest].any(axis=1)
            pages = np.flatnonzero(filled)
            hashes[start // PAGE_SIZE + pages] = [digest(words[page]) for page in pages.tolist()]
        return hashes

    def memory(self, ranges: Sequence[FileRange]) -> RangesMemory:
        """As physical memory. ranges: which part of the file is where. Readable until close()."""
        return RangesMemory(self.read, ranges)

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset` on, as os.pread would: fewer at the end of a chunk, none at the very end."""
        number, into = divmod(offset, CHUNK)
        count = min(size, CHUNK - into, self.size - offset)
        if count <= 0:
            return b""
        slot = int(self._slot[number])
        if slot == _EMPTY:
            return bytes(count)
        return self._kept(slot, CHUNK).view(np.uint8)[into : into + count].tobytes()

    def _length(self, start: int) -> int:
        """Bytes of the chunk from `start` on: the last one may be shorter."""
        return min(CHUNK, self.size - start)

    def _populate(self, slot: int) -> None:
        """Have memory for a slot in one go; without this it comes a page at a time, while it is being filled."""
        slab, offset = divmod(slot * CHUNK, _SLAB)
        if slab == len(self._slabs):
            self._slabs.append(mmap.mmap(-1, _SLAB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        with contextlib.suppress(OSError):  # an older kernel: it comes a page at a time
            self._slabs[slab].madvise(_POPULATE_WRITE, offset, CHUNK)

    def _kept(self, slot: int, size: int) -> Words:
        """The first bytes of a slot."""
        slab, offset = divmod(slot * CHUNK, _SLAB)
        return np.frombuffer(self._slabs[slab], np.uint64, size // 8, offset)

    def _unless_both_empty(self, fd: int) -> Iterator[int]:
        """Where the chunks begin that are kept here or not a hole in a file, ascending."""
        kept = np.flatnonzero(self._slot != _EMPTY) * CHUNK
        start = 0
        while start < self.size:
            at = int(np.searchsorted(kept, start))
            own = int(kept[at]) if at < len(kept) else self.size
            start = min(own, next_data(fd, start, self.size) // CHUNK * CHUNK)
            if start < self.size:
                yield start
            start += CHUNK
