"""struct pt_regs, as an exception leaves it on the stack, of the kernels of 2006 and today's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rig.kernel import exception
from rig.memory.image import PagesMemory
from rig.model import PAGE_SIZE, Arch, PagingMode
from tests.forge import PGD, cpu, pgd_page

DIRECT = 0xC0000000  # the kernel's 4 MiB there are physical 0
STACK, REGS = 0x201FF0, 0x202FE0  # physical; the registers go on in the next page
KERNEL_CS, KERNEL_SS, USER_CS, USER_SS = 0x60, 0x68, 0x73, 0x7B
OLD, NEW = "2.6.18", "6.1.0"


@pytest.mark.parametrize(
    ("arch", "release", "size", "offsets"),
    [
        # ebx ecx edx esi edi ebp eax xds xes, then orig_eax eip xcs eflags esp xss: include/asm-i386/ptrace.h
        (Arch.I386, "2.6.18", 60, {"ds": 28, "orig_ax": 36, "rip": 40, "cs": 44, "rsp": 52, "ss": 56}),
        (Arch.I386, "2.6.20", 64, {"gs": 36, "rip": 44, "cs": 48, "rsp": 56}),
        (Arch.I386, "2.6.26-2-686", 64, {"fs": 36, "rip": 44, "cs": 48, "rsp": 56}),
        (Arch.I386, "2.6.32", 68, {"fs": 36, "gs": 40, "rip": 48, "cs": 52, "rsp": 60}),
        (Arch.I386, "mine", 68, {"rip": 48, "rsp": 60, "ss": 64}),
        (Arch.AMD64, "2.6.18", 168, {"rip": 128, "cs": 136, "rsp": 152, "ss": 160}),
        (Arch.AMD64, "6.1.0", 168, {"rip": 128, "cs": 136, "rsp": 152, "ss": 160}),
    ],
)
def test_words_are_where_that_kernel_has_them(arch: Arch, release: str, size: int, offsets: dict[str, int]) -> None:
    names = exception.order(arch, release)
    assert len(names) * arch.word == size
    assert {name: names.index(name) * arch.word for name in offsets} == offsets


def read(release: str, *, place: str = "EAX", symbol: str = "crash_kexec", cs: int = KERNEL_CS) -> dict[str, int]:
    """Registers 1, 2, 3... at REGS but for cs and ss. EAX points to them, or else the word above the return address."""
    names = exception.order(Arch.I386, release)
    special = {"cs": 0xDEAD0000 | cs, "ss": USER_SS if cs & 3 else 0xBEEF}
    blob = b"".join(special.get(name, n).to_bytes(4, "little") for n, name in enumerate(names, 1))
    pages = {PGD // PAGE_SIZE: bytearray(pgd_page()), REGS // PAGE_SIZE + 1: bytearray(PAGE_SIZE)}
    for at, data in ((REGS, blob), (STACK + 4, (DIRECT + REGS).to_bytes(4, "little"))):
        for offset, byte in enumerate(data, at):
            pages.setdefault(offset // PAGE_SIZE, bytearray(PAGE_SIZE))[offset % PAGE_SIZE] = byte
    state = cpu(0, rsp=DIRECT + STACK)
    state = replace(state, general={**state.general, "rax": DIRECT + REGS if place == "EAX" else DIRECT})
    memory = PagesMemory({pfn: bytes(page) for pfn, page in pages.items()})
    return exception.read(memory, PagingMode.TWO_LEVEL, state, Arch.I386, (symbol, place), release)


def test_read_across_pages_from_where_the_argument_is() -> None:
    assert read(NEW)["rip"] == 13
    assert read(OLD)["rip"] == 11
    assert read(OLD, place="the stack")["rip"] == 11  # built without -mregparm=3: EAX holds anything


def test_of_old_kernels_the_stack_goes_on_behind_the_registers() -> None:
    """In the kernel the CPU pushes neither ESP nor SS; in user mode it does, and a new kernel completes them."""
    assert (read(OLD)["rsp"], read(OLD)["ss"]) == (DIRECT + REGS + 52, KERNEL_SS)
    assert read(OLD, cs=USER_CS)["rsp"] == 14
    assert (read(NEW)["rsp"], read(NEW)["ss"]) == (16, 0xBEEF)


def test_what_is_no_exception() -> None:
    assert read(OLD, symbol="machine_kexec") == {}  # it takes a struct kimage
    assert read(OLD, place="") == {}
    assert read(OLD, cs=0xC10) == {}  # no code segment of the kernel
    assert read(NEW, cs=0x73)["cs"] & 0xFFFF == USER_CS
    assert exception.plausible({"cs": USER_CS, "ss": KERNEL_SS}, cpu(0)) is False
