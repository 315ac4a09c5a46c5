"""Dumps of a few pages, cut, followed and put together by hand."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest
import xxhash

from rig.errors import EvidenceError
from rig.memory.dump import DumpHashes, Flattened, PieceReader, cut, hashes_at
from rig.memory.vmcore import Load

# As kexec-tools has it: low memory that ends within a page, more RAM, and the kernel's image inside of that RAM, again.
LOADS = [
    Load(physical=0x5000, virtual=0, offset=0x1000, size=0x2000),
    Load(physical=0x1000, virtual=0, offset=0x3000, size=0x1C00),
    Load(physical=0x4000, virtual=0, offset=0x5000, size=0x3000),
]
SPANS = [  # address, size, offset
    (0x5000, 0x1000, 0x1000),
    (0x6000, 0x1000, 0x2000),
    (0x1000, 0x1000, 0x3000),
    (0x2000, 0xC00, 0x4000),
    (0x4000, 0x1000, 0x5000),
    (0x5000, 0x1000, 0x6000),
    (0x6000, 0x1000, 0x7000),
]
RAM = [(0, 0x3000, 0), (0x4000, 0x3000, 0x3000)]  # a hole of one page, which the file has not


def content(address: int, size: int) -> bytes:
    """What physical memory holds: each byte says which page it is of, and where in it."""
    return bytes((a >> 12) * 31 + a * 7 & 0xFF for a in range(address, address + size))


def whole_file() -> bytes:
    """Headers, the pieces with what lies between them, and something behind the last."""
    blob = bytearray(b"\xee" * 0x8100)
    for address, size, offset in SPANS:
        blob[offset : offset + size] = content(address, size)
    return bytes(blob)


def chunks(blob: bytes, size: int) -> list[bytes]:
    return [blob[at : at + size] for at in range(0, len(blob), size)]


def hashes_of_ram() -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    pages = [content(start + at, 0x1000) for start, size, _ in RAM for at in range(0, size, 0x1000)]
    return np.array([xxhash.xxh3_64_intdigest(page) for page in pages], np.uint64)


def spans(loads: Sequence[Load]) -> list[tuple[int, int, int]]:
    pieces = cut(loads)
    return list(zip(pieces.address.tolist(), pieces.size.tolist(), pieces.offset.tolist(), strict=True))


# ---------------------------------------------------------------- pieces


def test_pages_are_cut_in_the_order_of_the_file() -> None:
    assert spans(LOADS[::-1]) == SPANS
    assert spans([]) == []


def test_a_load_that_begins_and_ends_within_pages() -> None:
    load = Load(physical=0x1F80, virtual=0, offset=0x40, size=0x1100)
    assert spans([load]) == [(0x1F80, 0x80, 0x40), (0x2000, 0x1000, 0xC0), (0x3000, 0x80, 0x10C0)]
    within = Load(physical=0x1010, virtual=0, offset=7, size=5)
    assert spans([within]) == [(0x1010, 5, 7)]


def test_a_load_without_bytes_in_the_file_has_no_pieces() -> None:
    """makedumpfile writes one for excluded pages at the end of a range."""
    assert spans([Load(0x9000, 0, 0, 0), LOADS[0]]) == SPANS[:2]


def test_loads_that_share_bytes_of_the_file_are_refused() -> None:
    with pytest.raises(EvidenceError, match="share its bytes at 0x2fff"):
        cut([LOADS[0], Load(0x1000, 0, 0x2FFF, 0x1000)])


def test_hashes_by_physical_address() -> None:
    hashes = np.arange(100, 106, dtype=np.uint64)
    assert hashes_at(np.array([0x6000, 0x0, 0x2C00, 0x4000], np.uint64), hashes, RAM).tolist() == [105, 100, 102, 103]
    with pytest.raises(EvidenceError, match="memory at 0x3000, where the machine has none"):
        hashes_at(np.array([0x0, 0x3000], np.uint64), hashes, RAM)


# ---------------------------------------------------------------- the stream


@pytest.mark.parametrize("size", [1, 7, 4095, 4096, 4097, 0x3001, 1 << 20])
def test_chunks_of_any_size_give_the_same_pieces(size: int) -> None:
    reader = PieceReader(cut(LOADS))
    found = [piece for chunk in chunks(whole_file(), size) for piece in reader.feed(chunk)]
    assert found == [content(address, length) for address, length, _ in SPANS]


def test_a_short_stream_gives_only_whole_pieces() -> None:
    reader = PieceReader(cut(LOADS))
    found = [piece for chunk in chunks(whole_file()[:0x4BFF], 1000) for piece in reader.feed(chunk)]
    assert len(found) == 3  # the fourth lacks its last byte
    assert len(reader.feed(b"\0")) == 1


def taken(blob: bytes, limit: int = 10) -> DumpHashes:
    pieces = cut(LOADS)
    found = DumpHashes(pieces, hashes_at(pieces.address, hashes_of_ram(), RAM), limit)
    for chunk in chunks(blob, 3000):
        found.feed(chunk)
    return found


def test_of_a_faithful_dump_only_broken_pages_are_kept() -> None:
    found = taken(whole_file())
    assert found.kept == {3: content(0x2000, 0xC00)}
    assert found.hashes.tolist() == [xxhash.xxh3_64_intdigest(content(a, n)) for a, n, _ in SPANS]


def test_what_differs_is_kept_up_to_a_limit_but_hashed_to_the_end() -> None:
    blob = bytearray(whole_file())
    for offset in (0x1FFF, 0x5000, 0x7ABC):  # in pieces 0, 4 and 6
        blob[offset] ^= 1
    found = taken(bytes(blob), limit=3)
    assert list(found.kept) == [0, 3, 4]
    assert found.kept[0] == bytes(blob[0x1000:0x2000])
    assert found.kept_pages == [0x5000, 0x2000, 0x4000]
    assert len(found.hashes) == 7


# ---------------------------------------------------------------- makedumpfile's flattened format

HEADER = struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0")
END = struct.pack(">qq", -1, -1)


def record(offset: int, data: bytes) -> bytes:
    return struct.pack(">qq", offset, len(data)) + data


FLAT = HEADER + record(64, b"memory" * 900) + record(0, b"headers") + record(9000, b"") + END


@pytest.mark.parametrize("size", [1, 15, 16, 17, 4096, 4100, 1 << 20])
def test_flattened_output_is_put_where_it_belongs(size: int) -> None:
    flat, file = Flattened(), bytearray(6000)
    for chunk in chunks(FLAT, size):
        assert not flat.complete
        for offset, blob in flat.feed(chunk):
            file[offset : offset + len(blob)] = blob
    assert flat.complete
    assert bytes(file).rstrip(b"\0") == b"headers".ljust(64, b"\0") + b"memory" * 900


def test_output_that_breaks_off_is_not_complete() -> None:
    flat = Flattened()
    assert flat.feed(FLAT[:-1])
    assert not flat.complete


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"KDUMP   ", "begins with b'KDUMP   '"),
        (b"makedumpfilf", "begins with b'makedumpfilf'"),
        (HEADER + struct.pack(">qq", -2, 5), "5 bytes for offset -2"),
        (HEADER + struct.pack(">qq", 5, -2), "-2 bytes for offset 5"),
    ],
)
def test_another_format_is_refused(blob: bytes, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        Flattened().feed(blob)


@pytest.mark.parametrize(
    ("loads", "message"),
    [
        ([Load(0, 0, 0, 1 << 36)], "promises 16777217 pages"),
        ([Load(0, 0, 0, 1 << 35), Load(0, 0, 1 << 36, 1 << 30)], "promises 8650754 pages"),
        ([Load((1 << 52) - 4096, 0, 0, 8192)], "physical addresses end at"),
        ([Load(0, 0, (1 << 64) - 4096, 4096)], "0xfffffffffffff000 in the file"),
    ],
)
def test_no_guest_has_so_much(loads: list[Load], message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        cut(loads)


def test_fewer_hashes_than_memory() -> None:
    with pytest.raises(EvidenceError, match="2 hashes of memory, fewer than"):
        hashes_at(np.array([0x2000], np.uint64), np.zeros(2, np.uint64), RAM)


def test_a_flattened_record_beyond_any_file() -> None:
    flat = b"makedumpfile".ljust(4096, b"\0") + struct.pack(">qq", 1 << 62, 5)
    with pytest.raises(EvidenceError, match="has 5 bytes for offset 4611686018427387904"):
        Flattened().feed(flat)
