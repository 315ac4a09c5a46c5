"""What a run's page shows, as plain values ready for the template (pure, but for what the evidence reads).

A figure that is missing leaves out its row, a file its section, never the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rig.evidence import DIED
from rig.evidence.reader import Evidence
from rig.facts import Facts
from rig.model import CpuState, Failure, KernelIdentity, RunResult, Verdict
from rig.report.html.changes import Changed, changes
from rig.report.html.checks import LEDGER_CHECK, CheckRow, check_row
from rig.report.html.commands import Command, command_line, commands
from rig.report.html.console import Console, console, phase_id
from rig.report.html.handover import HandOver, hand_over
from rig.report.html.ledger import Ledger, ledger
from rig.report.html.memory import MemoryMap, memory_map
from rig.report.html.page import Fact, Link, Reader, Sources, shown, size_text
from rig.report.html.pages import NONE, Pages, pages
from rig.report.html.pgd import Pgd, pgd
from rig.report.html.picture import picture
from rig.report.html.registers import RegisterTable, register_tables
from rig.report.listing import Listing
from rig.report.wording import PGD_CHECK, Outcome, ending, find_check, headline, outcome, printable, printable_lines

SECTIONS = {  # what sections show is from these files, where their figures don't say it themselves
    "phases": ("run.json", "result.json"),
    "pgd": ("memory/", "vmcore/pgd.bin", "registers/panic.json"),
    "memory": ("memory/", "run.json", "symbols.json.zst"),
}


@dataclass(frozen=True)
class PhaseBar:
    """offset and width: per cent of the whole run. began: seconds into the run. href: of what was printed meanwhile."""

    name: str
    seconds: str
    began: str
    offset: float
    width: float
    href: str


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
    link: Link
    size: str


@dataclass(frozen=True)
class Page:
    """Everything on the page, in its order.

    unread: what of the evidence could not be read, a sentence each. sources: files by SECTIONS.
    """

    id: str
    outcome: Outcome
    headline: str
    surprise: str
    facts: list[Fact]
    trouble: Trouble | None
    checks: list[CheckRow]
    phases: list[PhaseBar]
    total: str
    pgd: Pgd | None
    map: MemoryMap | None
    pages: Pages
    ledger: Ledger | None
    hand_over: HandOver | None
    registers: list[RegisterTable]
    console: Console
    commands: list[Command]
    argv: str
    environment: list[Fact]
    files: list[File]
    unread: list[str]
    sources: dict[str, list[Link]]


def build_page(result: RunResult, evidence: Evidence, listing: Listing | None = None) -> Page:
    """The page's values. What of the evidence is missing or torn is left out, and named in `unread`."""
    files = evidence.files()
    sources = Sources(name for name, _ in files)
    reader = Reader(str(evidence.path))
    facts: Facts | None = reader.attempt(lambda: evidence.facts, None)
    changed: list[Changed] = reader.attempt(lambda: changes(evidence), []) if facts and facts.captured else []
    shown_pages = reader.attempt(lambda: pages(evidence, changed, sources), NONE)
    registers: Mapping[str, Sequence[CpuState]] = reader.attempt(evidence.registers, {})
    total = sum(phase.seconds for phase in result.phases)
    return Page(
        id=printable(result.id),
        outcome=outcome(result),
        headline=headline(result),
        surprise=printable(result.surprise) if result.verdict is not Verdict.SKIP else "",  # the headline says it
        facts=_run_facts(result, total, sources),
        trouble=_trouble(result.error, result.verdict) if result.error else None,
        checks=[check_row(check, result, sources) for check in result.checks],
        phases=_phase_bars(result, total),
        total=f"{total:.1f} s",
        pgd=pgd(
            find_check(result, PGD_CHECK), reader.attempt(lambda: picture(evidence), None) if facts else None, sources
        ),
        map=reader.attempt(lambda: memory_map(evidence, changed, shown_pages), None) if facts else None,
        pages=shown_pages,
        ledger=ledger(find_check(result, LEDGER_CHECK), shown_pages, sources),
        hand_over=hand_over(listing, sources) if listing else None,
        registers=register_tables(registers, facts.crashing_cpu if facts else None, sources),
        console=console(reader.attempt(evidence.console, b""), result.phases, sources),
        commands=commands(result, facts, [where for where in registers if where != DIED]),
        argv=command_line(result.environment.get("argv")),
        environment=[
            Fact(printable(str(k)), printable(shown(v)), code=True, href=sources.href("result.json"))
            for k, v in result.environment.items()
            if k != "argv"
        ],
        files=[File(link, size_text(size)) for name, size in sorted(files) for link in sources.links([name])],
        unread=reader.problems,
        sources={section: sources.links(names) for section, names in SECTIONS.items()},
    )


def _run_facts(result: RunResult, total: float, sources: Sources) -> list[Fact]:
    def kernel(identity: KernelIdentity) -> str:
        release = f" ({identity.release})" if identity.release else ""
        return printable(f"{identity.name}{release}")

    facts = [
        ("Scenario", printable(result.scenario)),
        ("Guest", printable(result.guest)),
        ("Kernel", kernel(result.kernel)),
        ("Crash kernel", kernel(result.crash_kernel)),
        ("Expected", str(result.expect) + "".join(f", {printable(name)} fails" for name in result.expect_failed)),
        ("Verdict", str(result.verdict)),
    ]
    if ending(result):
        facts.append(("Goes until", ending(result)))
    if result.started:
        facts.append(("Began", printable(result.started)))
    if result.phases:
        facts.append(("Time", f"{total:.1f} s"))
    href = sources.href("result.json")
    return [Fact(name, value, href=href) for name, value in facts]


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


def _phase_bars(result: RunResult, total: float) -> list[PhaseBar]:
    bars, start = [], 0.0
    for number, phase in enumerate(result.phases):
        offset, width = (100 * x / total if total > 0 else 0.0 for x in (start, phase.seconds))
        bars.append(
            PhaseBar(
                name=printable(phase.name),
                seconds=f"{phase.seconds:.2f} s",
                began=f"{start:.2f} s",
                offset=round(offset, 2),
                width=round(width, 2),
                href=f"#{phase_id(number)}" if phase.console is not None else "",
            )
        )
        start += phase.seconds
    return bars
