from __future__ import annotations

import struct

from rig.memory.image import PagesMemory
from rig.model import PAGE_SIZE
from rig.survey import _survey_hand_over
from rig.trace import Step, Trace
from tests.forge import PGD, cpu

CODE = 0xD456E000  # virtual, in the kernel's direct mapping
OUTSIDE = 0x34400000  # where the PDE of it leads since one of its bits was flipped: there is no RAM
LARGE = 0x83  # present, writable, 4 MiB (Intel SDM vol. 3, 4.3)


def test_damaged_tables_lead_to_pages_that_can_not_be_kept() -> None:
    """The instructions at the switch are looked for by the old tables and, paging off, at their own addresses."""
    pgd = bytearray(PAGE_SIZE)
    struct.pack_into("<I", pgd, CODE >> 22 << 2, OUTSIDE | LARGE)
    memory = PagesMemory({PGD // PAGE_SIZE: bytes(pgd), 0x1456E: bytes(PAGE_SIZE)})
    before, after = cpu(0, rip=CODE + 8), cpu(0, rip=0x1456E00B, paging_on=False)
    steps = (Step(0, before, b"\x0f\x22\xc0"), Step(1, after, b"\x90"))
    tables, pages = _survey_hand_over(memory, None, Trace(0, steps, (), 0), None)
    assert tables == (PGD,)
    assert pages == (0x1456E000,)


def test_and_so_do_their_mappings_of_the_next_instruction() -> None:
    pgd = bytearray(PAGE_SIZE)
    struct.pack_into("<I", pgd, CODE >> 22 << 2, OUTSIDE | LARGE)
    memory = PagesMemory({PGD // PAGE_SIZE: bytes(pgd)})
    before, after = cpu(0, rip=CODE + 8), cpu(0, rip=CODE + 11, paging_on=False)
    steps = (Step(0, before, b"\x0f\x22\xc0"), Step(1, after, b"\x90"))
    assert _survey_hand_over(memory, None, Trace(0, steps, (), 0), None) == ((PGD,), ())
