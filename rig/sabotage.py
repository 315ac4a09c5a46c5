"""What a sabotage module says it did: the record that it leaves in the guest's memory (pure over bytes).

The layout is that of `struct rig_record` in kernels/controls/overwrite-pgd/overwrite-pgd.c, little-endian and
without holes, the same for 32-bit and 64-bit guests:

    8s  magic "RIGSABOT"    u32 version    u32 count    u64 pgd_phys
    count times:    u32 index    u32 (unused)    u64 before    u64 after
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rig.errors import EvidenceError
from rig.model import PAGE_SIZE

MAGIC = b"RIGSABOT"
VERSION = 1
MAX_ENTRIES = 256  # the low half of an x86_64 table; the most that the module ever overwrites
RECORD_SIZE = 2 * PAGE_SIZE  # bytes to read at the record's address
BLOCK_SIZE = 8 * PAGE_SIZE  # bytes from the record's address on that are the module's own: record, then tables

_HEADER = struct.Struct("<8sIIQ")
_ENTRY = struct.Struct("<IIQQ")


@dataclass(frozen=True)
class OverwrittenEntry:
    """One entry of the live page directory: its value before, and the one written over it."""

    index: int
    before: int
    after: int


@dataclass(frozen=True)
class SabotageRecord:
    """What was overwritten. pgd: physical address of the table at CR3, 0 as long as nothing was done.

    entries: those whose value really changed, by ascending index.
    """

    pgd: int
    entries: tuple[OverwrittenEntry, ...]

    @property
    def carried_out(self) -> bool:
        """Whether the module was reached by a crash and worked on a page directory."""
        return self.pgd != 0


def parse_record(blob: bytes) -> SabotageRecord:
    """The record at the start of `blob`: RECORD_SIZE bytes or more from the address that the module told.

    :raise EvidenceError: it is no such record, one of another version, cut off, or contradicts itself.
    """
    if len(blob) < _HEADER.size:
        raise EvidenceError(f"the sabotage record has {len(blob)} bytes, its header alone {_HEADER.size}")
    magic, version, count, pgd = _HEADER.unpack_from(blob)
    if magic != MAGIC:
        raise EvidenceError(
            f"no sabotage record where the module said: it begins with {magic!r} instead of {MAGIC!r}",
            hint="the address must be a physical one, from the module's parameter `record`",
        )
    if version != VERSION:
        raise EvidenceError(
            f"the sabotage record has version {version}, expected {VERSION}",
            hint="the module was built from another version of its source: build it again",
        )
    if count > MAX_ENTRIES:
        raise EvidenceError(f"the sabotage record claims {count} entries, more than {MAX_ENTRIES}")
    end = _HEADER.size + count * _ENTRY.size
    if len(blob) < end:
        raise EvidenceError(f"the sabotage record is cut off: {count} entries need {end} bytes, not {len(blob)}")
    entries = tuple(
        OverwrittenEntry(index, before, after)
        for index, _, before, after in _ENTRY.iter_unpack(blob[_HEADER.size : end])
    )
    _refuse_contradictions(pgd, entries)
    return SabotageRecord(pgd, entries)


def _refuse_contradictions(pgd: int, entries: tuple[OverwrittenEntry, ...]) -> None:
    if entries and not pgd:
        raise EvidenceError(f"the sabotage record has {len(entries)} entries but no page directory")
    indices = [entry.index for entry in entries]
    if indices != sorted(set(indices)):
        raise EvidenceError(f"the sabotage record's indices are not in ascending order: {indices[:8]}")
    unchanged = [entry.index for entry in entries if entry.before == entry.after]
    if unchanged:
        raise EvidenceError(f"the sabotage record lists entries that did not change: {unchanged[:8]}")
