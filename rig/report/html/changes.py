"""What changed in physical memory between checkpoints, and whose it is: as the checks tell it, and where they don't."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rig.checks import ledger
from rig.errors import EvidenceError
from rig.evidence import DIED
from rig.evidence.reader import Evidence
from rig.memory.diff import changed_ranges
from rig.memory.ledger import UNACCOUNTED, Change, Claim, divide
from rig.memory.physical import OutsideMemory
from rig.model import PAGE_SIZE, Checkpoint


@dataclass(frozen=True)
class Changed:
    """`length` bytes at a physical address that differ between two checkpoints (or DIED), and whose they are."""

    before: str
    after: str
    owner: str
    address: int
    length: int

    @property
    def interval(self) -> str:
        return f"{self.before} → {self.after}"

    @property
    def pages(self) -> range:
        """Physical addresses of the pages that it lies in."""
        return range(self.address & ~(PAGE_SIZE - 1), self.address + self.length, PAGE_SIZE)


def changes(evidence: Evidence) -> list[Changed]:
    """In the order of the checkpoints, then of addresses. Of the crash region's bytes only those that changed up to
    the hand-over, of a plain kexec's image none that was copied as it should.

    :raise EvidenceError: what is needed was not kept
    """
    facts = evidence.facts
    found: list[Changed] = []
    if Checkpoint.PANIC in facts.captured:
        owned = ledger.owned(evidence)
        found = [Changed(str(o.between[0]), str(o.between[1]), o.owner, o.address, o.length) for o in owned]
        claimed: Sequence[Claim] = ledger.claims(evidence) if facts.post_mortem else ()
    else:
        claimed = _claims(evidence)
        for a, b in pairwise(facts.captured):
            found += _between(evidence, str(a), str(b), claimed)
    if facts.post_mortem and facts.captured:
        found += _between(evidence, str(facts.captured[-1]), DIED, claimed)
    return found


def _between(evidence: Evidence, before: str, after: str, claimed: Sequence[Claim]) -> Iterator[Changed]:
    """A page whose bytes before were not kept is left out."""
    pfns = set(evidence.pages(after)) | (set(evidence.pages(before)) if before != evidence.base else set())
    for pfn in sorted(pfns):
        address = pfn * PAGE_SIZE
        with contextlib.suppress(OutsideMemory):
            old, new = (evidence.memory(where).read(address, PAGE_SIZE) for where in (before, after))
            changes = [Change("", address + offset, length) for offset, length in changed_ranges(old, new)]
            for part in divide(changes, claimed):
                yield Changed(before, after, part.owner, part.address, part.length)


def _claims(evidence: Evidence) -> list[Claim]:
    """Whose memory it is in a plain kexec, which no check asks: roughly, by what was read and by /proc/iomem."""
    facts = evidence.facts
    found = [Claim(a, a + n, f"crash notes of CPU {cpu}") for cpu, (a, n) in enumerate(facts.crash_notes)]
    found += [Claim(t, t + PAGE_SIZE, "page tables of the calling task") for t in facts.tables]
    if facts.kimage is not None:
        found += [Claim(p, p + PAGE_SIZE, "page of struct kimage") for p in facts.kimage.pages]
        found += [Claim(p, p + PAGE_SIZE, "list of the image's pages") for p in facts.kimage.lists]
        found += [Claim(a, a + n, "where the new image goes") for a, n in facts.kimage.segments]
    deepest = sorted(facts.iomem, key=lambda r: -r.depth)
    return found + [Claim(r.start, r.last + 1, r.name) for r in deepest]


def is_unowned(change: Changed) -> bool:
    return change.owner == UNACCOUNTED


def page_at(evidence: Evidence, where: str, address: int) -> bytes:
    """4096 bytes of a page as it was at a checkpoint, or when the guest DIED.

    :raise EvidenceError: it was not kept
    """
    try:
        return evidence.memory(where).read(address, PAGE_SIZE)
    except OutsideMemory as problem:
        raise EvidenceError(f"the page at {address:#x} was not kept at {where}") from problem
