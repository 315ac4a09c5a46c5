"""Memory images behind file descriptors: copy, compare, hash, read. Nothing is mapped.

Files go through buffers of a MiB that are used again and again, so that a run's resident memory doesn't
grow with its guest's; what is a hole in a file is not read, so that time doesn't grow with memory that the guest never
touched. Sizes are in bytes and multiples of PAGE_SIZE; a pfn is a physical address / PAGE_SIZE.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from rig.errors import EvidenceError
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE

Bytes = NDArray[np.uint8]

_CHUNK = 1 << 20  # small enough for two of them to stay in a core's cache between being read and compared
_WORDS = PAGE_SIZE // 8
ZERO_PAGE = bytes(PAGE_SIZE)
_ZERO_HASH = xxhash.xxh3_64_intdigest(ZERO_PAGE)


def copy(src_fd: int, dst_fd: int, size: int) -> None:
    """Copy the first `size` bytes of a file. What dst held is dropped; zero chunks become holes.

    Raises EvidenceError when src is shorter.
    """
    os.ftruncate(dst_fd, 0)
    os.ftruncate(dst_fd, size)
    for start, (chunk,) in _chunks((src_fd,), size):
        if chunk.any():
            _write_all(dst_fd, chunk, start)


def changed_pages(fd_a: int, fd_b: int, size: int) -> NDArray[np.uint64]:
    """Pfns of the pages that differ in the first `size` bytes of two files, ascending.

    Raises EvidenceError when one of them is shorter.
    """
    found = [np.zeros(0, np.uint64)]
    for start, chunks in _chunks((fd_a, fd_b), size):
        a, b = (chunk.view(np.uint64) for chunk in chunks)
        if not np.array_equal(a, b):
            differs = (a.reshape(-1, _WORDS) != b.reshape(-1, _WORDS)).any(axis=1)
            found.append(np.flatnonzero(differs).astype(np.uint64) + np.uint64(start // PAGE_SIZE))
    return np.concatenate(found)


def page_hashes(fd: int, size: int) -> NDArray[np.uint64]:
    """xxh3_64 of each 4096-byte page of the first `size` bytes. Raises EvidenceError when there are fewer."""
    hashes = np.full(size // PAGE_SIZE, _ZERO_HASH, np.uint64)
    for start, (chunk,) in _chunks((fd,), size):
        words = chunk.view(np.uint64).reshape(-1, _WORDS)
        # The first word decides for most pages, so few zero pages have to be looked at in full.
        filled = words[:, 0] != 0
        rest = np.flatnonzero(~filled)
        filled[rest] = words[rest].any(axis=1)
        view = chunk.data
        for page in np.flatnonzero(filled).tolist():
            digest = xxhash.xxh3_64_intdigest(view[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])
            hashes[start // PAGE_SIZE + page] = digest
    return hashes


def _chunks(fds: Sequence[int], size: int) -> Iterator[tuple[int, list[Bytes]]]:
    """(offset, the bytes of each file) of the first `size` bytes, in order, but for chunks that are a hole in all.

    The arrays are overwritten by the next step.
    """
    if size % PAGE_SIZE:
        raise ValueError(f"{size} bytes are no whole number of pages")
    for fd in fds:
        if (end := os.fstat(fd).st_size) < size:
            raise EvidenceError(
                f"a memory image ends at {end:#x}, {size:#x} or more was expected",
                hint="was the capture cut off, for example by a full disk?",
            )
    buffers = [np.empty(min(_CHUNK, size), np.uint8) for _ in fds]
    start = 0
    while (start := min(_next_data(fd, start, size) for fd in fds) // _CHUNK * _CHUNK) < size:
        chunks = [buffer[: size - start] for buffer in buffers]
        for fd, chunk in zip(fds, chunks, strict=True):
            _read_all(fd, chunk, start)
        yield start, chunks
        start += _CHUNK


def _next_data(fd: int, start: int, size: int) -> int:
    """Where the file has data from `start` on; not below `size`, rounded up to whole chunks, when nowhere before."""
    nowhere = -(-size // _CHUNK) * _CHUNK
    if start >= size:
        return nowhere
    try:
        return os.lseek(fd, start, os.SEEK_DATA)
    except OSError as problem:
        if problem.errno != errno.ENXIO:  # what a hole up to the file's end is
            raise
        return nowhere


def _read_all(fd: int, chunk: Bytes, offset: int) -> None:
    done = 0
    while done < len(chunk):
        count = os.preadv(fd, [chunk.data[done:]], offset + done)
        if not count:
            raise EvidenceError(f"a memory image ended at {offset + done:#x} while it was read")
        done += count


def _write_all(fd: int, chunk: Bytes, offset: int) -> None:
    done = 0
    while done < len(chunk):
        done += os.pwritev(fd, [chunk.data[done:]], offset + done)


@dataclass(frozen=True)
class FileRange:
    """`size` bytes of physical memory from `start`, found in a file from `offset`."""

    start: int
    size: int
    offset: int


class FileMemory:
    """Physical memory in a file, in ranges: QEMU's pc machine moves the RAM that its PCI hole would cover to
    4 GiB, so a file offset is not always a physical address. The descriptor stays the caller's."""

    def __init__(self, fd: int, ranges: Sequence[FileRange]) -> None:
        """Raises ValueError when ranges overlap."""
        self._fd = fd
        self._ranges = sorted(ranges, key=lambda each: each.start)
        for below, above in zip(self._ranges, self._ranges[1:], strict=False):
            if below.start + below.size > above.start:
                raise ValueError(f"memory ranges overlap at {above.start:#x}")

    def read(self, address: int, size: int) -> bytes:
        """Bytes from a physical address, across adjoining ranges. Raises OutsideMemory, also where the file
        is shorter than its range says."""
        parts: list[bytes] = []
        while size:
            held = self._range_of(address)
            count = min(size, held.start + held.size - address)
            part = os.pread(self._fd, count, held.offset + address - held.start)
            if not part:
                raise OutsideMemory(address)
            parts.append(part)
            address += len(part)
            size -= len(part)
        return b"".join(parts)

    def _range_of(self, address: int) -> FileRange:
        for held in self._ranges:
            if held.start <= address < held.start + held.size:
                return held
        raise OutsideMemory(address)


class PagesMemory:
    """Physical memory as single pages: pfn -> 4096 bytes. Others are asked of `fallback`."""

    def __init__(self, pages: Mapping[int, bytes], fallback: Memory | None = None) -> None:
        """Raises ValueError for a page that isn't 4096 bytes."""
        for pfn, page in pages.items():
            if len(page) != PAGE_SIZE:
                raise ValueError(f"page {pfn:#x} has {len(page)} bytes, not {PAGE_SIZE}")
        self._pages = pages
        self._fallback = fallback

    def read(self, address: int, size: int) -> bytes:
        """Bytes from a physical address, across pages. Raises OutsideMemory."""
        parts: list[bytes] = []
        while size:
            pfn, offset = divmod(address, PAGE_SIZE)
            count = min(size, PAGE_SIZE - offset)
            page = self._pages.get(pfn)
            if page is not None:
                parts.append(page[offset : offset + count])
            elif self._fallback is not None:
                parts.append(self._fallback.read(address, count))
            else:
                raise OutsideMemory(address)
            address += count
            size -= count
        return b"".join(parts)
