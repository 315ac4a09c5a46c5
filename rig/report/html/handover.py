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
class Lines:
    """Lines of the listing that follow each other and are all to be marked, or none."""

    text: str
    marked: bool


@dataclass(frozen=True)
class HandOver:
    """changes: the instructions that changed registers. last: lines of the listing, up to its end; earlier: before.

    cut, rows_cut: how many lines, and rows of changes, before those are not in the page.
    """

    ending: str
    instructions: int
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
        changes=[_row(row) for row in listing.rows[-CHANGES:]],
        rows_cut=max(0, len(listing.rows) - CHANGES),
        last=list(_runs(last, marked)),
        earlier=list(_runs(earlier, marked)),
        cut=len(listing.lines) - len(last) - len(earlier),
        files=sources.links(["handover.txt", "trace.log.zst", "before.log.zst"]),
    )


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
