"""A recording as QEMU writes it, for 32-bit code with paging as the forged machine has it."""

from __future__ import annotations

from collections.abc import Sequence

import zstandard

from rig.evidence import Evidence
from tests.forge import PGD

_STATE = """\
EAX={eax:08x} EBX={ebx:08x} ECX=00000000 EDX=00000000
ESI=00000000 EDI=00000000 EBP=00000000 ESP=c0201ff0
EIP={eip:08x} EFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =007b 00000000 ffffffff 00cff300 DPL=3 DS   [-WA]
CS =0060 00000000 ffffffff 00c09b00 DPL=0 CS32 [-RA]
SS =0068 00000000 ffffffff 00c09300 DPL=0 DS   [-WA]
DS =007b 00000000 ffffffff 00cff300 DPL=3 DS   [-WA]
FS =00d8 00000000 ffffffff 008f9300 DPL=0 DS16 [-WA]
GS =0033 00000000 ffffffff 00dff300 DPL=3 DS   [-WA]
LDT=0000 00000000 00000000 00008200 DPL=0 LDT
TR =0080 00000000 0000407b 00008900 DPL=0 TSS32-avl
GDT=     00000000 000000ff
IDT=     00000000 000007ff
CR0=80050033 CR2=00000000 CR3={cr3:08x} CR4=00000010
EFER=0000000000000000
"""


def recording(steps: Sequence[tuple[int, str, int]]) -> str:
    """(address, code in hexadecimal, EBX) of each instruction; EAX is 0x39e067."""
    return "".join(
        f"----------------\nIN: \n0x{pc:08x}:  {bytes.fromhex(code).hex(' ')}  any\n\n"
        f"Trace 0: 0x7f0000000000 [00000000/{pc:016x}/00000000/ff000201] \n"
        + _STATE.format(eax=0x39E067, ebx=ebx, eip=pc, cr3=PGD)
        for pc, code, ebx in steps
    )


def record(evidence: Evidence, steps: Sequence[tuple[int, str, int]]) -> Evidence:
    """The same evidence with a recording."""
    (evidence.path / "trace.log.zst").write_bytes(zstandard.compress(recording(steps).encode()))
    return Evidence(evidence.path)
