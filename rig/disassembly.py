"""Instructions as text, in AT&T syntax as the kernel's sources have them. Pure."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from rig.model import CpuState

if TYPE_CHECKING:
    import capstone

_LMA = 1 << 10  # in EFER
_LONG, _DEFAULT_32 = 1 << 21, 1 << 22  # the L and D bits of a code segment's descriptor (SDM vol. 3, 3.4.5)


def width(state: CpuState) -> int:
    """Bits of the code that a CPU runs: 64, 32 or 16 (SDM vol. 3, 3.4.5 and 9.8.5)."""
    flags = state.segments["cs"].flags
    if state.efer & _LMA and flags & _LONG:
        return 64
    return 32 if flags & _DEFAULT_32 else 16


@functools.lru_cache(maxsize=4096)
def disassemble(code: bytes, address: int, bits: int) -> str:
    """The first instruction in `code`; "(bad)" where there is none, as in objdump."""
    return next((f"{name} {operands}".strip() for _, _, name, operands in _decode(code, address, bits)), "(bad)")


def length(code: bytes, address: int, bits: int) -> int:
    """Bytes of the first instruction in `code`; 1 where there is none: the CPU fetches that much at least."""
    return next((size for _, size, _, _ in _decode(code, address, bits)), 1)


def _decode(code: bytes, address: int, bits: int) -> list[tuple[int, int, str, str]]:
    return list(decoder(bits).disasm_lite(code, address, 1))


@functools.cache
def decoder(bits: int, *, detail: bool = False) -> capstone.Cs:
    """Capstone's decoder of 64-, 32- or 16-bit code. detail: it tells operands too, then in Intel's order."""
    import capstone  # takes 0.1 s, which a run has while its crash kernel boots

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    found = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    found.detail = detail
    if not detail:
        found.syntax = capstone.CS_OPT_SYNTAX_ATT
    return found
