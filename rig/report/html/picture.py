"""The table at CR3 as a picture: every entry, before and after, and what it maps, by memory as it was kept.

Entries and flags: Intel SDM vol. 3, 4.3 (32-bit paging), 4.4 (PAE), 4.5 (4- and 5-level paging).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from rig.errors import EvidenceError
from rig.evidence import DIED, PGD
from rig.evidence.reader import Evidence
from rig.handover import Live
from rig.memory import levels, paging
from rig.memory.levels import PRESENT, USER, Leaf, Level
from rig.memory.physical import OutsideMemory
from rig.model import PAGE_SIZE, PagingMode
from rig.report.html.page import span_text
from rig.report.wording import entry_value, mapped_range, number, plural

COLUMNS = 32
DUMP = "vmcore"  # where the page was seen in the dump
FLAGS = {0: "P", 1: "RW", 2: "US", 3: "PWT", 4: "PCD", 5: "A", 6: "D", 7: "PS", 8: "G", 63: "NX"}
SIGNS = {"changed": "≠", "touched": "a", "absent": "", "hollow": "·", "user": "u", "kernel": "s"}


@dataclass(frozen=True)
class Cell:
    """One entry in the picture. kind: a class of the style sheet; sign: what stands in it."""

    index: int
    kind: str
    sign: str


@dataclass(frozen=True)
class PictureRow:
    first: int
    virtual: str  # where the row's first entry begins
    cells: list[Cell]


@dataclass(frozen=True)
class EntryRow:
    """An entry that is present, or that changed. after: one text a later version that differs."""

    index: int
    kind: str
    virtual: str
    before: str
    flags: str
    leads_to: str
    maps: str
    after: list[str]


@dataclass(frozen=True)
class Picture:
    """All entries. shift, sign_from: bytes that an entry maps (log2), the first index with sign-extended addresses.

    entry, base: the kind of the entries (PML4E), and the checkpoint of their first version.
    """

    rows: list[PictureRow]
    entries: list[EntryRow]
    summary: str
    columns: int
    shift: int
    sign_from: int
    entry: str
    base: str
    seen: str


def picture(evidence: Evidence) -> Picture | None:
    """All entries of the table at CR3, in all versions that were kept. None when no run got that far.

    :raise EvidenceError: the page was not kept, or what was kept is torn
    """
    facts = evidence.facts
    if facts.mode is None or facts.cr3 is None or not facts.captured:
        return None
    base = evidence.base
    live = Live.of(evidence.crashing_cpu(base))
    if live.mode is not facts.mode:
        raise EvidenceError(f"registers/{base}.json says {live.mode} paging, run.json says {facts.mode}")
    before = _root(evidence, str(base), live)
    later = {where: _root(evidence, where, live) for where in _later(evidence)}
    if facts.dump is not None and (evidence.path / PGD).exists():
        later[DUMP] = _cut(evidence.dumped_pgd, live)
    differences = [paging.entry_changes(facts.mode, before, version, pse=live.pse) for version in later.values()]
    table = _Table(
        facts.mode,
        levels.levels(facts.mode, pse=live.pse),
        levels.entries(facts.mode, before).tolist(),
        {where: levels.entries(facts.mode, version).tolist() for where, version in later.items()},
        frozenset(entry.index for each in differences for entry in each.changed),
        frozenset(entry.index for each in differences for entry in each.ad_only),
        _reached(evidence, live),
    )
    count = len(table.before)
    rows = [table.row(index) for index in range(count) if table.shown(index)]
    top = table.shape[0]
    return Picture(
        rows=_grid(table),
        entries=rows,
        summary=_summary(table, rows),
        columns=min(COLUMNS, count),
        shift=top.shift,
        sign_from=count // 2 if facts.mode in (PagingMode.FOUR_LEVEL, PagingMode.FIVE_LEVEL) else count,
        entry=top.name,
        base=str(base),
        seen=", ".join(later) or "nowhere later",
    )


def _later(evidence: Evidence) -> list[str]:
    """What memory was captured at after its first capture, and its end when the guest died."""
    facts = evidence.facts
    return [str(c) for c in facts.captured if c != evidence.base] + ([DIED] if facts.post_mortem else [])


def _root(evidence: Evidence, where: str, live: Live) -> bytes:
    try:
        page = evidence.memory(where).read(live.root & ~(PAGE_SIZE - 1), PAGE_SIZE)
    except OutsideMemory as problem:
        raise EvidenceError(f"the pgd's page {live.root:#x} was not kept at {where}") from problem
    return _cut(page, live)


def _cut(page: bytes, live: Live) -> bytes:
    """The root out of its page: with PAE 32 bytes of it. EvidenceError when the page has another size."""
    assert live.mode is not None
    if len(page) != PAGE_SIZE:
        raise EvidenceError(f"a page of {len(page)} bytes was kept of the pgd, not {PAGE_SIZE}")
    start = live.root % PAGE_SIZE
    return page[start : start + levels.root_size(live.mode)]


@dataclass(frozen=True)
class _Reach:
    """What an entry of the root leads to: translations, their bytes, and how many of them user mode may use."""

    pages: int
    bytes: int
    user: int


def _reached(evidence: Evidence, live: Live) -> dict[int, _Reach] | None:
    """By index of the root's entry, at the first capture, by the tables that were kept.

    None when they can't be counted: tables that form a loop, or garbage.
    """
    assert live.mode is not None
    space = paging.walk(evidence.memory(evidence.base), live.mode, live.root, pse=live.pse, nx=live.nx)
    if space.count != len(space.virtual):
        return None
    top = levels.MODES[live.mode].levels[0]
    index = (space.virtual >> np.uint64(top.shift) & np.uint64((1 << top.bits) - 1)).astype(np.intp)
    pages = np.bincount(index, minlength=1 << top.bits)
    user = np.bincount(index[(space.flags & paging.Flags.USER) != 0], minlength=1 << top.bits)
    sizes = np.zeros(1 << top.bits, np.uint64)
    np.add.at(sizes, index, space.size.astype(np.uint64))
    return {int(i): _Reach(int(pages[i]), int(sizes[i]), int(user[i])) for i in np.flatnonzero(pages)}


@dataclass(frozen=True)
class _Table:
    """Versions of the root table's entries. shape: levels, the root's first. reached: see `_reached`.

    changed, touched: indices of entries that changed, and of those in which the CPU set accessed or dirty bits.
    """

    mode: PagingMode
    shape: tuple[Level, ...]
    before: list[int]
    later: Mapping[str, list[int]]
    changed: frozenset[int]
    touched: frozenset[int]
    reached: Mapping[int, _Reach] | None

    def shown(self, index: int) -> bool:
        return bool(self.before[index] or any(version[index] for version in self.later.values()))

    def kind(self, index: int) -> str:
        """How the entry is drawn: by the worst that became of it, else by what it is."""
        value = self.before[index]
        if index in self.changed:
            return "changed"
        if index in self.touched:
            return "touched"
        if not value & PRESENT:
            return "absent"
        if self.reached is not None and index not in self.reached:
            return "hollow"
        owner = "user" if self._is_user(index) else "kernel"
        return f"{owner} large" if self._is_page(value) else owner

    def _is_user(self, index: int) -> bool:
        """Whether user mode may use a page below the entry; where that can't be counted, what its own bit says."""
        if self.reached is not None:
            return self.reached[index].user > 0
        return self.shape[0].permissions and bool(self.before[index] & USER)

    def row(self, index: int) -> EntryRow:
        old = self.before[index]
        mapped = mapped_range(index, self.mode)
        assert mapped is not None
        return EntryRow(
            index=index,
            kind=self.kind(index),
            virtual=f"{mapped[0]:#x}–{mapped[1]:#x}",
            before=entry_value(old, self.mode),
            flags=flag_names(old),
            leads_to=self._leads_to(old),
            maps=self._maps(index),
            after=list(self._after(index)),
        )

    def _after(self, index: int) -> Iterator[str]:
        """Each version that is not as the one before it."""
        known = self.before[index]
        for where, version in self.later.items():
            value = version[index]
            if value != known:
                yield f"at {where}: {entry_value(value, self.mode)} {flag_names(value)}"
            known = value

    def _leads_to(self, value: int) -> str:
        if not value & PRESENT:
            return ""
        level = self.shape[0]
        if self._is_page(value):
            return f"{span_text(level.span)} page at {levels.page_address(level, value):#x}"
        return f"{self.shape[1].table} at {value & level.frame:#x}"

    def _maps(self, index: int) -> str:
        if not self.before[index] & PRESENT or self.reached is None:
            return ""
        if index not in self.reached:
            return "no page"
        reach = self.reached[index]
        user = f", {number(reach.user)} of them user mode’s" if reach.user else ""
        return f"{span_text(reach.bytes)} in {plural(reach.pages, 'page', 'pages')}{user}"

    def _is_page(self, value: int) -> bool:
        mask, expected = self.shape[0].leaf.value
        return self.shape[0].leaf is not Leaf.NEVER and value & mask == expected


def _grid(table: _Table) -> list[PictureRow]:
    rows = []
    count = len(table.before)
    for first in range(0, count, COLUMNS):
        kinds = [(index, table.kind(index)) for index in range(first, min(first + COLUMNS, count))]
        cells = [Cell(index, kind, SIGNS[kind.split()[0]]) for index, kind in kinds]
        mapped = mapped_range(first, table.mode)
        assert mapped is not None
        rows.append(PictureRow(first, f"{mapped[0]:#x}", cells))
    return rows


def _summary(table: _Table, rows: list[EntryRow]) -> str:
    present = sum(1 for value in table.before if value & PRESENT)
    touched = sum(1 for row in rows if row.kind == "touched")
    words = f"{len(table.before)} {table.shape[0].name}s, {number(present)} present: {len(table.changed)} changed"
    return words + (f", {number(touched)} got an accessed or dirty bit from the CPU" if touched else "")


def flag_names(value: int) -> str:
    """The flags that are set in an entry, lowest first; "not present" when P is not."""
    if not value & PRESENT:
        return "not present"
    return " ".join(name for bit, name in FLAGS.items() if value >> bit & 1)
