"""The memory in a dump: cut into pages, followed as it streams by, and put together again. Pure.

A dump's PT_LOADs promise bytes of physical memory. They are cut where physical pages meet, in the order of the file,
into *pieces*: whole pages, and less than one where a PT_LOAD begins or ends within a page (the first 640 KiB of a PC
end at 0x9fc00). The same physical page may be promised more than once: kexec-tools gives an x86_64 kernel's image a
PT_LOAD of its own besides that of the RAM it lies in.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from rig.errors import EvidenceError
from rig.memory.vmcore import Load
from rig.model import PAGE_SIZE

Words = NDArray[np.uint64]

# makedumpfile's flattened format, for output that can't seek (print_info.c and makedumpfile.h of makedumpfile):
# a header of fixed size, then records of a big-endian offset, size and so many bytes, until an offset of -1.
_SIGNATURE: Final = b"makedumpfile"
_FLAT_HEADER: Final = 4096
_RECORD: Final = struct.Struct(">qq")
_LAST: Final = -1
# What a dump may promise. All of it is looked at in memory, some 200 bytes a piece.
_MOST_PIECES: Final = 5 << 20  # 20 GiB
MOST_BYTES: Final = 1 << 40  # of the file: holes included
_PHYSICAL_END: Final = 1 << 52  # x86 has no wider physical addresses (SDM vol. 3, 4.1.4)


@dataclass(frozen=True)
class Pieces:
    """All pieces of a dump, by number. address: physical; offset: in the file; size: 1 to PAGE_SIZE. Bytes."""

    address: Words
    size: Words
    offset: Words

    def __len__(self) -> int:
        return len(self.address)

    @property
    def whole(self) -> NDArray[np.bool_]:
        """Which of them are whole pages."""
        full: NDArray[np.bool_] = self.size == PAGE_SIZE
        return full


def file_size(loads: Sequence[Load]) -> int:
    """Bytes of the file that these PT_LOADs promise. EvidenceError when no guest's dump promises so much."""
    for load in loads:
        if load.size and (load.physical + load.size > _PHYSICAL_END or load.offset + load.size > MOST_BYTES):
            raise EvidenceError(
                f"the dump promises {load.size:#x} bytes of memory at {load.physical:#x}, {load.offset:#x} in the file:"
                f" physical addresses end at {_PHYSICAL_END:#x}, files that are read at {MOST_BYTES:#x}"
            )
    promised = sum(load.size // PAGE_SIZE + 1 for load in loads)
    if promised > _MOST_PIECES:
        raise EvidenceError(f"the dump promises {promised} pages: at most {_MOST_PIECES} are looked at")
    return max((load.offset + load.size for load in loads if load.size), default=0)


def cut(loads: Sequence[Load]) -> Pieces:
    """The pieces that these PT_LOADs promise, in the order of the file.

    Raises EvidenceError for PT_LOADs that share bytes of the file, and as file_size().
    """
    file_size(loads)
    loads = sorted((each for each in loads if each.size), key=lambda each: each.offset)
    for before, load in pairwise(loads):
        if load.offset < before.offset + before.size:
            raise EvidenceError(f"two PT_LOADs of the dump share its bytes at {load.offset:#x}")
    parts = [np.zeros((3, 0), np.uint64)]
    for load in loads:
        end = load.physical + load.size
        edges = np.arange(load.physical // PAGE_SIZE, -(-end // PAGE_SIZE) + 1, dtype=np.uint64) * np.uint64(PAGE_SIZE)
        edges[0], edges[-1] = load.physical, end
        address = edges[:-1]
        parts.append(np.stack([address, np.diff(edges), address - np.uint64(load.physical) + np.uint64(load.offset)]))
    address, size, offset = np.concatenate(parts, axis=1)
    return Pieces(address, size, offset)


def hashes_at(addresses: Words, hashes: Words, ram: Sequence[tuple[int, int, int]]) -> Words:
    """The hash of the page at each physical address. hashes: of a RAM file's pages, in its order.

    ram: (physical start, size, offset in the RAM file), bytes. Raises EvidenceError where there is no RAM, or no hash.
    """
    found = np.zeros(len(addresses), np.uint64)
    known = np.zeros(len(addresses), np.bool_)
    for start, size, offset in ram:
        inside = (addresses >= start) & (addresses < start + size)
        index = (addresses[inside] - np.uint64(start) + np.uint64(offset)) // np.uint64(PAGE_SIZE)
        if len(index) and int(index.max()) >= len(hashes):
            raise EvidenceError(f"there are {len(hashes)} hashes of memory, fewer than the machine has pages")
        found[inside], known[inside] = hashes[index], True
    if not known.all():
        raise EvidenceError(f"the dump has memory at {int(addresses[~known][0]):#x}, where the machine has none")
    return found


class PieceReader:
    """Finds the pieces in a file that comes in order, in chunks of any size. Holds less than a chunk and a page."""

    def __init__(self, pieces: Pieces) -> None:
        self._spans = list(zip(pieces.offset.tolist(), pieces.size.tolist(), strict=True))
        self._next = 0
        self._start = 0  # offset in the file of the buffer's first byte
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The pieces that this chunk completes, in order; none is left out."""
        self._buffer += chunk
        end = self._start + len(self._buffer)
        found = []
        while self._next < len(self._spans):
            offset, size = self._spans[self._next]
            if offset + size > end:
                break
            at = offset - self._start
            found.append(bytes(self._buffer[at : at + size]))
            self._next += 1
        wanted = self._spans[self._next][0] if self._next < len(self._spans) else end
        drop = max(0, min(wanted, end) - self._start)
        del self._buffer[:drop]
        self._start += drop
        return found


class DumpHashes:
    """What is kept of a dump: a hash of every piece that arrived, and the pieces that need a closer look.

    Those are the ones whose hash is not `expected`, and those that are no whole pages; `limit` of them at most.
    """

    def __init__(self, pieces: Pieces, expected: Words, limit: int) -> None:
        """expected: xxh3_64 of each piece's page in the memory that the dump is held against."""
        self.pieces = pieces
        self.kept: dict[int, bytes] = {}  # by number
        self._reader = PieceReader(pieces)
        self._expected = np.where(pieces.whole, expected, 0).tolist()
        self._whole = pieces.whole.tolist()
        self._hashes: list[int] = []
        self._limit = limit

    @property
    def hashes(self) -> Words:
        """xxh3_64 of each piece that arrived, in order."""
        return np.array(self._hashes, np.uint64)

    @property
    def kept_pages(self) -> list[int]:
        """Physical addresses of the pages that the kept pieces belong to."""
        return [int(self.pieces.address[number]) & ~(PAGE_SIZE - 1) for number in self.kept]

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the file."""
        for piece in self._reader.feed(chunk):
            number = len(self._hashes)
            digest = xxhash.xxh3_64_intdigest(piece)
            self._hashes.append(digest)
            same = self._whole[number] and digest == self._expected[number]
            if not same and len(self.kept) < self._limit:
                self.kept[number] = piece


class Flattened:
    """makedumpfile's flattened format, in chunks of any size: what is to be written where."""

    def __init__(self) -> None:
        self.complete = False  # the mark at the end was seen
        self._buffer = bytearray()
        self._header = False
        self._offset = self._left = 0  # of the record being read

    def feed(self, chunk: bytes) -> list[tuple[int, bytes]]:
        """(offset in the dump, bytes) for what came in. Raises EvidenceError for anything but this format."""
        self._buffer += chunk
        if not self._header and not self._take_header():
            return []
        found = []
        while self._buffer and not self.complete:
            if self._left:
                part = bytes(self._buffer[: self._left])
                del self._buffer[: len(part)]
                found.append((self._offset, part))
                self._offset += len(part)
                self._left -= len(part)
            elif not self._take_record():
                break
        return found

    def _take_header(self) -> bool:
        if not self._buffer.startswith(_SIGNATURE[: len(self._buffer)]):
            raise EvidenceError(f"makedumpfile's flattened output begins with {bytes(self._buffer[:12])!r}")
        if len(self._buffer) < _FLAT_HEADER:
            return False
        del self._buffer[:_FLAT_HEADER]
        self._header = True
        return True

    def _take_record(self) -> bool:
        if len(self._buffer) < _RECORD.size:
            return False
        self._offset, self._left = _RECORD.unpack_from(self._buffer)
        del self._buffer[: _RECORD.size]
        if self._offset == _LAST:
            self.complete, self._left = True, 0
        elif self._offset < 0 or self._left < 0 or self._offset + self._left > MOST_BYTES:
            raise EvidenceError(f"makedumpfile's flattened output has {self._left} bytes for offset {self._offset}")
        return True
