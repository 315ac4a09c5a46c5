"""A small x86_64 machine on its way to the crash kernel: tables, control code and trace, healthy until changed."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from rig.facts import Kimage
from rig.model import PAGE_SIZE, Arch, Checkpoint, PagingMode, Range
from tests.forge import CRASH, GUEST, PGD, Machine
from tests.forged_trace import PAGING_64, Instruction, trace_text

MACHINE_KEXEC = 0xFFFFFFFF80200000  # virtual; the kernel's 4 MiB there are physical 0
RELOCATE_KERNEL = 0xFFFFFFFF80210000  # virtual
DIRECT = 0xFFFF800000000000  # virtual; all 16 MiB of RAM
ENTRY = 0x900000
PGD_COPY, CONTROL, IDENTITY_PDPT, IDENTITY_PD = 0x800000, 0x801000, 0x802000, 0x803000  # in the crash region
TRANSITION = (0x400000, 0x401000, 0x402000)  # PDPT, PD, PT in ordinary RAM
TABLE, LARGE = 0x63, 0xE3  # present, writable, accessed, dirty; and a 2 MiB page
IOMEM = (
    Range(0x1000, 0x9FBFF, "System RAM"),
    Range(0xA0000, 0xFFFFF, "Reserved"),
    Range(0x100000, 0xFFFFFF, "System RAM"),
    Range(0x200000, 0x2FFFFF, "Kernel code", 1),
    replace(CRASH, depth=1),
)


@dataclass
class Handover:
    """Change it, then `machine()`.

    control: physical address of the control page. pd: the identity map's entries, 2 MiB each. steps: what is executed
    before the entry, on top of the usual. page: bytes on the control page at `handover`, offset -> hex.
    """

    control: int = CONTROL
    identity_pd: int = IDENTITY_PD
    pd: dict[int, int] = field(default_factory=lambda: {n: n * 0x200000 | LARGE for n in range(8)})
    more_steps: list[Instruction] = field(default_factory=list)
    page: dict[int, str] = field(default_factory=dict)
    pages: tuple[int, ...] = TRANSITION
    segments: tuple[tuple[int, int], ...] = ((ENTRY, 0x2000),)

    def code(self) -> dict[int, str]:
        """Offset on the control page -> instruction."""
        return {
            0x00: "4989a300080000",  # mov [r11+0x800], rsp: on the control page, through the direct map
            0x07: "410f22d9",  # mov cr3, r9
            0x0B: "498da000100000",  # lea rsp, [r8+0x1000]
            0x12: "4150",  # push r8
            0x14: "c3",  # ret, to the identity address
            0x15: "6a00",  # push 0
            0x17: "0f22d8",  # mov cr3, rax
            0x1A: "e801000000",  # call 0x20
            0x1F: "c3",  # ret, to the entry
            0x20: "c3",  # ret
        }

    def steps(self) -> list[Instruction]:
        code, here = self.code(), self.control
        before = {
            "cr3": PGD,
            "rsp": DIRECT + 0x100000,
            "rsi": RELOCATE_KERNEL,
            "rdi": DIRECT + here,
            "rcx": 256,
            "r8": here,
            "r9": PGD_COPY,
            "r11": DIRECT + here,
        }
        top = here + PAGE_SIZE
        return [
            (MACHINE_KEXEC, "f348a5", before),  # rep movsq: 2048 bytes
            (MACHINE_KEXEC + 3, "ffe0", {"rcx": 0}),  # jmp rax
            (RELOCATE_KERNEL, code[0x00], {}),
            (RELOCATE_KERNEL + 0x07, code[0x07], {}),
            (RELOCATE_KERNEL + 0x0B, code[0x0B], {"cr3": PGD_COPY}),
            (RELOCATE_KERNEL + 0x12, code[0x12], {"rsp": top}),
            (RELOCATE_KERNEL + 0x14, code[0x14], {"rsp": top - 8}),
            (here + 0x15, code[0x15], {"rsp": top, "cr0": 0x80000011}),
            (here + 0x17, code[0x17], {"rsp": top - 8}),
            (here + 0x1A, code[0x1A], {}),
            (here + 0x20, code[0x20], {"rsp": top - 16}),
            *self.more_steps,
            (here + 0x1F, code[0x1F], {"rsp": top - 8}),
        ]

    def tables(self) -> dict[int, dict[int, int]]:
        """Physical address -> index -> entry."""
        pdpt, pd, pt = TRANSITION
        ram = {n: n * 0x200000 | LARGE for n in range(8)}
        return {
            # of the crashed task: the kernel at -2 GiB, RAM at DIRECT
            PGD: {256: 0x8000 | TABLE, 511: 0x6000 | TABLE},
            0x6000: {510: 0x7000 | TABLE},
            0x7000: {0: LARGE, 1: 0x200000 | LARGE},
            0x8000: {0: 0x9000 | TABLE},
            0x9000: ram,
            # of the image: RAM at itself, relocate_kernel's page on the control page
            PGD_COPY: {0: IDENTITY_PDPT | TABLE, 511: pdpt | TABLE},
            IDENTITY_PDPT: {0: self.identity_pd | TABLE},
            self.identity_pd: self.pd,
            pdpt: {510: pd | TABLE},
            pd: {1: pt | TABLE},
            pt: {0x10: self.control | TABLE},
        }

    def machine(self) -> Machine:
        machine = Machine()
        tables = self.tables()
        machine.base = {
            at // PAGE_SIZE: struct.pack("<512Q", *(table.get(n, 0) for n in range(512)))
            for at, table in tables.items()
        }
        machine.base.setdefault(CONTROL // PAGE_SIZE, bytes(PAGE_SIZE))  # the page after the image's pgd
        for offset, code in (self.code() | self.page).items():
            machine.change(Checkpoint.HANDOVER, self.control + offset, bytes.fromhex(code))
        machine.trace = trace_text(self.steps(), PAGING_64)
        machine.learn(
            plan=replace(machine.facts.plan, guest=replace(GUEST, arch=Arch.AMD64, paging=PagingMode.FOUR_LEVEL)),
            mode=PagingMode.FOUR_LEVEL,
            cr3=PGD,
            iomem=IOMEM,
            symbols={"machine_kexec": MACHINE_KEXEC},
            text=MACHINE_KEXEC,
            kimage=Kimage(DIRECT + 0x300000, ENTRY, "forged", self.pages, self.segments),
            tables=(PGD, 0x6000, 0x7000, 0x8000, 0x9000),
            handover_tables=tuple(tables),
        )
        return machine
