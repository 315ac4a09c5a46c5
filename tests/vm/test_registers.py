from __future__ import annotations

import pytest

from rig.errors import ProtocolError
from rig.model import PagingMode, Segment
from rig.vm.registers import parse

# QEMU 7.2, x86_64 Linux 6.1 at __crash_kexec, FPU and debug registers shortened.
LONG = """
CPU#0
RAX=0000000000000000 RBX=ffffffff857db609 RCX=c0000000ffffefff RDX=0000000000000000
RSI=00000000ffffefff RDI=0000000000000000 RBP=ffffd32440013da0 RSP=ffffd32440013d28
R8 =0000000000000000 R9 =ffffd32440013aa8 R10=0000000000000003 R11=ffffffff85ed4448
R12=0000000000000000 R13=ffffd32440013d30 R14=ffffffff85505f80 R15=0000000000000000
RIP=ffffffff845740a0 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0000 0000000000000000 00000000 00000000
CS =0010 0000000000000000 ffffffff 00a09b00 DPL=0 CS64 [-RA]
SS =0018 0000000000000000 ffffffff 00c09300 DPL=0 DS   [-WA]
DS =0000 0000000000000000 00000000 00000000
FS =0000 00000000156ad3c0 00000000 00000000
GS =0000 ffff8a0654600000 00000000 00000000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00000000156af220 CR3=0000000010446000 CR4=000006f0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
XMM00=0000000000000000 0000000000000000 XMM01=0000000000000000 0000000000000000
"""

# The same QEMU, 32-bit Linux 6.1 (2-level paging) at __crash_kexec.
SHORT = """
CPU#1
EAX=00000000 EBX=00000000 ECX=00000000 EDX=c1152280
ESI=c5b039f8 EDI=c5e88aa0 EBP=c1117d48 ESP=c1117d34
EIP=c5128210 EFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =007b 00000000 ffffffff 00cff300 DPL=3 DS   [-WA]
CS =0060 00000000 ffffffff 00c09b00 DPL=0 CS32 [-RA]
SS =0068 00000000 ffffffff 00c09300 DPL=0 DS   [-WA]
DS =007b 00000000 ffffffff 00cff300 DPL=3 DS   [-WA]
FS =00d8 19528000 ffffffff 008f9300 DPL=0 DS16 [-WA]
GS =0033 0a13e380 ffffffff 00dff300 DPL=3 DS   [-WA]
LDT=0000 00000000 00000000 00008200 DPL=0 LDT
TR =0080 ff406000 0000407b 00008900 DPL=0 TSS32-avl
GDT=     ff401000 000000ff
IDT=     ff400000 000007ff
CR0=80050033 CR2=0823e1c0 CR3=1f8bc000 CR4=000006d0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
EFER=0000000000000000
"""


def test_64_bit_format() -> None:
    (cpu,) = parse(LONG)
    assert cpu.cpu == 0
    assert cpu.general["rip"] == 0xFFFFFFFF845740A0
    assert cpu.general["r9"] == 0xFFFFD32440013AA8
    assert cpu.general["rflags"] == 0x46
    assert len(cpu.general) == 18
    assert (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4) == (0x80050033, 0x156AF220, 0x10446000, 0x6F0)
    assert cpu.efer == 0xD01
    assert (cpu.gdt_base, cpu.gdt_limit) == (0xFFFFFE0000001000, 0x7F)
    assert (cpu.idt_base, cpu.idt_limit) == (0xFFFFFE0000000000, 0xFFF)
    assert cpu.segments["cs"] == Segment(0x10, 0, 0xFFFFFFFF, 0xA09B00)
    assert cpu.segments["gs"].base == 0xFFFF8A0654600000
    assert cpu.paging is PagingMode.FOUR_LEVEL


def test_32_bit_format_gets_the_64_bit_names() -> None:
    (cpu,) = parse(SHORT)
    assert cpu.cpu == 1
    assert cpu.general["rdx"] == 0xC1152280
    assert cpu.general["rsp"] == 0xC1117D34
    assert cpu.general["rip"] == 0xC5128210
    assert "r8" not in cpu.general
    assert cpu.cr3 == 0x1F8BC000
    assert cpu.segments["tr"] == Segment(0x80, 0xFF406000, 0x407B, 0x8900)
    assert cpu.paging is PagingMode.TWO_LEVEL


def test_cpus_in_different_modes() -> None:
    assert [(cpu.cpu, "r15" in cpu.general) for cpu in parse(LONG + SHORT)] == [(0, True), (1, False)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no CPU"),
        (LONG.replace("R10=", "XXX="), "CPU 0 lacks r10"),
        (SHORT.replace("CR3=", "XXX="), "CPU 1 lacks cr3"),
        (SHORT.replace("\nGDT=", "\nXXX="), "lacks GDT"),
        (LONG.replace("\nTR ", "\nXX "), "lacks tr"),
        (LONG[: LONG.index("EFER")], "lacks efer"),
    ],
)
def test_incomplete_dump_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse(text)
