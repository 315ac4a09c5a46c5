"""The crashed task's whole address space, not only its root table: every table, every translation, its own data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rig.checks.writers import writer
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.facts import Facts
from rig.memory import levels, paging
from rig.memory.diff import bytes_changed, changed_ranges
from rig.memory.paging import EntryChanges, NotMapped
from rig.memory.physical import Memory, OutsideMemory
from rig.memory.spaces import Difference, compare, worst
from rig.memory.walk import AddressSpace, require_all_read, walk
from rig.model import Checkpoint, CheckResult, PagingMode, Verdict

SHOWN = 8  # changed tables, and changed entries of each, that the figures tell
MODES = levels.MODES
NO_CHANGE = EntryChanges((), (), 0, 0)


@dataclass(frozen=True)
class Root:
    """A root table of the crashed task: its pgd, or with page-table isolation the user's twin. table: physical."""

    name: str
    table: int


@dataclass(frozen=True)
class _Table:
    """One table. depth: of its level, the root's is 0."""

    address: int
    depth: int


@dataclass(frozen=True)
class _Later:
    """What became of the address space at a later checkpoint. translations: of both twins."""

    checkpoint: Checkpoint
    changed: Mapping[_Table, EntryChanges]
    ad_bits: int
    translations: int
    difference: Difference


def address_space_survives(evidence: Evidence) -> CheckResult:
    """Compare the tables at `panic` with every later checkpoint, and what they map: of both twins, where there are two.
    In a kexec jump those at `machine-kexec`, as long as the old tables are live: with `handover` and `returned`.

    Accessed and dirty bits that the CPU itself sets are counted apart (SDM vol. 3, 4.8). As long as no table changed
    by more, the translations are the same by construction and are not compared again.
    """
    facts, mode = evidence.facts, _mode(evidence.facts)
    first, *later_on = evidence.course
    before = evidence.memory(first)
    spaces = {root: _whole(before, mode, root) for root in roots(facts)}
    seen = [_later(evidence, spaces, c) for c in later_on if c in facts.captured]
    difference = worst(later.difference for later in seen)
    changed: dict[_Table, tuple[Checkpoint, EntryChanges]] = {}
    for later in seen:
        for table, changes in later.changed.items():
            changed.setdefault(table, (later.checkpoint, changes))
    total = sum(space.count for space in spaces.values())
    figures: dict[str, Any] = {
        "tables_compared": len({table for space in spaces.values() for table in _tables(space)}),
        "tables_changed": len(changed),
        "translations_before": total,
        "translations_after": next((s.translations for s in seen if s.changed), total) if seen else None,
        **asdict(difference),
        "ad_bits": max((later.ad_bits for later in seen), default=0),
        "twins": [{"name": r.name, "root": r.table, "translations": s.count} for r, s in spaces.items()],
        "changes": [_told(mode, *item) for item in list(changed.items())[:SHOWN]],
        "checkpoints": [str(later.checkpoint) for later in seen],
    }
    tables = figures["tables_compared"]
    if changed:
        table, (where, _) = next(iter(changed.items()))
        size = _size(mode, table)
        summary = (
            f"{len(changed)} of {tables} page-table pages changed, first seen at {where}, the first a"
            f" {MODES[mode].levels[table.depth].table} at {table.address:#x}; of {total} translations"
            f" {difference.lost} are lost, {difference.redirected} redirected, {difference.permissions} have other"
            f" permissions; {difference.added} are new"
        )
        before_it, after_it = (evidence.memory(c).read(table.address, size) for c in (first, where))
        ranges = [(table.address + at, table.address + at + n) for at, n in changed_ranges(before_it, after_it)]
        figures["writer"], figures["writers"] = writer(evidence, where, ranges)
        return CheckResult("address-space-survives", Verdict.FAIL, summary, figures)
    summary = f"{tables} page-table pages, {total} translations"
    if missing := [str(c) for c in evidence.course if c not in facts.captured]:
        summary += f": unchanged so far, but never seen at {', '.join(missing)}"
        return CheckResult("address-space-survives", Verdict.ERROR, summary, figures)
    twins = ", user twin included" if facts.user_pgd is not None else ""
    summary += f"{twins}: all unchanged {evidence.course_in_words}"
    return CheckResult("address-space-survives", Verdict.PASS, summary, figures)


def roots(facts: Facts) -> list[Root]:
    """The pgd, and its user twin where there is one. Raises EvidenceError when `panic` was never reached."""
    mode = _mode(facts)
    assert facts.cr3 is not None
    found = [Root("pgd", levels.root(mode, facts.cr3))]
    return found if facts.user_pgd is None else [*found, Root("user pgd", facts.user_pgd)]


def _mode(facts: Facts) -> PagingMode:
    if facts.cr3 is None or facts.mode is None:
        raise EvidenceError("`panic` was never reached: there is no address space to compare")
    return facts.mode


def _whole(memory: Memory, mode: PagingMode, root: Root) -> AddressSpace:
    """All that a root maps. Raises EvidenceError when a table is missing, or it maps nothing at all."""
    space = require_all_read(walk(memory, mode, root.table))
    lacking = [p for p in space.problems if p.kind is paging.ProblemKind.OUTSIDE_MEMORY]
    if lacking:
        raise EvidenceError(f"the {root.name}'s tables at panic are not all there: {lacking[0].detail}")
    if not space.count:
        raise EvidenceError(f"the {root.name} at {root.table:#x} mapped nothing at panic")
    return space


def _tables(space: AddressSpace) -> list[_Table]:
    depths = {level.table: depth for depth, level in enumerate(MODES[space.mode].levels)}
    return [_Table(table.address, depths[table.level]) for table in space.tables]


def _later(evidence: Evidence, spaces: Mapping[Root, AddressSpace], checkpoint: Checkpoint) -> _Later:
    before, after = evidence.memory(evidence.course[0]), evidence.memory(checkpoint)
    every: dict[_Table, EntryChanges] = {}
    differences: list[Difference] = []
    translations = 0
    for root, space in spaces.items():
        mine = {table: _changes(before, after, space.mode, table) for table in _tables(space)}
        every |= mine
        later = space
        if any(changes.changed for changes in mine.values()):
            later = walk(after, space.mode, root.table)
            differences.append(compare(space, later))
        translations += later.count
    return _Later(
        checkpoint,
        {table: changes for table, changes in every.items() if changes.changed},
        sum(changes.ad_bits for changes in every.values()),
        translations,
        worst(differences),
    )


def _changes(before: Memory, after: Memory, mode: PagingMode, table: _Table) -> EntryChanges:
    size = _size(mode, table)
    old, new = before.read(table.address, size), after.read(table.address, size)
    return NO_CHANGE if old == new else paging.entry_changes(mode, old, new, level=table.depth)


def _size(mode: PagingMode, table: _Table) -> int:
    return MODES[mode].table_size(MODES[mode].levels[table.depth])


def _told(mode: PagingMode, table: _Table, seen: tuple[Checkpoint, EntryChanges]) -> dict[str, Any]:
    """A changed table, for the figures."""
    checkpoint, changes = seen
    return {
        "table": table.address,
        "level": MODES[mode].levels[table.depth].table,
        "checkpoint": str(checkpoint),
        "entries_changed": len(changes.changed),
        "entries": [asdict(entry) for entry in changes.changed[:SHOWN]],
    }


# ---------------------------------------------------------------- the task's own data


def user_space_survives(evidence: Evidence) -> CheckResult:
    """Translate the pattern's address through the tables as they are at `crash-kernel`, and read what is there."""
    facts, mode = evidence.facts, _mode(evidence.facts)
    pattern = facts.pattern
    if pattern is None:
        raise EvidenceError("the pattern was never found: there is nothing of the crashing task to look for")
    planted = (pattern.token.encode() * (pattern.bytes // max(len(pattern.token), 1) + 1))[: pattern.bytes]
    before = evidence.memory(Checkpoint.PANIC)
    views = roots(facts)
    for root in views:
        if not planted or _find(before, mode, root, pattern.virtual, len(planted)) != (pattern.physical, planted):
            raise EvidenceError(f"the pattern is not at {pattern.virtual:#x} at panic by the {root.name}'s tables")
    figures: dict[str, Any] = {
        "virtual": pattern.virtual,
        "physical": pattern.physical,
        "bytes": pattern.bytes,
        "twins": [root.name for root in views],
    }
    after = evidence.memory(Checkpoint.CRASH_KERNEL)
    for root in views:
        found = _find(after, mode, root, pattern.virtual, len(planted))
        if (problem := _pattern_problem(found, pattern.physical, planted)) is not None:
            summary = f"{pattern.virtual:#x} of the crashing task, through the {root.name} as it is now: {problem}"
            return CheckResult("user-space-survives", Verdict.FAIL, summary, {**figures, "problem": problem})
    summary = f"{pattern.bytes} bytes at {pattern.virtual:#x} of the crashing task are found at {pattern.physical:#x}"
    return CheckResult("user-space-survives", Verdict.PASS, summary, figures)


def _find(memory: Memory, mode: PagingMode, root: Root, virtual: int, size: int) -> tuple[int, bytes | None] | str:
    """(physical, bytes there; None when that memory was not kept), or why there is no translation. Within a page."""
    try:
        physical = paging.translate(memory, mode, root.table, virtual).physical
    except NotMapped as problem:
        return problem.reason
    try:
        return physical, memory.read(physical, size)
    except OutsideMemory:
        return physical, None


def _pattern_problem(found: tuple[int, bytes | None] | str, physical: int, planted: bytes) -> str | None:
    """What is wrong with the pattern, in words; None when it is found."""
    if isinstance(found, str):
        return f"no longer mapped: {found}"
    where, blob = found
    if where != physical:
        return f"leads to {where:#x}, no longer to {physical:#x}"
    if blob is None:
        raise EvidenceError(f"the pattern's page {physical:#x} was not kept")
    if differing := bytes_changed(planted, blob):
        return f"{differing} of {len(planted)} bytes differ at {where:#x}"
    return None
