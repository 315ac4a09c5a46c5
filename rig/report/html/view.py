"""What the HTML report shows, as plain values ready for the template (pure, but for what the evidence reads).

A figure that is missing leaves out its row, never the page.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any, Protocol
from urllib.parse import quote

from rig.model import CheckResult, CpuState, Failure, KernelIdentity, RunResult, Verdict
from rig.report.html.page import (
    CheckRow,
    EntryRow,
    Fact,
    File,
    HandOver,
    IntervalRow,
    Ledger,
    OwnerRow,
    Page,
    Pgd,
    PhaseBar,
    Trouble,
)
from rig.report.html.registers import register_table
from rig.report.listing import ChangeRow, Listing
from rig.report.wording import (
    PGD_CHECK,
    check_outcome,
    entry_value,
    find_check,
    headline,
    integer,
    mapped_range,
    number,
    outcome,
    paging_mode,
    printable,
    printable_lines,
    records,
)

LEDGER_CHECK = "memory-accounted"
CONSOLE_LINES = 5000  # the last so many are in the page, all of them in the evidence's own file
ADDRESSES_SHOWN = 6
LAST_INSTRUCTIONS = 100  # lines of the hand-over that are shown
EARLIER_INSTRUCTIONS = 900  # and folded; all of them are in the evidence's own file
CHANGES = 200  # rows of the table of changes, the last ones
SHOWN_BELOW = {  # figures by check that have a section of their own
    PGD_CHECK: {"entries_changed", "compared", "vmcore"},
    LEDGER_CHECK: {"intervals", "owners"},
}


class EvidenceView(Protocol):
    """What the report reads of an evidence directory. Each may be empty, as after a run that broke off."""

    def console(self) -> str:
        """Everything that the guest printed, as text; bytes that aren't UTF-8 already replaced or escaped."""

    def registers(self) -> Mapping[str, Sequence[CpuState]]:
        """By checkpoint, in the order of time."""

    def files(self) -> Sequence[tuple[str, int]]:
        """Path relative to the directory, with slashes, and size in bytes."""


def build_page(result: RunResult, evidence: EvidenceView, listing: Listing | None = None) -> Page:
    """The page's values. Reads the evidence once."""
    console = printable_lines(evidence.console())
    total = sum(phase.seconds for phase in result.phases)
    return Page(
        id=printable(result.id),
        outcome=outcome(result),
        headline=headline(result),
        surprise=printable(result.surprise),
        facts=_run_facts(result, total),
        trouble=_trouble(result.error, result.verdict) if result.error else None,
        checks=[_check_row(check, result) for check in result.checks],
        pgd=_pgd(result),
        ledger=_ledger(find_check(result, LEDGER_CHECK)),
        hand_over=_hand_over(listing) if listing else None,
        registers=[register_table(name, cpus) for name, cpus in evidence.registers().items() if cpus],
        phases=_phase_bars(result, total),
        total=f"{total:.1f} s",
        console="\n".join(console[-CONSOLE_LINES:]),
        console_cut=max(0, len(console) - CONSOLE_LINES),
        command=command_line(result.environment.get("argv")),
        environment=[
            Fact(str(k), printable(_shown(v)), code=True) for k, v in result.environment.items() if k != "argv"
        ],
        files=[File(printable(name), quote(name), size_text(size)) for name, size in sorted(evidence.files())],
    )


# ---------------------------------------------------------------- parts of the page


def _run_facts(result: RunResult, total: float) -> list[Fact]:
    def kernel(identity: KernelIdentity) -> str:
        release = f" ({identity.release})" if identity.release else ""
        return printable(f"{identity.name}{release}")

    facts = [
        Fact("Scenario", printable(result.scenario)),
        Fact("Guest", printable(result.guest)),
        Fact("Kernel", kernel(result.kernel)),
        Fact("Crash kernel", kernel(result.crash_kernel)),
        Fact("Expected", str(result.expect) + "".join(f", {name} fails" for name in result.expect_failed)),
        Fact("Verdict", str(result.verdict)),
    ]
    return [*facts, Fact("Time", f"{total:.1f} s")] if result.phases else facts


def _trouble(error: Failure, verdict: Verdict) -> Trouble:
    return Trouble(
        facts=[
            Fact("Phase", printable(error.phase) or "before the first phase"),
            Fact("Kind", printable(error.kind), code=True),
        ],
        message="\n".join(printable_lines(error.message)),
        hint="\n".join(printable_lines(error.hint)),
        cpu_state="\n".join(printable_lines(error.cpu_state)),
        console="\n".join(printable_lines(error.console)),
        judged=verdict is Verdict.FAIL,
    )


def _check_row(check: CheckResult, result: RunResult) -> CheckRow:
    figures = [
        Fact(str(key), printable(_figure(key, value)), code=True)
        for key, value in check.figures.items()
        if key not in SHOWN_BELOW.get(check.name, ())
    ]
    return CheckRow(check.name, check_outcome(check, result), printable(check.summary), figures)


def _figure(key: str, value: object) -> str:
    """As the check gave it; CR3 and its table in hex, and of a long list only its length."""
    if isinstance(value, list | tuple) and len(value) > 4:
        return f"{len(value)} of them"
    if key in ("cr3", "root") and isinstance(value, int):
        return f"{value:#x}"
    return _shown(value)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _pgd(result: RunResult) -> Pgd | None:
    check = find_check(result, PGD_CHECK)
    if check is None:
        return None
    return Pgd(list(_pgd_facts(check.figures)), list(_entry_rows(check.figures)), check_outcome(check, result))


def _pgd_facts(figures: Mapping[str, Any]) -> Iterator[Fact]:
    if mode := paging_mode(figures):
        yield Fact("Paging", str(mode))
    for name, key in (("CR3", "cr3"), ("Table at", "root")):
        if (address := integer(figures, key)) is not None:
            yield Fact(name, f"{address:#x}", code=True)
    for name, key in (("Bytes compared", "bytes_compared"), ("Bytes changed", "bytes_changed")):
        if (amount := integer(figures, key)) is not None:
            yield Fact(name, number(amount))
    if (bits := integer(figures, "ad_bits")) is not None:
        yield Fact("Accessed and dirty bits that the CPU set (not counted)", number(bits))
    for row in records(figures, "compared"):
        if (changed := integer(row, "bytes_changed")) is not None:
            yield Fact(f"At {printable(str(row.get('checkpoint', '?')))}", f"{number(changed)} bytes changed")
    yield from _vmcore_facts(figures.get("vmcore"))
    if writer := figures.get("writer"):
        yield Fact("Written by", printable(str(writer)), code=True)


def _vmcore_facts(vmcore: object) -> Iterator[Fact]:
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
        yield Fact("In /proc/vmcore", ", ".join(words))


def _entry_rows(figures: Mapping[str, Any]) -> Iterator[EntryRow]:
    mode = paging_mode(figures)
    for entry in records(figures, "entries_changed"):
        index = integer(entry, "index")
        mapped = mapped_range(index, mode) if index is not None else None
        yield EntryRow(
            index="?" if index is None else str(index),
            maps=f"{mapped[0]:#x}–{mapped[1]:#x}" if mapped else "",
            before=entry_value(entry.get("before"), mode),
            after=entry_value(entry.get("after"), mode),
            seen=printable(str(entry.get("checkpoint", ""))),
        )


def _ledger(check: CheckResult | None) -> Ledger | None:
    if check is None:
        return None
    facts = []
    if (changed := integer(check.figures, "bytes_changed")) is not None:
        facts.append(Fact("Bytes changed outside the crash region", number(changed)))
    unaccounted = check.figures.get("unaccounted")
    if unaccounted is not None:
        facts.append(Fact("Without an owner", _amount(unaccounted)))
    return Ledger(
        facts,
        [
            IntervalRow(*(printable(_shown(row.get(key, ""))) for key in ("from", "to", "bytes", "pages")))
            for row in records(check.figures, "intervals")
        ],
        [_owner_row(row) for row in records(check.figures, "owners")],
    )


def _amount(value: object) -> str:
    """A count as it is, of a list its length."""
    if isinstance(value, list | tuple):
        return number(len(value))
    return number(value) if isinstance(value, int) else printable(_shown(value))


def _owner_row(row: Mapping[str, Any]) -> OwnerRow:
    addresses = row.get("addresses")
    shown = [
        f"{address:#x}" if isinstance(address, int) else printable(_shown(address))
        for address in (addresses if isinstance(addresses, list | tuple) else [])
    ]
    return OwnerRow(
        owner=printable(str(row.get("owner", "?"))),
        bytes=_amount(row.get("bytes", "")),
        pages=_amount(row.get("pages", "")),
        interval=printable(str(row.get("interval", ""))),
        addresses=" ".join(shown[:ADDRESSES_SHOWN]),
        more=" ".join(shown[ADDRESSES_SHOWN:]),
    )


def _hand_over(listing: Listing) -> HandOver:
    last = listing.lines[-LAST_INSTRUCTIONS:]
    earlier = listing.lines[-EARLIER_INSTRUCTIONS - LAST_INSTRUCTIONS : -LAST_INSTRUCTIONS]
    return HandOver(
        ending=printable(listing.ending),
        changes=[ChangeRow(*(printable(cell) for cell in astuple(row))) for row in listing.rows[-CHANGES:]],
        last="\n".join(map(printable, last)),
        earlier="\n".join(map(printable, earlier)),
        cut=len(listing.lines) - len(last) - len(earlier),
    )


def _phase_bars(result: RunResult, total: float) -> list[PhaseBar]:
    bars, start = [], 0.0
    for phase in result.phases:
        offset, width = (100 * x / total if total > 0 else 0.0 for x in (start, phase.seconds))
        bars.append(PhaseBar(printable(phase.name), f"{phase.seconds:.2f} s", round(offset, 2), round(width, 2)))
        start += phase.seconds
    return bars


def command_line(argv: object) -> str:
    """One option and its value per line, quoted for a POSIX shell; empty when there is no argv."""
    if not isinstance(argv, list | tuple):
        return ""
    lines: list[list[str]] = []
    for word in map(str, argv):
        if len(lines) > 1 and len(lines[-1]) == 1 and not word.startswith("-"):
            lines[-1].append(word)
        else:
            lines.append([word])
    return " \\\n  ".join(printable(shlex.join(line)) for line in lines)


def size_text(size: int) -> str:
    """Bytes below 10 KiB, then KiB and MiB with one decimal."""
    if size < 10 * 1024:
        return f"{size} B"
    if size < 1024 * 1024:
        return f"{size / 1024:.1f} KiB"
    return f"{size / 1024 / 1024:.1f} MiB"
