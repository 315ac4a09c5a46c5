"""The HTML report's content as plain values: text that the template only has to lay out and escape."""

from __future__ import annotations

from dataclasses import dataclass

from rig.report.html.registers import RegisterTable
from rig.report.listing import ChangeRow
from rig.report.wording import Outcome


@dataclass(frozen=True)
class Fact:
    """One line of a list of facts. code: value is an address, a number or a name to be set in monospace."""

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class CheckRow:
    name: str
    outcome: Outcome
    summary: str
    figures: list[Fact]


@dataclass(frozen=True)
class EntryRow:
    index: str
    maps: str
    before: str
    after: str
    seen: str


@dataclass(frozen=True)
class Pgd:
    facts: list[Fact]
    entries: list[EntryRow]
    judged: Outcome


@dataclass(frozen=True)
class OwnerRow:
    owner: str
    bytes: str
    pages: str
    interval: str
    addresses: str
    more: str  # the addresses that don't fit, to be folded


@dataclass(frozen=True)
class IntervalRow:
    start: str
    end: str
    bytes: str
    pages: str


@dataclass(frozen=True)
class Ledger:
    facts: list[Fact]
    intervals: list[IntervalRow]
    owners: list[OwnerRow]


@dataclass(frozen=True)
class HandOver:
    """changes: the instructions that changed registers. last: lines of the listing, up to its end; earlier: before.

    cut: how many lines before those are not in the page.
    """

    ending: str
    changes: list[ChangeRow]
    last: str
    earlier: str
    cut: int


@dataclass(frozen=True)
class PhaseBar:
    """offset and width: per cent of the whole run."""

    name: str
    seconds: str
    offset: float
    width: float


@dataclass(frozen=True)
class Trouble:
    """Why the run broke off. judged: it has a verdict nevertheless, as when the guest died of its panic."""

    facts: list[Fact]
    message: str
    hint: str
    cpu_state: str
    console: str
    judged: bool


@dataclass(frozen=True)
class File:
    name: str
    href: str
    size: str


@dataclass(frozen=True)
class Page:
    """Everything on the page, in its order."""

    id: str
    outcome: Outcome
    headline: str
    surprise: str
    facts: list[Fact]
    trouble: Trouble | None
    checks: list[CheckRow]
    pgd: Pgd | None
    ledger: Ledger | None
    hand_over: HandOver | None
    registers: list[RegisterTable]
    phases: list[PhaseBar]
    total: str
    console: str
    console_cut: int  # lines left out at its start
    command: str
    environment: list[Fact]
    files: list[File]
