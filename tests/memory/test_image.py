from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rig.errors import EvidenceError
from rig.memory.image import (
    FileMemory,
    FileRange,
    PagesMemory,
    copy,
)
from rig.memory.physical import OutsideMemory
from rig.model import PAGE_SIZE

MIB = 1 << 20
Opened = Callable[[str, bytes], int]


@pytest.fixture
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Opened:
    """Make a file of some bytes and open it for reading and writing."""

    def make(name: str, content: bytes) -> int:
        (tmp_path / name).write_bytes(content)
        fd = os.open(tmp_path / name, os.O_RDWR)
        request.addfinalizer(lambda: os.close(fd))
        return fd

    return make


def _noise(size: int) -> bytes:
    return np.random.default_rng(1).bytes(size)


def test_copy_is_exact_and_keeps_zeros_as_holes(opened: Opened) -> None:
    content = _noise(MIB) + bytes(4 * MIB) + _noise(PAGE_SIZE)
    src, dst = opened("src", content + b"beyond"), opened("dst", b"\xff" * 6 * MIB)
    copy(src, dst, len(content))
    assert os.pread(dst, 7 * MIB, 0) == content
    assert os.fstat(dst).st_blocks * 512 < 2 * MIB


@pytest.mark.parametrize("size", [0, PAGE_SIZE, MIB])
def test_small_sizes(opened: Opened, size: int) -> None:
    content = _noise(size)
    src, dst = opened("src", content), opened("dst", b"")
    copy(src, dst, size)
    assert os.pread(dst, 2 * MIB, 0) == content


def test_a_torn_image_is_told(opened: Opened) -> None:
    whole, torn = opened("whole", bytes(2 * MIB)), opened("torn", bytes(MIB + 5))
    with pytest.raises(EvidenceError, match="ends at 0x100005, 0x200000 or more was expected"):
        copy(torn, whole, 2 * MIB)


def test_half_pages_are_refused(opened: Opened) -> None:
    with pytest.raises(ValueError, match="4097 bytes are no whole number of pages"):
        copy(opened("image", bytes(8192)), opened("dst", b""), 4097)


def test_file_memory_as_qemu_splits_it(opened: Opened) -> None:
    # RAM of 3 pages: two below the hole, the third from 4 GiB on.
    content = b"a" * PAGE_SIZE + b"b" * PAGE_SIZE + b"c" * PAGE_SIZE
    memory = FileMemory(
        opened("ram", content),
        [FileRange(1 << 32, PAGE_SIZE, 2 * PAGE_SIZE), FileRange(0, 2 * PAGE_SIZE, 0)],
    )
    assert memory.read(PAGE_SIZE - 1, 2) == b"ab"
    assert memory.read((1 << 32) + PAGE_SIZE - 4, 4) == b"cccc"
    for address, size, missing in (
        (2 * PAGE_SIZE, 1, 2 * PAGE_SIZE),
        (2 * PAGE_SIZE - 4, 8, 2 * PAGE_SIZE),
        ((1 << 32) - 1, 1, (1 << 32) - 1),
        ((1 << 32) + PAGE_SIZE, 1, (1 << 32) + PAGE_SIZE),
    ):
        with pytest.raises(OutsideMemory) as caught:
            memory.read(address, size)
        assert caught.value.address == missing


def test_file_memory_reads_across_adjoining_ranges(opened: Opened) -> None:
    fd = opened("ram", b"a" * PAGE_SIZE + b"b" * PAGE_SIZE)
    memory = FileMemory(fd, [FileRange(0, PAGE_SIZE, PAGE_SIZE), FileRange(PAGE_SIZE, PAGE_SIZE, 0)])
    assert memory.read(PAGE_SIZE - 2, 4) == b"bbaa"


def test_file_memory_shorter_than_it_says(opened: Opened) -> None:
    memory = FileMemory(opened("ram", bytes(PAGE_SIZE)), [FileRange(0, 2 * PAGE_SIZE, 0)])
    with pytest.raises(OutsideMemory, match="0x1000 is outside memory"):
        memory.read(PAGE_SIZE - 8, 16)


def test_file_memory_refuses_overlaps(opened: Opened) -> None:
    with pytest.raises(ValueError, match="overlap at 0x1000"):
        FileMemory(opened("ram", b""), [FileRange(0x1000, 0x1000, 0), FileRange(0, 0x1001, 0)])


def test_pages_memory_and_its_fallback() -> None:
    below = PagesMemory({1: b"b" * PAGE_SIZE, 2: b"c" * PAGE_SIZE})
    above = PagesMemory({1: b"B" * PAGE_SIZE}, below)
    assert below.read(2 * PAGE_SIZE - 1, 2) == b"bc"
    assert above.read(2 * PAGE_SIZE - 1, 2) == b"Bc"
    with pytest.raises(OutsideMemory) as caught:
        above.read(3 * PAGE_SIZE - 1, 2)
    assert caught.value.address == 3 * PAGE_SIZE
    with pytest.raises(ValueError, match="page 0x7 has 3 bytes, not 4096"):
        PagesMemory({7: b"abc"})
