"""The page directory at CR3, by the figures of the check that compares it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rig.evidence import PGD
from rig.model import CheckResult
from rig.report.html.page import Fact, Sources
from rig.report.html.picture import DUMP, Picture, flag_names
from rig.report.wording import (
    entry_value,
    integer,
    mapped_range,
    number,
    paging_mode,
    printable,
    records,
)


@dataclass(frozen=True)
class ChangedRow:
    """An entry that changed, as the check tells it."""

    index: str
    maps: str
    before: str
    before_flags: str
    after: str
    after_flags: str
    seen: str
    href: str


@dataclass(frozen=True)
class Pgd:
    facts: list[Fact]
    changed: list[ChangedRow]
    picture: Picture | None


def pgd(check: CheckResult | None, picture: Picture | None, sources: Sources) -> Pgd | None:
    """None when nothing is known of it. check: pgd-survives, where the run has it."""
    figures = check.figures if check else {}
    facts, changed = list(_facts(figures, sources)), list(_changed_rows(figures, sources))
    if not (facts or changed or picture):
        return None
    return Pgd(facts, changed, picture)


def _facts(figures: Mapping[str, Any], sources: Sources) -> Iterator[Fact]:
    at_panic, told = sources.href("registers/panic.json"), sources.href("result.json")
    if mode := paging_mode(figures):
        yield Fact("Paging", str(mode), href=at_panic)
    for name, key in (("CR3", "cr3"), ("Table at", "root")):
        if (address := integer(figures, key)) is not None:
            yield Fact(name, f"{address:#x}", code=True, href=at_panic)
    for name, key in (("Bytes compared", "bytes_compared"), ("Bytes changed", "bytes_changed")):
        if (amount := integer(figures, key)) is not None:
            yield Fact(name, number(amount), href=told)
    if (bits := integer(figures, "ad_bits")) is not None:
        yield Fact("Accessed and dirty bits that the CPU set (not counted)", number(bits), href=told)
    for row in records(figures, "compared"):
        where = str(row.get("checkpoint", "?"))
        if (changed := integer(row, "bytes_changed")) is not None and not (where == DUMP and figures.get("vmcore")):
            href = sources.href(PGD if where == DUMP else f"memory/{where}.pages.zst")
            yield Fact(f"At {printable(where)}", f"{number(changed)} bytes changed", href=href)
    yield from _vmcore_facts(figures.get("vmcore"), sources.href(PGD))
    if writer := figures.get("writer"):
        yield Fact("Written by", printable(str(writer)), code=True, href=sources.href("handover.txt"))


def _vmcore_facts(vmcore: object, href: str) -> Iterator[Fact]:
    """How the dump that a user would get shows the page."""
    if not isinstance(vmcore, Mapping):
        return
    words = []
    if (changed := integer(vmcore, "bytes_changed")) is not None:
        words.append(f"{number(changed)} bytes changed")
    if (physical := integer(vmcore, "physical")) is not None:
        words.append(f"page at {physical:#x}")
    if via := vmcore.get("via"):
        words.append(f"fetched over {printable(str(via))}")
    if words:
        yield Fact("In /proc/vmcore", ", ".join(words), href=href)


def _changed_rows(figures: Mapping[str, Any], sources: Sources) -> Iterator[ChangedRow]:
    mode = paging_mode(figures)
    for entry in records(figures, "entries_changed"):
        index = integer(entry, "index")
        mapped = mapped_range(index, mode) if index is not None else None
        before, after = entry.get("before"), entry.get("after")
        seen = str(entry.get("checkpoint", ""))
        yield ChangedRow(
            index="?" if index is None else str(index),
            maps=f"{mapped[0]:#x}–{mapped[1]:#x}" if mapped else "",
            before=entry_value(before, mode),
            before_flags=flag_names(before) if isinstance(before, int) else "",
            after=entry_value(after, mode),
            after_flags=flag_names(after) if isinstance(after, int) else "",
            seen=printable(seen),
            href=sources.href(PGD if seen == DUMP else f"memory/{seen}.pages.zst"),
        )
