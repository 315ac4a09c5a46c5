"""The map of physical memory: what lies where in all of RAM, and the pages that changed, a lane for each owner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.facts import Facts
from rig.memory import levels
from rig.memory.ledger import UNACCOUNTED
from rig.model import CRASH_KERNEL, PAGE_SIZE, Range
from rig.report.html.changes import Changed, is_unowned
from rig.report.html.page import span_text
from rig.report.html.pages import Pages
from rig.report.wording import number, plural, printable

GAP = 16 << 20  # bytes: holes between RAM that are longer are cut out of the map
MARKS = 300  # in one lane
OWNERS = 40  # lanes of their own
TICKS = 4
KERNEL = ("Kernel code", "Kernel rodata", "Kernel data", "Kernel bss")
RAM = "System RAM"


@dataclass(frozen=True)
class Mark:
    """Bytes [start, end) in a lane. left and width: per cent of the map. href: of a page's bytes, empty without."""

    start: int
    end: int
    left: float
    width: float
    label: str
    href: str = ""


@dataclass(frozen=True)
class Lane:
    """kind: a class of the style sheet. more: marks that are left out."""

    name: str
    note: str
    kind: str
    marks: list[Mark]
    more: int


@dataclass(frozen=True)
class Tick:
    left: float
    text: str


@dataclass(frozen=True)
class MemoryMap:
    """ranges: the physical addresses that the map shows, "start-end" in hex, by blanks; one behind the other."""

    ranges: str
    size: str
    ticks: list[Tick]
    areas: list[Lane]
    owners: list[Lane]
    cuts: list[str]


class Axis:
    """Physical addresses -> per cent of the map's width."""

    def __init__(self, ram: Iterable[tuple[int, int]]) -> None:
        """ram: (start, size), bytes. Raises EvidenceError when there is none."""
        self.ranges: list[tuple[int, int]] = []
        for start, size in sorted(ram):
            if self.ranges and start - self.ranges[-1][1] < GAP:
                self.ranges[-1] = (self.ranges[-1][0], max(self.ranges[-1][1], start + size))
            else:
                self.ranges.append((start, start + size))
        self.size = sum(end - start for start, end in self.ranges)
        if not self.size:
            raise EvidenceError("run.json names no RAM: there is no memory to draw")

    def percent(self, address: int) -> float:
        """What lies in a hole, or above, is at the hole's place."""
        passed = 0
        for start, end in self.ranges:
            if address < end:
                return round(100 * (passed + max(0, address - start)) / self.size, 4)
            passed += end - start
        return 100.0

    def mark(self, start: int, end: int, label: str, href: str = "") -> Mark:
        left = self.percent(start)
        return Mark(start, end, left, round(self.percent(end) - left, 4), printable(label), href)

    def ticks(self) -> list[Tick]:
        step = 1 << (self.size // TICKS - 1).bit_length()
        found = {a for start, end in self.ranges for a in range(-(-start // step) * step, end, step)}
        found |= {start for start, _ in self.ranges[1:]}
        return [Tick(self.percent(a), span_text(a) if a else "0") for a in sorted(found)]


def memory_map(evidence: Evidence, changed: Sequence[Changed], pages: Pages) -> MemoryMap | None:
    """None when memory was never captured. pages: those whose bytes are shown, and linked to.

    :raise EvidenceError: what is needed was not kept
    """
    facts = evidence.facts
    if not facts.captured:
        return None
    axis = Axis((start, size) for start, size, _ in facts.ram)
    cuts = [f"{a:#x}–{b - 1:#x}" for (_, a), (b, _) in zip(axis.ranges, axis.ranges[1:], strict=False)]
    return MemoryMap(
        ranges=" ".join(f"{start:x}-{end:x}" for start, end in axis.ranges),
        size=span_text(axis.size),
        ticks=axis.ticks(),
        areas=[lane for lane in _areas(evidence, axis) if lane.marks],
        owners=_owners(changed, axis, pages),
        cuts=cuts,
    )


# ---------------------------------------------------------------- what lies where


def _areas(evidence: Evidence, axis: Axis) -> list[Lane]:
    facts = evidence.facts
    root = [levels.root(facts.mode, facts.cr3) & ~(PAGE_SIZE - 1)] if facts.mode and facts.cr3 is not None else []
    tables = {*facts.tables, *facts.user_tables, *facts.other_tables} - set(root)
    lanes = [
        _named("RAM", "ram", facts.iomem, (RAM,), axis),
        _named("Kernel", "kernel", facts.iomem, KERNEL, axis),
        _named("Crash region", "crash", _regions(facts), (CRASH_KERNEL,), axis),
    ]
    if facts.kimage is not None:
        segments = [
            axis.mark(a, a + n, f"segment {i} of the image: {a:#x}–{a + n - 1:#x}, {span_text(n)}")
            for i, (a, n) in enumerate(facts.kimage.segments)
        ]
        lanes.append(_lane("Image segments", "image", segments))
        lanes.append(_lane("struct kimage’s pages", "control", _pages(facts.kimage.pages, "struct kimage", axis)))
    lanes.append(_lane("Page tables", "tables", _pages(tables, "page tables", axis)))
    lanes.append(_lane("pgd at CR3", "root", _pages(root, "the pgd", axis)))
    return lanes


def _regions(facts: Facts) -> Iterable[Range]:
    own = (replace(facts.crash_region, name=CRASH_KERNEL),) if facts.crash_region else ()
    return {r.start: r for r in (*facts.iomem, *own) if r.name == CRASH_KERNEL}.values()


def _named(name: str, kind: str, ranges: Iterable[Range], names: Sequence[str], axis: Axis) -> Lane:
    marks = [
        axis.mark(r.start, r.last + 1, f"{r.name}: {r.start:#x}–{r.last:#x}, {span_text(r.size)}")
        for r in ranges
        if r.name in names
    ]
    return _lane(name, kind, marks)


def _pages(pages: Iterable[int], what: str, axis: Axis) -> list[Mark]:
    """Pages that follow each other are one mark."""
    runs: list[list[int]] = []
    for page in sorted(set(pages)):
        if runs and runs[-1][1] == page:
            runs[-1][1] += PAGE_SIZE
        else:
            runs.append([page, page + PAGE_SIZE])
    return [axis.mark(a, b, f"{what}: {a:#x}–{b - 1:#x}") for a, b in runs]


def _lane(name: str, kind: str, marks: list[Mark]) -> Lane:
    size = sum(mark.end - mark.start for mark in marks)
    return Lane(name, span_text(size), kind, marks[:MARKS], max(0, len(marks) - MARKS))


# ---------------------------------------------------------------- what changed


def _owners(changed: Sequence[Changed], axis: Axis, pages: Pages) -> list[Lane]:
    """Those without an owner first, then by bytes; the smallest share the last lane when there are too many."""
    by_owner: dict[str, list[Changed]] = defaultdict(list)
    for change in changed:
        by_owner[change.owner].append(change)
    order = sorted(by_owner, key=lambda owner: (owner != UNACCOUNTED, -sum(c.length for c in by_owner[owner])))
    lanes = [_owner_lane(printable(owner), by_owner[owner], axis, pages) for owner in order[:OWNERS]]
    if rest := [change for owner in order[OWNERS:] for change in by_owner[owner]]:
        lanes.append(_owner_lane(f"{len(order) - OWNERS} other owners", rest, axis, pages))
    return lanes


def _owner_lane(name: str, changed: Sequence[Changed], axis: Axis, shown: Pages) -> Lane:
    pages: dict[int, list[Changed]] = defaultdict(list)
    for change in changed:
        for page in change.pages:
            pages[page].append(change)
    marks = [
        axis.mark(page, page + PAGE_SIZE, _words(page, name, parts), shown.href(parts[0].interval, page))
        for page, parts in sorted(pages.items())
    ]
    total = sum(change.length for change in changed)
    note = f"{plural(total, 'byte', 'bytes')}, {plural(len(pages), 'page', 'pages')}"
    kind = "changed unowned" if is_unowned(changed[0]) else "changed"
    return Lane(name, note, kind, marks[:MARKS], max(0, len(marks) - MARKS))


def _words(page: int, owner: str, parts: Sequence[Changed]) -> str:
    when = ", ".join(dict.fromkeys(part.interval for part in parts))
    return f"{page:#x}: {owner}, {number(sum(part.length for part in parts))} bytes, {when}"
