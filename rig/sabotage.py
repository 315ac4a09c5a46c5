"""Sabotage by a module: the parameters it is given, and what it says it did (pure).

A scenario gives parameters as text in which {NAME} stands for something that is known only once the guest is armed:

    {pattern}       the text that fills the crashing task's memory
    {crash_notes}   physical address of CPU 0's crash notes

What the module did is in the record that it leaves in the guest's memory: `struct rig_record` in
kernels/controls/damage/damage.h, little-endian and without holes, the same for 32-bit and 64-bit guests:

    8s  magic "RIGSABOT"    u32 version    u32 count    u64 pgd_phys
    count times:    u64 physical address, a multiple of 8    u64 before    u64 after
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from rig.errors import EvidenceError
from rig.facts import Damage
from rig.model import PAGE_SIZE

PLACES = ("pattern", "crash_notes")
# What goes into a shell's line as it stands: no space, no quote, no expansion.
PARAMETER = re.compile(r"[a-z_]+=[A-Za-z0-9_.,:/-]*(\{[a-z_]+\})?")

MAGIC = b"RIGSABOT"
VERSION = 2
MAX_WORDS = 256  # the low half of an x86_64 table; the most that the module ever overwrites
RECORD_SIZE = 2 * PAGE_SIZE  # bytes to read at the record's address
BLOCK_SIZE = 8 * PAGE_SIZE  # bytes from the record's address on that are the module's own: record, then tables

_WORD = 8
_HEADER = struct.Struct("<8sIIQ")
_ENTRY = struct.Struct("<QQQ")


def parameter_complaint(parameters: str) -> str:
    """What is wrong with a scenario's parameters; empty when nothing is."""
    for word in parameters.split():
        if not PARAMETER.fullmatch(word):
            return f"{word!r} is not a module parameter: NAME=VALUE of letters, digits and _.,:/-"
        for place in re.findall(r"\{(\w+)\}", word):
            if place not in PLACES:
                return f"{{{place}}} stands for nothing; valid: {', '.join(f'{{{p}}}' for p in PLACES)}"
    return ""


def fill(parameters: str, places: Mapping[str, str]) -> str:
    """The parameters with what their {NAME}s stand for. places: by name, all of PLACES."""
    return parameters.format_map(places)


@dataclass(frozen=True)
class SabotageRecord:
    """What was damaged. pgd: physical address of the table at CR3, 0 as long as the module was not reached by a crash.

    words: those whose value really changed, by ascending address; none when the module found nothing to damage.
    """

    pgd: int
    words: tuple[Damage, ...]


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
    if count > MAX_WORDS:
        raise EvidenceError(f"the sabotage record claims {count} words, more than {MAX_WORDS}")
    end = _HEADER.size + count * _ENTRY.size
    if len(blob) < end:
        raise EvidenceError(f"the sabotage record is cut off: {count} words need {end} bytes, not {len(blob)}")
    words = tuple(
        Damage(address, _WORD, before, after) for address, before, after in _ENTRY.iter_unpack(blob[_HEADER.size : end])
    )
    _refuse_contradictions(pgd, words)
    return SabotageRecord(pgd, words)


def _refuse_contradictions(pgd: int, words: tuple[Damage, ...]) -> None:
    if words and not pgd:
        raise EvidenceError(f"the sabotage record has {len(words)} words but no page directory")
    addresses = [word.address for word in words]
    if any(b <= a for a, b in pairwise(addresses)) or any(a % _WORD for a in addresses):
        raise EvidenceError(
            f"the sabotage record's addresses are not ascending multiples of {_WORD}: "
            f"{', '.join(f'{a:#x}' for a in addresses[:8])}"
        )
    if unchanged := [f"{word.address:#x}" for word in words if word.before == word.after]:
        raise EvidenceError(f"the sabotage record lists words that did not change: {', '.join(unchanged[:8])}")
