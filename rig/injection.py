"""Sabotage through the debugger: one bit of the page directory, flipped between two checkpoints. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rig.memory import levels
from rig.model import PagingMode

FLIP = "flip-pgd-bit"  # the name by which a scenario asks for it
# Accessed and dirty: the CPU sets them by itself, so a check must not take them for damage (SDM vol. 3, 4.8).
AD_BITS = (5, 6)


@dataclass(frozen=True)
class Flip:
    """One flipped bit. offset: of the entry in the table, bytes. blob: the entry as it is to be written."""

    index: int
    offset: int
    blob: bytes
    before: int
    after: int


def choose_flip(mode: PagingMode, table: bytes, chance: random.Random) -> Flip:
    """Any bit of any entry but the accessed and dirty ones. table: the root table's bytes (PAE: the 32 of the PDPT)."""
    entries = levels.entries(mode, table)
    size = len(table) // len(entries)
    index = chance.randrange(len(entries))
    bit = chance.choice([b for b in range(8 * size) if b not in AD_BITS])
    before = int(entries[index])
    after = before ^ 1 << bit
    return Flip(index, index * size, after.to_bytes(size, "little"), before, after)
