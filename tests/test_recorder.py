"""Captures of a small machine: RAM as a file whose end appears, as behind a PCI hole, at another physical address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from rig.errors import ProtocolError
from rig.memory.image import FileRange, RangesMemory
from rig.memory.physical import VGA_TEXT
from rig.memory.ram import SharedRam
from rig.model import PAGE_SIZE, Checkpoint, Range
from rig.recorder import Recorder

SIZE = 512 * PAGE_SIZE
HIGH = 1 << 32  # where the last 256 pages are
RANGES = ((0, 0xA0000, 0), (0xC0000, 0x40000, 0xC0000), (HIGH, 256 * PAGE_SIZE, 0x100000))


@dataclass
class Machine:
    fd: int
    window: bytes = bytes(VGA_TEXT[1] - VGA_TEXT[0])
    elsewhere: bool = False  # whether QMP looks at another memory

    def __post_init__(self) -> None:
        self.recorder = Recorder(SharedRam(self.fd, SIZE), RANGES, self.read_physical)

    def read_physical(self, address: int, size: int) -> bytes:
        """As QMP's pmemsave does."""
        if address == VGA_TEXT[0]:
            return self.window
        if self.elsewhere:
            return bytes(size)
        return RangesMemory(SharedRam(self.fd, SIZE).read, [FileRange(*each) for each in RANGES]).read(address, size)

    def write(self, address: int, content: bytes) -> None:
        os.pwrite(self.fd, content, address if address < HIGH else address - HIGH + 0x100000)


@pytest.fixture
def machine() -> Iterator[Machine]:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, SIZE)
    machine = Machine(fd)
    machine.write(0x5000, b"root of all")
    with machine.recorder:
        machine.recorder.capture(Checkpoint.PANIC)
        yield machine
    os.close(fd)


def changed(machine: Machine) -> list[int]:
    return [pfn * PAGE_SIZE for pfn in machine.recorder.changed_pages(Checkpoint.HANDOVER)]


def test_changes_are_told_by_their_physical_addresses(machine: Machine) -> None:
    machine.write(0x5000, b"r")  # as it was
    machine.write(0xC0000, b"x")
    machine.write(HIGH + 3, b"y")
    os.pwrite(machine.fd, b"hidden", 0xB8000)  # RAM that the VGA window hides is no part of the machine
    machine.window = b"kexec" + machine.window[5:]
    machine.recorder.capture(Checkpoint.HANDOVER)
    assert changed(machine) == [VGA_TEXT[0], 0xC0000, HIGH]
    at_handover = machine.recorder.at(Checkpoint.HANDOVER)
    assert (at_handover.read(HIGH + 3, 1), machine.recorder.at_panic.read(HIGH + 3, 1)) == (b"y", b"\0")
    assert at_handover.read(0x5000, 11) == b"root of all"


@pytest.mark.parametrize(
    "left_out",
    [
        Range(HIGH + PAGE_SIZE, HIGH + 3 * PAGE_SIZE - 1, "Crash kernel"),
        Range(HIGH + 1, HIGH + 2 * PAGE_SIZE, "whose first whole page is the second, and that ends in the third"),
        {HIGH + PAGE_SIZE, HIGH + 2 * PAGE_SIZE, 0xA0000},  # the last is no RAM
    ],
    ids=["region", "odd", "pages"],
)
def test_what_is_left_out_is_not_kept(machine: Machine, left_out: Range | set[int]) -> None:
    for page in range(4):
        machine.write(HIGH + page * PAGE_SIZE, b"new")
    machine.recorder.capture(Checkpoint.HANDOVER, left_out)
    assert changed(machine) == [HIGH, HIGH + 3 * PAGE_SIZE]


def test_another_memory_than_qmp_shows_is_refused(machine: Machine) -> None:
    machine.recorder.cross_check(0x5123)
    machine.elsewhere = True
    with pytest.raises(ProtocolError, match="disagree about the page at 0x5000"):
        machine.recorder.cross_check(0x5123)
