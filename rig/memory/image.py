"""Memory images behind file descriptors: copy and read. Nothing is mapped. To compare and hash: rig.memory.snapshot.

Files go through buffers of a MiB that are used again and again, so that a run's resident memory doesn't
grow with its guest's; what is a hole in a file is not read, so that time doesn't grow with memory that the guest never
touched. Sizes are in bytes and multiples of PAGE_SIZE; a pfn is a physical address / PAGE_SIZE.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rig.errors import EvidenceError
from rig.memory.holes import CHUNK, next_data
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE

Bytes = NDArray[np.uint8]

ZERO_PAGE = bytes(PAGE_SIZE)


def copy(src_fd: int, dst_fd: int, size: int) -> None:
    """Copy the first `size` bytes of a file. What dst held is dropped; zero chunks become holes.

    Raises EvidenceError when src is shorter.
    """
    require_whole(src_fd, size)
    os.ftruncate(dst_fd, 0)
    os.ftruncate(dst_fd, size)
    buffer = np.empty(min(CHUNK, size), np.uint8)
    start = 0
    while (start := next_data(src_fd, start, size) // CHUNK * CHUNK) < size:
        chunk = buffer[: size - start]
        read_all(src_fd, chunk, start)
        if chunk.any():
            _write_all(dst_fd, chunk, start)
        start += CHUNK


def require_whole(fd: int, size: int) -> None:
    """EvidenceError when a file has fewer than `size` bytes; ValueError when those are no whole pages."""
    if size % PAGE_SIZE:
        raise ValueError(f"{size} bytes are no whole number of pages")
    if (end := os.fstat(fd).st_size) < size:
        raise EvidenceError(
            f"a memory image ends at {end:#x}, {size:#x} or more was expected",
            hint="was the capture cut off, for example by a full disk?",
        )


def read_all(fd: int, chunk: Bytes, offset: int) -> None:
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


class RangesMemory:
    """Physical memory kept somewhere in ranges: QEMU's pc machine moves the RAM that its PCI hole would cover to
    4 GiB, so an offset is not always a physical address."""

    def __init__(self, read_at: Callable[[int, int], bytes], ranges: Sequence[FileRange]) -> None:
        """read_at: size and offset -> bytes from there on, fewer where a piece ends, none at the very end. Raises
        ValueError when ranges overlap."""
        self._read_at = read_at
        self._ranges = sorted(ranges, key=lambda each: each.start)
        for below, above in zip(self._ranges, self._ranges[1:], strict=False):
            if below.start + below.size > above.start:
                raise ValueError(f"memory ranges overlap at {above.start:#x}")

    def read(self, address: int, size: int) -> bytes:
        """Bytes from a physical address, across adjoining ranges. Raises OutsideMemory, also where what is kept
        is shorter than its range says."""
        parts: list[bytes] = []
        while size:
            held = self._range_of(address)
            count = min(size, held.start + held.size - address)
            part = self._read_at(count, held.offset + address - held.start)
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


class FileMemory(RangesMemory):
    """Physical memory in a file. The descriptor stays the caller's."""

    def __init__(self, fd: int, ranges: Sequence[FileRange]) -> None:
        """Raises ValueError when ranges overlap."""
        super().__init__(functools.partial(os.pread, fd), ranges)


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
