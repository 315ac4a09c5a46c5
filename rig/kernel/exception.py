"""The registers of an exception that ends in a panic: `struct pt_regs`, as the kernel hands it on. Pure.

die() gives crash_kexec() and __crash_kexec() the registers of the exception as their first argument; panic() gives
__crash_kexec() none (kernel/panic.c, arch/x86/kernel/dumpstack.c). What is given ends up in the dump's NT_PRSTATUS
instead of the registers at that moment (arch/x86/include/asm/kexec.h, crash_setup_regs()).
"""

from __future__ import annotations

from collections.abc import Mapping

from rig.kernel.symbols import PANIC_SYMBOLS
from rig.model import Arch, CpuState

# arch/x86/include/asm/ptrace.h. cs, ss, ds, es, fs and gs hold the selector in their low 16 bits.
_ORDER: Mapping[Arch, str] = {
    Arch.AMD64: "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_ax rip cs rflags rsp ss",
    Arch.I386: "rbx rcx rdx rsi rdi rbp rax ds es fs gs orig_ax rip cs rflags rsp ss",
}


def size(arch: Arch) -> int:
    """Bytes of a struct pt_regs."""
    return len(_ORDER[arch].split()) * arch.word


def pointer(arch: Arch, symbol: str, cpu: CpuState) -> int:
    """Virtual address of the registers handed to `symbol`, at whose first instruction the CPU is; 0: there are none.

    By the calling convention of x86_64, and of i386 built with -mregparm=3 (arch/x86/Makefile). Of a kernel built
    without it the address is anything: what is there must be `plausible`.
    """
    if symbol not in PANIC_SYMBOLS:
        return 0
    return cpu.general["rdi" if arch is Arch.AMD64 else "rax"]


def parse(arch: Arch, blob: bytes) -> dict[str, int]:
    """Registers by name, of a struct pt_regs. ValueError when it has another size."""
    if len(blob) != size(arch):
        raise ValueError(f"struct pt_regs has {size(arch)} bytes, not {len(blob)}")
    word = arch.word
    return {
        name: int.from_bytes(blob[i * word : (i + 1) * word], "little") for i, name in enumerate(_ORDER[arch].split())
    }


def plausible(registers: Mapping[str, int], cpu: CpuState) -> bool:
    """Whether these can be the registers of an exception on a CPU that is in the kernel: by their code segment."""
    kernel, found = cpu.segments["cs"].selector, registers["cs"] & 0xFFFF
    return found == kernel or (found & 3 == 3 and registers["ss"] & 3 == 3)
