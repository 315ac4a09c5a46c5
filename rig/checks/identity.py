"""The map that memory is copied with: what it must cover, and what it covers besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rig.control import Way, way_of
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.facts import Facts
from rig.handover import Live
from rig.memory import identity
from rig.memory.identity import IdentityMap, Span
from rig.memory.walk import AddressSpace, ProblemKind, require_all_read, walk
from rig.model import PAGE_SIZE, CheckResult, CpuState, Range, Verdict

NAME = "identity-map-complete"
RAM = "System RAM"
FIRMWARE = ("ACPI Tables", "ACPI Non-volatile Storage")  # e820_type_to_string(), arch/x86/kernel/e820.c
EFI = ("EFI system table", "EFI configuration tables")  # as Facts.efi_tables has them
ABOVE = 1 << 32  # bytes that can be addressed with paging off
WRITE_PROTECT = 1 << 16  # CR0.WP
NO_EXECUTE = 1 << 11  # EFER.NXE
SHOWN = 16  # places in figures


@dataclass(frozen=True)
class Need:
    """Whole pages that must be mapped to themselves: [start, end). destination: the image goes there."""

    start: int
    end: int
    name: str
    destination: bool


def identity_map_complete(evidence: Evidence) -> CheckResult:
    """The tables that are live while the image is copied, else those that it is entered with.

    Must be mapped to themselves: all RAM, the ACPI tables where the firmware's memory map tells them apart, EFI's
    system table and its configuration tables, and the image's destinations (init_pgtable() in
    arch/x86/kernel/machine_kexec_64.c; 6bbeb276b71f for ACPI, 5760929f6545 for the configuration tables). A hole
    there fails, and so does an address of the lower half that leads elsewhere. A destination that can't be written, or
    an entry that can't be executed, fails as well.

    What is mapped besides is told, not judged. It is the firmware's memory and devices in the same large page as RAM;
    the type of memory that a large page over several of them gets is up to the MTRRs (SDM vol. 3, "Large Page Size
    Considerations"), and on some machines speculation into reserved memory halts the system (d794734c9bbf).

    A Xen hypervisor maps no RAM but the image's: what must be mapped is the segments (machine_kexec_load() in Xen's
    arch/x86/machine_kexec.c, kimage_load_segments()).

    With paging off (i386) every address below 4 GiB is its own physical address.
    """
    facts = evidence.facts
    way = way_of(evidence)
    needs = _needs(facts)
    if len(way.copying_maps) != 1:
        raise EvidenceError(f"the image is copied through {len(way.copying_maps)} sets of tables: not one map to judge")
    (tables,) = way.copying_maps
    if tables.mode is None:
        return _without_paging(way, needs)
    return _with_paging(facts, way, tables, needs)


def _needs(facts: Facts) -> list[Need]:
    """What must be covered. EvidenceError when the guest's memory map or the image's place is not known."""
    if facts.kimage is None or not (facts.kimage.segments if facts.plain else facts.crash_region):
        raise EvidenceError("where the image goes is not known: no crash region, or machine_kexec was not reached")
    found = []
    for r in facts.iomem if facts.hypervisor is None else ():
        if r.name == RAM:
            # the kernel uses whole pages only (memblock_trim_memory())
            found.append(Need(-(-r.start // PAGE_SIZE) * PAGE_SIZE, (r.last + 1) // PAGE_SIZE * PAGE_SIZE, RAM, False))
        elif r.name in FIRMWARE:
            found.append(Need(*_pages(r.start, r.last + 1), r.name, False))
    if facts.hypervisor is None:
        for (start, size), name in zip(facts.efi_tables, EFI, strict=False):
            found.append(Need(*_pages(start, start + size), name, False))
        if not any(n.name == RAM for n in found):
            raise EvidenceError(f"the guest's /proc/iomem has no {RAM}")
        if facts.crash_region is not None:
            found.append(Need(facts.crash_region.start, facts.crash_region.last + 1, "crash region", True))
    elif not facts.kimage.segments:
        raise EvidenceError("where the image's segments go is not known")
    segments = enumerate(facts.kimage.segments)
    found += [Need(mem, mem + size, f"segment {number} of the image", True) for number, (mem, size) in segments]
    return [n for n in found if n.start < n.end]


def _pages(start: int, end: int) -> Span:
    """The whole pages around [start, end)."""
    return start // PAGE_SIZE * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE


def _without_paging(way: Way, needs: Sequence[Need]) -> CheckResult:
    ranges = [_row(n, max(0, min(n.end, ABOVE) - n.start), ()) for n in needs]
    state = way.copying[0].state
    figures: dict[str, Any] = {"paging": "off", "cr0": state.cr0, "step": way.copying[0].number, "ranges": ranges}
    beyond = [n for n in needs if n.destination and n.end > ABOVE]
    if beyond:
        told = ", ".join(f"{n.name} ({n.start:#x}-{n.end - 1:#x})" for n in beyond)
        return CheckResult(NAME, Verdict.FAIL, f"paging is off, and out of reach above 4 GiB lies: {told}", figures)
    summary = f"paging is off (CR0 {state.cr0:#x}): the {len(needs)} ranges are at their own addresses"
    return CheckResult(NAME, Verdict.PASS, summary, figures)


def _row(need: Need, covered: int, page_sizes: Sequence[int]) -> dict[str, Any]:
    return {
        "start": need.start,
        "end": need.end,
        "name": need.name,
        "covered": covered,
        "page_sizes": list(page_sizes),
    }


def _with_paging(facts: Facts, way: Way, tables: Live, needs: Sequence[Need]) -> CheckResult:
    state = way.copying[0].state
    space = _walk(way, tables)
    mapped = IdentityMap.of(space)
    covers = [(need, mapped.cover(need.start, need.end)) for need in needs]
    holes = sorted({hole for _, cover in covers for hole in cover.holes})
    needed = sorted((n.start, n.end) for n in needs)
    wrong = identity.wrong(space, needed, way.control_pages)
    extra = list(identity.subtract(mapped.spans(), needed))
    large = mapped.large_over(extra, PAGE_SIZE)
    figures: dict[str, Any] = {
        "paging": str(space.mode),
        "cr3": state.cr3,
        "step": way.copying[0].number,
        "ranges": [_row(need, cover.covered, cover.page_sizes) for need, cover in covers],
        "holes": [[*hole] for hole in holes[:SHOWN]],
        "wrong": [[w.virtual, w.physical, w.size] for w in wrong[:SHOWN]],
        "extra": [{"start": s, "end": e, "name": _names(facts.iomem, s, e)} for s, e in extra[:SHOWN]],
        "extra_bytes": sum(e - s for s, e in extra),
        "large_pages_beyond": [[*page] for page in large[:SHOWN]],
        "user_pages": mapped.user_pages(),
        "table_problems": [p.detail for p in space.problems[:SHOWN]],
    }
    problems = [f"{e - s} bytes at {s:#x} are not mapped to themselves" for s, e in holes[:SHOWN]]
    problems += [f"{w.virtual:#x} leads to {w.physical:#x} ({w.size} bytes)" for w in wrong[:SHOWN]]
    problems += _unusable(facts, mapped, covers, state)
    if problems:
        return CheckResult(NAME, Verdict.FAIL, f"the map at CR3 {state.cr3:#x}: {'; '.join(problems)}", figures)
    total = sum(e - s for s, e in mapped.spans())
    summary = (
        f"the map at CR3 {state.cr3:#x} covers {len(needs)} ranges without a hole; of {total} bytes mapped "
        f"{figures['extra_bytes']} are neither RAM nor the image's, in {len(large)} large pages"
    )
    return CheckResult(NAME, Verdict.PASS, summary, figures)


def _walk(way: Way, tables: Live) -> AddressSpace:
    assert tables.mode is not None
    space = require_all_read(walk(way.memory, tables.mode, tables.root, pse=tables.pse, nx=tables.nx))
    if any(p.kind is ProblemKind.TOO_MANY for p in space.problems):
        raise EvidenceError(f"the tables at {tables.root:#x} map too much to be listed: {space.count} pages")
    return space


def _unusable(
    facts: Facts, mapped: IdentityMap, covers: Sequence[tuple[Need, identity.Coverage]], state: CpuState
) -> list[str]:
    """Destinations that can't be written, and an entry that can't be executed, as the CPU's state has it."""
    assert facts.kimage is not None
    problems = [
        f"{need.name} is mapped read-only, and CR0.WP is set"
        for need, cover in covers
        if need.destination and cover.read_only and state.cr0 & WRITE_PROTECT
    ]
    entry = mapped.cover(*_pages(facts.kimage.start, facts.kimage.start + 1))
    if entry.no_execute and state.efer & NO_EXECUTE:
        problems.append(f"the entry {facts.kimage.start:#x} is mapped no-execute")
    return problems


def _names(iomem: Sequence[Range], start: int, end: int) -> str:
    """The outermost ranges of /proc/iomem that [start, end) touches."""
    names = dict.fromkeys(r.name for r in iomem if r.depth == 0 and r.start < end and start <= r.last)
    return ", ".join(names) or "not in /proc/iomem"
