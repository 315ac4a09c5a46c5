"""What is read from a hypervisor's memory: its tables map 2 MiB of image and 2 MiB of the machine-to-physical table."""

from __future__ import annotations

import struct

import pytest

from rig import xen
from rig.errors import EvidenceError
from rig.facts import PgdOwner
from rig.memory.image import PagesMemory
from rig.model import PAGE_SIZE, Range

IMAGE = 0xFFFF82D040200000  # virtual; 2 MiB from physical 0x200000
IDLE = 0x210000  # physical: idle_pg_table
DOM0 = 0x600000  # physical: a root of dom0's, with the same entries
TABLES = 0x700000  # physical: a PDPT and a page directory for the image, the same for the machine-to-physical table
M2P = 0x400000  # physical
PSEUDO = 0x1234  # the page that dom0 takes DOM0 for

# Where the variables are in the image.
SYMBOLS = {
    "_stext": IMAGE,
    "_etext": IMAGE + 0x8000,
    "__init_end": IMAGE + 0x9000,
    "idle_pg_table": IMAGE + 0x10000,
    "__bss_start": IMAGE + 0x11000,
    "_end": IMAGE + 0x20000,
    "kexec_crash_area": IMAGE + 0x9000,
    "crash_notes": IMAGE + 0x9010,
    "conring": IMAGE + 0x9018,
    "conring_size": IMAGE + 0x9020,
    "irq_desc": IMAGE + 0x9028,
    "nr_irqs": IMAGE + 0x9030,
    "e820": IMAGE + 0x9FF0,  # goes over the end of the page
    "kexec_crash_save_cpu": IMAGE + 0x100,
}


class Forged:
    """bytes at physical addresses; `memory` when all is written."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        for root in (IDLE, DOM0):
            self.write(root + 256 * 8, "<Q", TABLES + 0x2003)
            self.write(root + (IMAGE >> 39 & 511) * 8, "<Q", TABLES + 0x3)
        self.write(TABLES + (IMAGE >> 30 & 511) * 8, "<Q", TABLES + 0x1003)
        self.write(TABLES + 0x1000 + (IMAGE >> 21 & 511) * 8, "<Q", 0x200083)  # PS: 2 MiB
        self.write(TABLES + 0x2000, "<Q", TABLES + 0x3003)
        self.write(TABLES + 0x3000, "<Q", M2P | 0x83)
        self.write(M2P + DOM0 // PAGE_SIZE * 8, "<Q", PSEUDO)
        self.variable("kexec_crash_area", "<QQ", 0x300000, 0x800000)
        self.variable("crash_notes", "<Q", IMAGE + 0xA100)
        self.write(0x20A100, "<QQ", IMAGE + 0xB000, 500)
        self.variable("conring", "<Q", IMAGE + 0xC000)
        self.variable("conring_size", "<I", 0x1000)
        self.variable("irq_desc", "<Q", IMAGE + 0xD000)
        self.variable("nr_irqs", "<I", 24)
        self.variable("e820", "<IQQIQQI", 2, 0, 0x9FC00, 1, 0x100000, 0xF00000, 3)

    def variable(self, name: str, form: str, *values: int) -> None:
        self.write(SYMBOLS[name] - IMAGE + 0x200000, form, *values)

    def write(self, address: int, form: str, *values: int) -> None:
        for at, byte in enumerate(struct.pack(form, *values), address):
            self.pages.setdefault(at // PAGE_SIZE, bytearray(PAGE_SIZE))[at % PAGE_SIZE] = byte

    def hypervisor(self, cr3: int = DOM0) -> xen.Hypervisor:
        return xen.Hypervisor(PagesMemory({pfn: bytes(page) for pfn, page in self.pages.items()}), cr3, SYMBOLS)


def test_the_machine_is_as_the_hypervisor_has_it() -> None:
    machine = Forged().hypervisor().machine(cpus=1)
    assert machine.crash_region == Range(0x800000, 0xAFFFFF, "Crash kernel")
    assert machine.crash_notes == ((0x20B000, 500),)
    assert machine.allocated == {"console ring": (0x20C000, 0x1000), "IRQ descriptors": (0x20D000, 24 * 128)}
    assert machine.iomem == (
        Range(0, 0x9FBFF, "System RAM"),
        Range(0x100000, 0xFFFFFF, "ACPI Tables"),
        Range(0x200000, 0x207FFF, "Kernel code", 1),
        Range(0x209000, 0x210FFF, "Kernel data", 1),
        Range(0x211000, 0x21FFFF, "Kernel bss", 1),
        Range(0x800000, 0xAFFFFF, "Crash kernel", 1),
    )


def test_without_a_reservation_there_is_no_crash_region_and_are_no_notes() -> None:
    forged = Forged()
    forged.variable("kexec_crash_area", "<QQ", 0, 0)
    forged.variable("crash_notes", "<Q", 0)
    machine = forged.hypervisor().machine(cpus=1)
    assert (machine.crash_region, machine.crash_notes) == (None, ())
    assert "Crash kernel" not in {r.name for r in machine.iomem}


def test_a_senseless_reservation_is_not_believed() -> None:
    forged = Forged()
    forged.variable("kexec_crash_area", "<QQ", 0x300000, 0x800001)
    with pytest.raises(EvidenceError, match="makes no sense: 0x300000 bytes at 0x800001"):
        forged.hypervisor().machine(cpus=1)


def test_a_pgd_is_the_hypervisors_or_dom0s_by_its_pseudo_physical_address() -> None:
    assert Forged().hypervisor(IDLE).pgd_owner() == PgdOwner("hypervisor", IDLE, None)
    assert Forged().hypervisor(DOM0).pgd_owner() == PgdOwner("dom0", IDLE, PSEUDO * PAGE_SIZE)


def test_a_pgd_of_nobody_can_not_be_judged() -> None:
    forged = Forged()
    forged.write(M2P + DOM0 // PAGE_SIZE * 8, "<Q", (1 << 64) - 1)
    with pytest.raises(EvidenceError, match="neither idle_pg_table nor a domain's page"):
        forged.hypervisor(DOM0).pgd_owner()


def test_tables_that_do_not_map_the_hypervisor_tell_so() -> None:
    forged = Forged()
    forged.write(DOM0 + (IMAGE >> 39 & 511) * 8, "<Q", 0)
    with pytest.raises(EvidenceError, match=r"can't be read: .* is not mapped"):
        forged.hypervisor(DOM0).machine(cpus=1)
