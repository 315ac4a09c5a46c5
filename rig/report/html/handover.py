"""The hand-over: the instructions that changed the machine's state, and the listing with those marked. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rig.report.html.page import Link, Sources
from rig.report.listing import ChangeRow, Listing
from rig.report.wording import printable

LAST_INSTRUCTIONS = 100  # lines of the hand-over that are shown
EARLIER_INSTRUCTIONS = 900  # and folded; all of them are in the evidence's own file
CHANGES = 200  # rows of the table of changes, the last ones
NEW_TABLES = re.compile(r"CR3 (0x[0-9a-f]+) -> (0x[0-9a-f]+)")  # as rig.report.listing words it
PAGING_OFF = "PG 1->0"
CONTROL = re.compile(r"(CR\d|EFER|GDTR|IDTR|IF)\b")


@dataclass(frozen=True)
class Clause:
    """One change of a row. control: of a control register, of a descriptor table or of IF, not of a segment."""

    text: str
    control: bool


@dataclass(frozen=True)
class Row:
    step: str
    where: str
    instruction: str
    changes: list[Clause]


@dataclass(frozen=True)
class Span:
    """Steps that were executed by the same tables. left and width: per cent of all steps."""

    tables: str
    steps: str
    left: float
    width: float


@dataclass(frozen=True)
class Lines:
    """Lines of the listing that follow each other and are all to be marked, or none."""

    text: str
    marked: bool


@dataclass(frozen=True)
class HandOver:
    """live: which tables were live when; none when they never changed. changes: instructions that changed registers.

    last: lines of the listing, up to its end; earlier: before.

    cut, rows_cut: how many lines, and rows of changes, before those are not in the page.
    """

    ending: str
    instructions: int
    live: list[Span]
    changes: list[Row]
    rows_cut: int
    last: list[Lines]
    earlier: list[Lines]
    cut: int
    files: list[Link]


def hand_over(listing: Listing, sources: Sources) -> HandOver:
    last = listing.lines[-LAST_INSTRUCTIONS:]
    earlier = listing.lines[-EARLIER_INSTRUCTIONS - LAST_INSTRUCTIONS : -LAST_INSTRUCTIONS]
    marked = frozenset(row.step for row in listing.rows)
    return HandOver(
        ending=printable(listing.ending),
        instructions=listing.instructions,
        live=_live(listing),
        changes=[_row(row) for row in listing.rows[-CHANGES:]],
        rows_cut=max(0, len(listing.rows) - CHANGES),
        last=list(_runs(last, marked)),
        earlier=list(_runs(earlier, marked)),
        cut=len(listing.lines) - len(last) - len(earlier),
        files=sources.links(["handover.txt", "trace.log.zst", "before.log.zst"]),
    )


def _live(listing: Listing) -> list[Span]:
    """The instruction that loads CR3, or ends paging, is itself still executed by the tables before."""
    starts: list[tuple[int, str]] = []
    for row in listing.rows:
        found = NEW_TABLES.search(row.changes)
        off = PAGING_OFF in row.changes
        if found or off:
            starts = starts or [(0, found[1] if found else "as at machine_kexec")]
            starts.append((int(row.step) + 1, found[2] if found and not off else "none, paging is off"))
        if off:
            break  # what is in CR3 from here on maps nothing
    if not starts:
        return []
    steps = sum(1 for line in listing.lines if line[:6].strip().isdigit())
    ends = [*(start for start, _ in starts[1:]), steps]
    return [
        Span(tables, f"{start}–{end - 1}", round(100 * start / steps, 2), round(100 * (end - start) / steps, 2))
        for (start, tables), end in zip(starts, ends, strict=True)
        if end > start
    ]


def _row(row: ChangeRow) -> Row:
    clauses = [printable(text) for text in row.changes.split("; ")]
    return Row(
        printable(row.step),
        printable(row.where),
        printable(row.instruction),
        [Clause(text, bool(CONTROL.match(text))) for text in clauses],
    )


def _runs(lines: Sequence[str], marked: frozenset[str]) -> Iterator[Lines]:
    """A line begins with its step's number; those of interrupts and exceptions, with stars, are marked as well."""
    run: list[str] = []
    state = False
    for line in lines:
        first = line.split(maxsplit=1)[:1]
        now = bool(first) and (first[0] in marked or first[0].startswith("***"))
        if run and now != state:
            yield Lines("\n".join(run), state)
            run = []
        state = now
        run.append(printable(line))
    if run:
        yield Lines("\n".join(run), state)
