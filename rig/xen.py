"""What a Xen hypervisor knows, read from its memory: the machine's memory map, what it reserved, and whose page tables
CR3 points to. Pure.

The hypervisor has the machine's memory, and addresses of it are machine addresses. A paravirtualized dom0 has part of
it, which it numbers for itself: pseudo-physical addresses. The page tables that it runs on are its own pages, but hold
machine addresses; their upper half is in part the hypervisor's, the same in all (xen/arch/x86/include/asm/config.h).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from rig.errors import EvidenceError
from rig.facts import PgdOwner
from rig.memory import levels, paging
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PAGE_SIZE, PagingMode, Range

MODE = PagingMode.FOUR_LEVEL  # there is no other on x86
WORD = 8

CRASH_AREA = "kexec_crash_area"  # xen_kexec_reserve_t (xen/include/xen/kexec.h): unsigned long size; paddr_t start
CRASH_NOTES = "crash_notes"  # xen/common/kexec.c: a pointer to, for each CPU, Elf_Note *start; size_t size
E820 = "e820"  # struct e820map (xen/arch/x86/include/asm/e820.h): unsigned int nr_map, then entries without padding
IDLE_PGD = "idle_pg_table"  # the root of the hypervisor's own tables (xen/arch/x86/boot/x86_64.S)
SAVE_CPU = "kexec_crash_save_cpu"  # writes a CPU's notes (xen/common/kexec.c)
# What it has allocated and writes to in a crash: name, pointer, uint32_t that counts its items, bytes of an item.
# xen/drivers/char/console.c; xen/arch/x86/irq.c, whose items are at least a cache line (xen/include/xen/irq.h).
ALLOCATED = (("console ring", "conring", "conring_size", 1), ("IRQ descriptors", "irq_desc", "nr_irqs", 128))
# Where its sections begin, and the first byte behind (xen/arch/x86/xen.lds.S); by the names of /proc/iomem.
TEXT = "_stext"
SECTIONS = (
    ("Kernel code", TEXT, "_etext"),
    ("Kernel data", "__init_end", "__bss_start"),
    ("Kernel bss", "__bss_start", "_end"),
)
SYMBOLS = (
    *(CRASH_AREA, CRASH_NOTES, E820, IDLE_PGD, SAVE_CPU),
    *(name for _, pointer, count, _ in ALLOCATED for name in (pointer, count)),
    *dict.fromkeys(name for _, start, end in SECTIONS for name in (start, end)),
)
# The machine-to-physical table: for each machine page the number that its domain knows it by, 8 bytes. All tables map
# it, from entry 256 of the root on (xen/arch/x86/include/asm/config.h, RO_MPT_VIRT_START).
M2P = 0xFFFF800000000000
HIGHEST = 1 << 52  # pseudo-physical page numbers are below; above are marks: of no domain, shared

_ENTRY = struct.Struct("<QQI")  # struct e820entry: addr, size, type
_TYPES = {1: "System RAM", 2: "Reserved", 3: "ACPI Tables", 4: "ACPI Non-volatile Storage", 5: "Unusable memory"}


@dataclass(frozen=True)
class Machine:
    """Machine addresses throughout. iomem: as Linux would name it. crash_notes, allocated: address, size."""

    iomem: tuple[Range, ...]
    crash_region: Range | None
    crash_notes: tuple[tuple[int, int], ...]
    allocated: Mapping[str, tuple[int, int]]


class Hypervisor:
    """The hypervisor's memory, through tables that map it: those of any CPU in it, or in a domain of its.

    Every method: EvidenceError where nothing is mapped, or nothing plausible is there.
    """

    def __init__(self, memory: Memory, cr3: int, symbols: Mapping[str, int]) -> None:
        self._memory = memory
        self._cr3 = cr3
        self._symbols = symbols

    def machine(self, cpus: int) -> Machine:
        """cpus: how many the machine has. crash_region: None when no memory was reserved for a crash kernel."""
        region = self._crash_region()
        top = [(r, 0) for r in self._memory_map()]
        inner = [(r, 1) for r in (*self._sections(), *([region] if region else []))]
        ranges = sorted([*top, *inner], key=lambda each: (each[0].start, each[1]))
        allocated = {
            name: (self._physical(self._pointer(pointer)), self._value(self._symbols[count], 4) * size)
            for name, pointer, count, size in ALLOCATED
        }
        return Machine(
            iomem=tuple(Range(r.start, r.last, r.name, depth) for r, depth in ranges),
            crash_region=region,
            crash_notes=self._crash_notes(cpus) if region else (),  # allocated with it (xen/common/kexec.c)
            allocated=allocated,
        )

    def pgd_owner(self) -> PgdOwner:
        """Whose the page at CR3 is. EvidenceError when it is neither the hypervisor's own root nor a domain's page."""
        root = levels.root(MODE, self._cr3)
        idle = self._physical(self._symbols[IDLE_PGD])
        if root == idle:
            return PgdOwner("hypervisor", idle, None)
        pseudo = self._value(M2P + root // PAGE_SIZE * WORD)
        if pseudo >= HIGHEST:
            raise EvidenceError(f"the page at CR3, {root:#x}, is neither {IDLE_PGD} nor a domain's page ({pseudo:#x})")
        return PgdOwner("dom0", idle, pseudo * PAGE_SIZE)

    def _crash_region(self) -> Range | None:
        at = self._symbols[CRASH_AREA]
        size, start = self._value(at), self._value(at + WORD)
        if not size:
            return None
        if (size | start) % PAGE_SIZE:
            raise EvidenceError(f"{CRASH_AREA} makes no sense: {size:#x} bytes at {start:#x}")
        return Range(start, start + size - 1, "Crash kernel")

    def _memory_map(self) -> list[Range]:
        at = self._symbols[E820]
        count = self._value(at, 4)
        if not 0 < count <= PAGE_SIZE // _ENTRY.size:
            raise EvidenceError(f"the hypervisor's memory map can't have {count} entries")
        entries = [_ENTRY.unpack(self._read(at + 4 + n * _ENTRY.size, _ENTRY.size)) for n in range(count)]
        return [Range(start, start + size - 1, _TYPES.get(kind, f"type {kind}")) for start, size, kind in entries]

    def _sections(self) -> list[Range]:
        """The image is moved as a whole; not all of it is mapped (guard pages of the boot CPU's stack in .bss)."""
        move = {self._physical(self._symbols[name]) - self._symbols[name] for name in (TEXT, IDLE_PGD)}
        if len(move) != 1:
            raise EvidenceError("the hypervisor's image is not in one piece")
        (moved,) = move
        at = {name: address + moved for name, address in self._symbols.items()}
        return [Range(at[start], at[end] - 1, name) for name, start, end in SECTIONS]

    def _crash_notes(self, cpus: int) -> tuple[tuple[int, int], ...]:
        each = [self._pointer(CRASH_NOTES) + cpu * 2 * WORD for cpu in range(cpus)]
        return tuple((self._physical(self._value(at)), self._value(at + WORD)) for at in each)

    def _pointer(self, symbol: str) -> int:
        return self._value(self._symbols[symbol])

    def _value(self, virtual: int, size: int = WORD) -> int:
        return int.from_bytes(self._read(virtual, size), "little")

    def _read(self, virtual: int, size: int) -> bytes:
        """Also over the end of a page: the next one may lie elsewhere."""
        cut = min(size, -virtual % PAGE_SIZE or PAGE_SIZE)
        parts = [(virtual, cut)] + ([(virtual + cut, size - cut)] if cut < size else [])
        try:
            return b"".join(self._memory.read(self._physical(at), n) for at, n in parts)
        except OutsideMemory as problem:
            raise EvidenceError(f"the hypervisor's memory at {virtual:#x} can't be read: {problem}") from problem

    def _physical(self, virtual: int) -> int:
        try:
            return paging.translate(self._memory, MODE, self._cr3, virtual).physical
        except (paging.NotMapped, OutsideMemory) as problem:
            raise EvidenceError(f"the hypervisor's memory at {virtual:#x} can't be read: {problem}") from problem
