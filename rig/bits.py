"""Names of the bits of control registers (SDM vol. 3, 2.5; EFER: 2.2.1). Pure."""

from __future__ import annotations

from collections.abc import Mapping

CR0 = {0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW", 30: "CD", 31: "PG"}
CR4 = {
    0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE", 8: "PCE", 9: "OSFXSR",
    10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 13: "VMXE", 14: "SMXE", 16: "FSGSBASE", 17: "PCIDE", 18: "OSXSAVE",
    20: "SMEP", 21: "SMAP", 22: "PKE", 23: "CET", 24: "PKS",
}  # fmt: skip
EFER = {0: "SCE", 8: "LME", 10: "LMA", 11: "NXE", 12: "SVME"}
REGISTERS: Mapping[str, Mapping[int, str]] = {"cr0": CR0, "cr4": CR4, "efer": EFER}


def names(register: str, value: int) -> list[str]:
    """The bits that are set, lowest first; those without a name as "bit 27". register: cr0, cr4 or efer."""
    known = REGISTERS[register]
    return [known.get(bit, f"bit {bit}") for bit in range(64) if value >> bit & 1]


def flipped(register: str, before: int, after: int) -> str:
    """ "PGE 1->0, PSE 1->0": the bits that differ."""
    known = REGISTERS[register]
    return ", ".join(
        f"{known.get(bit, f'bit {bit}')} {before >> bit & 1}->{after >> bit & 1}"
        for bit in range(64)
        if (before ^ after) >> bit & 1
    )
