"""The registers of an exception that ends in a panic: `struct pt_regs`, as the kernel hands it on. Pure.

die() gives crash_kexec() and __crash_kexec() the registers of the exception as their first argument; panic() gives
__crash_kexec() none (kernel/panic.c, arch/x86/kernel/dumpstack.c). What is given ends up in the dump's NT_PRSTATUS
instead of the registers at that moment (arch/x86/include/asm/kexec.h, crash_setup_regs()).
"""

from __future__ import annotations

from collections.abc import Mapping

from rig.kernel import ages, kimage
from rig.kernel.symbols import PANIC_SYMBOLS
from rig.memory import paging
from rig.memory.paging import NotMapped
from rig.memory.physical import Memory, OutsideMemory
from rig.model import Arch, CpuState, PagingMode

# arch/x86/include/asm/ptrace.h. cs, ss, ds, es, fs and gs hold the selector in their low 16 bits.
_AMD64 = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_ax rip cs rflags rsp ss"
_I386 = "rbx rcx rdx rsi rdi rbp rax ds es {} orig_ax rip cs rflags rsp ss"


def order(arch: Arch, release: str) -> tuple[str, ...]:
    """The words of a struct pt_regs, of a kernel of that release."""
    if arch is Arch.AMD64:
        return tuple(_AMD64.split())
    old = (selectors for bound, selectors in ages.PT_REGS_SELECTORS if ages.older(release, bound))
    return tuple(_I386.format(next(old, ages.PT_REGS_ALL_SELECTORS)).split())


def read(
    memory: Memory, mode: PagingMode, cpu: CpuState, arch: Arch, function: tuple[str, str], release: str
) -> dict[str, int]:
    """The registers handed to a function, at whose first instruction the CPU is; {} when it was given none.

    function: its symbol, and where functions of this kernel have their first argument: one of kimage.arguments(). Of a
    kernel that doesn't hand any on, the argument is anything: what is there must be plausible.
    """
    symbol, place = function
    at = kimage.arguments(memory, mode, cpu, arch).get(place, 0) if symbol in PANIC_SYMBOLS else 0
    if not at:
        return {}
    names = order(arch, release)
    try:
        blob = paging.read(memory, mode, cpu.cr3, at, len(names) * arch.word)
    except (NotMapped, OutsideMemory):
        return {}
    registers = parse(names, arch.word, blob)
    if not plausible(registers, cpu):
        return {}
    if arch is Arch.I386 and not registers["cs"] & 3 and ages.older(release, ages.PT_REGS_WHOLE):
        registers |= {"rsp": at + names.index("rsp") * arch.word, "ss": cpu.segments["ss"].selector}
    return registers


def parse(names: tuple[str, ...], word: int, blob: bytes) -> dict[str, int]:
    """Registers by name. word: bytes of each."""
    return {name: int.from_bytes(blob[i * word : (i + 1) * word], "little") for i, name in enumerate(names)}


def plausible(registers: Mapping[str, int], cpu: CpuState) -> bool:
    """Whether these can be the registers of an exception on a CPU that is in the kernel: by their code segment."""
    kernel, found = cpu.segments["cs"].selector, registers["cs"] & 0xFFFF
    return found == kernel or (found & 3 == 3 and registers["ss"] & 3 == 3)
