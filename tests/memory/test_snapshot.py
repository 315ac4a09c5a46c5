from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import xxhash

from rig.errors import EvidenceError
from rig.memory.image import ZERO_PAGE, FileRange
from rig.memory.physical import OutsideMemory
from rig.memory.snapshot import Snapshot
from rig.model import PAGE_SIZE

MIB = 1 << 20
Made = Callable[..., int]


@pytest.fixture
def made(request: pytest.FixtureRequest) -> Made:
    """A file in memory, of a size, with some bytes at some offsets; what lies between them is holes."""

    def make(size: int, contents: Mapping[int, bytes]) -> int:
        fd = os.memfd_create("made")
        request.addfinalizer(lambda: os.close(fd))
        os.ftruncate(fd, size)
        for offset, content in contents.items():
            os.pwrite(fd, content, offset)
        return fd

    return make


def _noise(size: int) -> bytes:
    return np.random.default_rng(1).bytes(size)


def test_changed_pages_across_chunks(made: Made) -> None:
    before = bytearray(_noise(3 * MIB + PAGE_SIZE))
    after = bytearray(before)
    for offset in (0, PAGE_SIZE - 1, 255 * PAGE_SIZE, 256 * PAGE_SIZE, 3 * MIB + PAGE_SIZE - 1):
        after[offset] ^= 1
    a, b = made(len(before), {0: bytes(before)}), made(len(before), {0: bytes(after)})
    assert Snapshot(a, len(before)).changed(other=b).tolist() == [0, 255, 256, 768]
    assert Snapshot(a, len(before)).changed(other=a).tolist() == []
    assert Snapshot(a, 2 * MIB).changed(other=b).tolist() == [0, 255, 256]


def test_it_stays_as_the_file_was(made: Made) -> None:
    content = _noise(2 * MIB) + bytes(MIB) + _noise(PAGE_SIZE)
    fd = made(len(content), {0: content})
    snapshot = Snapshot(fd, len(content))
    os.pwrite(fd, b"\0" * 5 * PAGE_SIZE, 3 * PAGE_SIZE)  # a page that only loses, one in what was zero, one at the end
    os.pwrite(fd, b"x", 2 * MIB + 5)
    os.ftruncate(fd, len(content) - PAGE_SIZE)
    os.ftruncate(fd, len(content))  # the last page is a hole now
    assert snapshot.changed(other=fd).tolist() == [3, 4, 5, 6, 7, 512, 768]
    memory = snapshot.memory([FileRange(0, len(content), 0)])
    assert memory.read(0, len(content)) == content
    assert memory.read(2 * MIB - 3, 6) == content[2 * MIB - 3 : 2 * MIB] + bytes(3)
    with pytest.raises(OutsideMemory):
        memory.read(len(content) - 1, 2)
    assert snapshot.kept == 3 * MIB


def test_hashes_are_xxh3_of_each_page(made: Made) -> None:
    almost_zero = bytes(PAGE_SIZE - 1) + b"\1"
    content = ZERO_PAGE + almost_zero + _noise(2 * MIB) + ZERO_PAGE
    hashes = Snapshot(made(len(content), {0: content}), len(content)).hashes()
    expected = [xxhash.xxh3_64_intdigest(content[at : at + PAGE_SIZE]) for at in range(0, len(content), PAGE_SIZE)]
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == expected
    assert len(set(expected[:3])) == 3


@pytest.mark.parametrize("size", [0, PAGE_SIZE, MIB, 70 * MIB])
def test_sizes_around_chunks_and_slabs(made: Made, size: int) -> None:
    content = np.arange(size // 4, dtype=np.uint32).tobytes()  # no two pages are the same
    fd = made(size, {0: content})
    snapshot = Snapshot(fd, size)
    assert (len(snapshot.changed(other=fd)), len(snapshot.hashes())) == (0, size // PAGE_SIZE)
    assert snapshot.memory([FileRange(0, size, 0)]).read(0, size) == content


def test_a_torn_image_is_told(made: Made) -> None:
    whole, torn = made(2 * MIB, {}), made(MIB + 5, {})
    with pytest.raises(EvidenceError, match="ends at 0x100005, 0x200000 or more was expected"):
        Snapshot(whole, 2 * MIB).changed(other=torn)
    with pytest.raises(EvidenceError, match="ends at 0x100005"):
        Snapshot(torn, 2 * MIB)


@pytest.mark.timeout(30)
def test_what_was_never_written_costs_nothing(made: Made) -> None:
    # reading 8 TiB, holes or not, would take an hour
    size, last = 8 << 40, (8 << 40) // PAGE_SIZE - 1
    a = made(size, {5 * PAGE_SIZE: b"a", 300 * PAGE_SIZE: b"x"})
    b = made(size, {5 * PAGE_SIZE: b"b", 300 * PAGE_SIZE: b"x", last * PAGE_SIZE: b"y"})
    snapshot = Snapshot(a, size)
    assert snapshot.changed(other=b).tolist() == [5, last]
    assert Snapshot(b, size).changed(other=a).tolist() == [5, last]
    assert Snapshot(b, size).changed(other=b).tolist() == []
    assert snapshot.kept == 2 * MIB


def test_half_pages_are_refused(made: Made) -> None:
    with pytest.raises(ValueError, match="4097 bytes are no whole number of pages"):
        Snapshot(made(8192, {}), 4097)
