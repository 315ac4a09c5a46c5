"""The page that CR3 points to, at every checkpoint and in the dump."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rig.checks.writers import writer
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.facts import Facts
from rig.memory import levels, paging
from rig.memory.diff import bytes_changed, changed_ranges
from rig.memory.paging import EntryChanges
from rig.memory.physical import OutsideMemory
from rig.model import PAGE_SIZE, Checkpoint, CheckResult, PagingMode, Verdict

DUMP = "vmcore"  # where the figures say that the page was seen in the dump


@dataclass(frozen=True)
class _Later:
    """The pgd's page as it was later, held against `panic`. where: a checkpoint, or DUMP.

    bytes_changed: accessed and dirty bits of the root's own entries aside.
    """

    where: str
    page: bytes
    entries: EntryChanges
    bytes_changed: int


def pgd_survives(evidence: Evidence) -> CheckResult:
    """Compare the pgd's page at `panic` with every later checkpoint and with the dump; in a kexec jump, which has
    neither, at `machine-kexec` with `handover` and `returned`. A run that ends at the hand-over has neither a later
    checkpoint nor a dump.

    Accessed and dirty bits that the CPU sets by itself are counted apart and don't fail it (SDM vol. 3, 4.8). With PAE
    the 32 bytes of the PDPT give the entries; the page around them counts as well.

    When it changed, `writer` says which instruction wrote it last, or why none can be named.

    A page that was seen to change is a failure even if a later checkpoint was never reached; "unchanged" takes all
    of them.
    """
    facts = evidence.facts
    mode, root = _root(facts)
    page = root & ~(PAGE_SIZE - 1)
    before = _page(evidence, evidence.course[0], page)
    later = [_compare(mode, root % PAGE_SIZE, before, *one) for one in _later_pages(evidence, page)]
    figures = _figures(facts, mode, root, later)
    where = f"{_name(facts)} at {root:#x}"
    if first := next((one for one in later if one.bytes_changed), None):
        ranges = [(page + at, page + at + size) for at, size in changed_ranges(before, first.page)]
        checkpoint = None if first.where == DUMP else Checkpoint(first.where)
        figures["writer"], figures["writers"] = writer(evidence, checkpoint, ranges)
        indices = _ranges(sorted({entry["index"] for entry in figures["entries_changed"]}))
        what = f"entries {indices}" if indices else "bytes around the PDPT"
        changed = f"{figures['bytes_changed']} of {PAGE_SIZE} bytes, {what}"
        summary = f"{where} was overwritten: {changed}, first seen at {first.where}"
        return CheckResult("pgd-survives", Verdict.FAIL, summary, figures)
    missing = [str(c) for c in evidence.course if c not in facts.captured]
    missing += [DUMP] if facts.dump is None and not (facts.jump or facts.ends_at_handover) else []
    if missing:
        summary = f"{where}: unchanged so far, but it was never seen at {', '.join(missing)}"
        return CheckResult("pgd-survives", Verdict.ERROR, summary, figures)
    dump = ", nor in its dump" if facts.dump is not None else ""
    summary = f"{where}: 0 of {PAGE_SIZE} bytes changed {evidence.course_in_words}{dump}"
    return CheckResult("pgd-survives", Verdict.PASS, summary, figures)


def _root(facts: Facts) -> tuple[PagingMode, int]:
    """What the root table is, and its physical address."""
    if facts.cr3 is None or facts.mode is None:
        raise EvidenceError("`panic` was never reached: there is no pgd to compare")
    if facts.mode is not facts.plan.guest.paging:
        raise EvidenceError(
            f"the guest ran in {facts.mode} paging, not {facts.plan.guest.paging}: not the machine asked for"
        )
    return facts.mode, levels.root(facts.mode, facts.cr3)


def _page(evidence: Evidence, checkpoint: Checkpoint, address: int) -> bytes:
    try:
        return evidence.memory(checkpoint).read(address, PAGE_SIZE)
    except OutsideMemory as problem:
        raise EvidenceError(f"the pgd's page {address:#x} was not kept at {checkpoint}") from problem


def _later_pages(evidence: Evidence, address: int) -> Iterator[tuple[str, bytes]]:
    """(where, page) of all that was seen of the pgd's page after the first capture, in order."""
    facts = evidence.facts
    for checkpoint in evidence.course[1:]:
        if checkpoint in facts.captured:
            yield str(checkpoint), _page(evidence, checkpoint, address)
    if facts.dump is not None:
        if facts.dump.physical != address:
            raise EvidenceError(
                f"the page fetched from the dump is {facts.dump.physical:#x}, the pgd's is {address:#x}"
            )
        yield DUMP, evidence.dumped_pgd


def _compare(mode: PagingMode, start: int, before: bytes, where: str, after: bytes) -> _Later:
    """start: where in its page the root begins."""
    if len(after) != PAGE_SIZE:
        raise EvidenceError(f"the pgd's page at {where} has {len(after)} bytes, not {PAGE_SIZE}")
    end = start + levels.root_size(mode)
    entries = paging.entry_changes(mode, before[start:end], after[start:end])
    # outside the root's own bytes (PAE) there is nothing the CPU would set a bit in
    around = bytes_changed(before[:start], after[:start]) + bytes_changed(before[end:], after[end:])
    return _Later(where, after, entries, entries.bytes_changed + around)


def _figures(facts: Facts, mode: PagingMode, root: int, later: Sequence[_Later]) -> dict[str, Any]:
    first_seen: dict[tuple[int, int, int], str] = {}
    for one in later:
        for entry in one.entries.changed:
            first_seen.setdefault((entry.index, entry.before, entry.after), one.where)
    figures: dict[str, Any] = {
        "mode": str(mode),
        "cr3": facts.cr3,
        "root": root,
        "bytes_compared": PAGE_SIZE,
        "bytes_changed": max((one.bytes_changed for one in later), default=0),
        "ad_bits": max((one.entries.ad_bits for one in later), default=0),
        "entries_changed": [
            {"index": index, "before": old, "after": new, "checkpoint": where}
            for (index, old, new), where in sorted(first_seen.items())
        ],
        "compared": [
            {"checkpoint": one.where, "bytes_changed": one.bytes_changed, "ad_bits": one.entries.ad_bits}
            for one in later
        ],
    }
    if facts.dump is not None:
        changed = later[-1].bytes_changed
        figures["vmcore"] = {"physical": facts.dump.physical, "bytes_changed": changed, "via": facts.dump.via}
    if facts.pgd_owner is not None:
        figures["owner"] = asdict(facts.pgd_owner)
    return figures


def _name(facts: Facts) -> str:
    """What CR3 points to, in words; under a hypervisor whose it is, too."""
    owner = facts.pgd_owner
    if owner is None:
        return "PDPT" if facts.mode is PagingMode.PAE else "pgd"
    if owner.pseudo_physical is None:
        return "the hypervisor's own pgd"
    return f"{owner.name}'s pgd (pseudo-physical {owner.pseudo_physical:#x})"


def _ranges(indices: list[int]) -> str:
    """[0, 1, 2, 7] -> "[0..2], [7]"."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(f"[{low}]" if low == high else f"[{low}..{high}]" for low, high in spans)
