"""A mapping of this very process stands for QEMU's: copy-on-write, of a file in memory."""

from __future__ import annotations

import mmap
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pytest
import xxhash

from rig.errors import GuestDied
from rig.memory.clone import ClonedRam
from rig.memory.image import FileRange
from rig.memory.physical import OutsideMemory
from rig.memory.snapshot import Snapshot
from rig.model import PAGE_SIZE

PAGES = 600


def lost() -> NoReturn:
    raise GuestDied("QEMU is gone")


@dataclass(frozen=True)
class Cloned:
    template: int
    mapped: mmap.mmap
    ram: ClonedRam

    def write(self, page: int, offset: int, content: bytes) -> None:
        at = page * PAGE_SIZE + offset
        self.mapped[at : at + len(content)] = content

    def hashes(self) -> list[int]:
        """As the mapping is, without the help of what is tested."""
        pages = range(0, len(self.mapped), PAGE_SIZE)
        return [xxhash.xxh3_64_intdigest(self.mapped[at : at + PAGE_SIZE]) for at in pages]


@pytest.fixture
def cloned() -> Iterator[Cloned]:
    """The template has data in its first 300 pages; what follows is a hole."""
    template = os.memfd_create("template")
    os.ftruncate(template, PAGES * PAGE_SIZE)
    os.pwrite(template, random.Random(1).randbytes(300 * PAGE_SIZE), 0)
    hashes = Snapshot(template, PAGES * PAGE_SIZE).hashes()
    mapped = mmap.mmap(template, PAGES * PAGE_SIZE, flags=mmap.MAP_PRIVATE)
    ram = ClonedRam(os.getpid(), template, hashes, lost)
    yield Cloned(template, mapped, ram)
    ram.close()
    mapped.close()
    os.close(template)


def test_what_was_written_is_its_own_and_the_template_stays(cloned: Cloned) -> None:
    assert not cloned.ram.own().any()
    cloned.write(7, 4095, b"ab")  # across two pages
    cloned.write(599, 0, b"end")
    assert np.flatnonzero(cloned.ram.own()).tolist() == [7, 8, 599]
    assert cloned.ram.read(2, 8 * PAGE_SIZE - 1) == b"ab"
    assert cloned.ram.read(100, PAGES * PAGE_SIZE - 3) == bytes(3)
    assert cloned.ram.read(1, PAGES * PAGE_SIZE) == b""  # what lies behind it in the process is none of its business
    assert os.pread(cloned.template, 3, 599 * PAGE_SIZE) == bytes(3)


def test_what_changed_since_a_capture(cloned: Cloned) -> None:
    cloned.write(3, 0, b"before")
    cloned.write(4, 0, b"before")
    first = cloned.ram.capture()
    assert first.changed().tolist() == []
    before = cloned.hashes()
    assert first.hashes().tolist() == before
    cloned.write(3, 0, b"before")  # as it was
    cloned.write(4, 0, b"behind")
    cloned.write(9, 0, os.pread(cloned.template, PAGE_SIZE, 9 * PAGE_SIZE))  # its own now, and as it was
    cloned.write(10, 17, b"new")
    cloned.write(450, 0, bytes(PAGE_SIZE))  # a hole was written to with zeros
    cloned.write(451, PAGE_SIZE - 1, b"\1")
    assert first.changed().tolist() == [4, 10, 451]
    assert first.hashes().tolist() == before  # it stays as it was
    memory = first.memory([FileRange(0, PAGES * PAGE_SIZE, 0)])
    assert memory.read(4 * PAGE_SIZE - 1, 8) == cloned.mapped[4 * PAGE_SIZE - 1 : 4 * PAGE_SIZE] + b"before" + (
        os.pread(cloned.template, 1, 4 * PAGE_SIZE + 6)
    )
    assert memory.read(10 * PAGE_SIZE, PAGE_SIZE) == os.pread(cloned.template, PAGE_SIZE, 10 * PAGE_SIZE)
    with pytest.raises(OutsideMemory):
        memory.read(PAGES * PAGE_SIZE - 1, 2)


def test_pages_that_go_back_to_the_template_are_seen(cloned: Cloned) -> None:
    cloned.write(5, 0, b"own")
    capture = cloned.ram.capture()
    cloned.mapped.madvise(mmap.MADV_DONTNEED, 5 * PAGE_SIZE, PAGE_SIZE)
    assert not cloned.ram.own().any()
    assert capture.changed().tolist() == [5]


def test_many_changes_are_found_as_by_reading_everything(cloned: Cloned) -> None:
    chance = random.Random(2)
    for page in chance.sample(range(PAGES), 200):
        cloned.write(page, chance.randrange(PAGE_SIZE), b"x")
    before, capture = cloned.hashes(), cloned.ram.capture()
    for page in chance.sample(range(PAGES), 400):
        cloned.write(page, chance.randrange(PAGE_SIZE), b"y")
    differs = [page for page, (then, now) in enumerate(zip(before, cloned.hashes(), strict=True)) if then != now]
    assert capture.changed().tolist() == differs
    left_out = np.arange(PAGES) < 300
    assert capture.changed(left_out).tolist() == [page for page in differs if page >= 300]
    assert 200 < len(differs) < PAGES


def test_a_mapping_that_was_cut_into_pieces(cloned: Cloned) -> None:
    """As by madvise(2) of a part. Another one of the same file, not all of it, is none."""
    other = mmap.mmap(cloned.template, 2 * PAGE_SIZE, flags=mmap.MAP_PRIVATE)
    cloned.mapped.madvise(mmap.MADV_DONTFORK, 100 * PAGE_SIZE, PAGE_SIZE)
    cloned.write(100, 0, b"found")
    again = ClonedRam(os.getpid(), cloned.template, cloned.ram.template_hashes, lost)
    assert again.read(5, 100 * PAGE_SIZE) == b"found"
    again.close()
    other.close()


def test_a_process_that_is_gone(cloned: Cloned) -> None:
    with subprocess.Popen(["sleep", "inf"]) as process:
        with pytest.raises(GuestDied):  # it lives, and has not mapped it
            ClonedRam(process.pid, cloned.template, cloned.ram.template_hashes, lost)
        process.kill()
    with pytest.raises(GuestDied):
        ClonedRam(process.pid, cloned.template, cloned.ram.template_hashes, lost)
