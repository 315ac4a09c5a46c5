"""The matrix page: what each cell came to at its latest run, what has changed, and their figures (pure)."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rig.history import Record
from rig.model import Verdict
from rig.report.changes import Changed, Kind, by_id, changes, day
from rig.report.html.page import Fact
from rig.report.html.render import render
from rig.report.wording import Outcome, Tone, number, outcome, plural, printable

SPREAD = 0.1  # a guest has a column of its own in the grid when it runs this share of all scenarios; others share one
WHY_SHOWN = 400  # characters
OTHERS = "other guests"
PGD, LEDGER, FIDELITY = "pgd-survives.bytes_changed", "memory-accounted.unaccounted", "vmcore-faithful.fidelity"
FIGURE_COLUMNS = ("pgd bytes changed", "Bytes unaccounted", "Fidelity", "Seconds")
ORDER = (Tone.BAD, Tone.UNKNOWN, Tone.GOOD, Tone.NEUTRAL)

Link = Callable[[Record], str]
"""The run's own page, relative to the matrix page and quoted; empty when it isn't there any more."""


@dataclass(frozen=True)
class Cell:
    """A figure: text for people, value to sort by. notable: it is not what a good run has."""

    text: str
    value: float
    notable: bool = False


@dataclass(frozen=True)
class Row:
    """The latest run of one cell. number: its place in the table, by which the grid refers to it."""

    number: int
    outcome: Outcome
    scenario: str
    guest: str
    kernel: str
    release: str
    href: str
    figures: list[Cell | None]  # as FIGURE_COLUMNS
    started: str
    day: str
    why: str  # empty for a plain pass
    runs: int  # so far
    history: str  # where on the history page the cell is; empty when it has run once


@dataclass(frozen=True)
class Chip:
    """A run in the grid. label: what its row and column don't say."""

    row: Row
    label: str


@dataclass(frozen=True)
class GridRow:
    scenario: str
    cells: list[list[Chip]]


@dataclass(frozen=True)
class ChangeItem:
    row: Row
    note: str


@dataclass(frozen=True)
class Count:
    """How many cells came to one word."""

    outcome: Outcome
    count: int


@dataclass(frozen=True)
class MatrixPage:
    tone: Tone
    title: str
    headline: str
    counts: list[Count]
    facts: list[Fact]
    changed: dict[Kind, list[ChangeItem]]
    compared: int  # cells that have run before: the others can't have changed
    columns: list[str]
    grid: list[GridRow]
    rows: list[Row]
    notes: list[str]


def render_matrix(records: Sequence[Record], link: Link, notes: Sequence[str] = ()) -> str:
    """The page over the latest run of each id. records: oldest first. notes: what else the reader has to know."""
    page = build_matrix(records, link, notes)
    return render("matrix.html.j2", ["site.css", "matrix.css"], ["matrix.js"], page=page, figure_columns=FIGURE_COLUMNS)


def build_matrix(records: Sequence[Record], link: Link, notes: Sequence[str] = ()) -> MatrixPage:
    cells = by_id(records)
    latest = sorted((runs[-1] for runs in cells.values()), key=lambda run: ORDER.index(outcome(run).tone))
    rows = {run.id: _row(at, run, link(run), len(cells[run.id])) for at, run in enumerate(latest)}
    columns, grid = build_grid(list(rows.values()))
    counts = [Count(became, count) for became, count in _counts(latest)]
    return MatrixPage(
        tone=next((tone for tone in ORDER if any(c.outcome.tone is tone for c in counts)), Tone.NEUTRAL),
        title=_title(counts),
        headline=_headline(counts, len(latest)),
        counts=counts,
        facts=headline_figures(latest),
        changed=_changed(changes(cells), rows),
        compared=sum(len(runs) > 1 for runs in cells.values()),
        columns=columns,
        grid=grid,
        rows=list(rows.values()),
        notes=[printable(note) for note in notes],
    )


def _counts(latest: Sequence[Record]) -> list[tuple[Outcome, int]]:
    """By word, the worst first. The phrases of single runs are left out."""
    words = {became.word: became for became in map(outcome, latest)}
    counted = Counter(outcome(run).word for run in latest)
    plain = [(Outcome(words[word].sign, word, "", words[word].tone), count) for word, count in counted.items()]
    return sorted(plain, key=lambda pair: (ORDER.index(pair[0].tone), pair[0].word != "PASS"))


def _title(counts: Sequence[Count]) -> str:
    """For the browser's tab: what matters first."""
    return ", ".join(f"{c.count} {c.outcome.word}" for c in counts) or "no runs"


def _headline(counts: Sequence[Count], cells: int) -> str:
    by_word = {count.outcome.word: count.count for count in counts}
    bad, unjudged = by_word.get("FAIL", 0), by_word.get("ERROR", 0)
    parts = []
    if bad:
        parts.append(f"{plural(bad, 'is', 'are')} not as the scenario expects")
    if unjudged:
        parts.append(f"{number(unjudged)} could not be judged")
    of = plural(cells, "cell", "cells")
    judged = sum(by_word.get(word, 0) for word in ("PASS", "OK"))
    if parts:
        return f"Of {of} {' and '.join(parts)}."
    return (
        f"{plural(judged, 'cell', 'cells')} judged, all as their scenarios expect." if judged else f"{of}, none judged."
    )


def anchor(id: str) -> str:
    """The cell's place on the history page: a name that any id can have."""
    return f"cell-{hashlib.sha256(id.encode()).hexdigest()[:12]}"


def _row(at: int, run: Record, href: str, runs: int) -> Row:
    became = outcome(run)
    plain = became.tone is Tone.GOOD and became.word == "PASS"
    why = run.why if len(run.why) <= WHY_SHOWN else f"{run.why[:WHY_SHOWN]} …"
    return Row(
        number=at,
        outcome=became,
        scenario=printable(run.scenario),
        guest=printable(run.guest),
        kernel=printable(run.kernel or run.id.rpartition("/")[2]),
        release=printable(run.release),
        href=href,
        figures=[
            _bytes(run.figures.get(PGD)),
            _bytes(run.figures.get(LEDGER, run.figures.get("vmcore-faithful.unaccounted"))),
            _fidelity(run.figures.get(FIDELITY)),
            Cell(f"{run.seconds:.1f}", run.seconds) if run.seconds else None,
        ],
        started=printable(run.started),
        day=printable(day(run.started)),
        why="" if plain else printable(why),
        runs=runs,
        history=f"history.html#{anchor(run.id)}" if runs > 1 else "",
    )


def _bytes(value: float | None) -> Cell | None:
    return None if value is None else Cell(number(int(value)), value, notable=value != 0)


def _fidelity(value: float | None) -> Cell | None:
    return None if value is None else Cell(percent(value), value)


def percent(value: float) -> str:
    """A share in per cent, rounded down: 100 % is only what is whole."""
    return "100 %" if value == 1 else f"{math.floor(value * 1e7) / 1e5:.5f} %"


def build_grid(rows: Sequence[Row]) -> tuple[list[str], list[GridRow]]:
    """Scenarios by guests, in each field the kernels. Guests with few scenarios share the last column."""
    scenarios: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.scenario, row.guest, row.kernel)):
        scenarios.setdefault(row.scenario, []).append(row)
    spread = Counter(guest for own in scenarios.values() for guest in {row.guest for row in own})
    alone = sorted(guest for guest, count in spread.items() if count >= SPREAD * len(scenarios))
    columns = alone if len(alone) == len(spread) else [*alone, OTHERS]

    def column(row: Row) -> int:
        return alone.index(row.guest) if row.guest in alone else len(alone)

    grid = []
    for scenario, own in scenarios.items():
        cells: list[list[Chip]] = [[] for _ in columns]
        for row in own:
            at = column(row)
            cells[at].append(Chip(row, row.kernel if at < len(alone) else f"{row.guest} {row.kernel}"))
        grid.append(GridRow(scenario, cells))
    return columns, grid


def headline_figures(latest: Sequence[Record]) -> list[Fact]:
    """The three figures that everything is about, over the runs that are to pass; each only where it was measured."""
    measured = [run.figures for run in latest if run.expect is Verdict.PASS]
    pgd = [figures[PGD] for figures in measured if PGD in figures]
    ledger = [figures[LEDGER] for figures in measured if LEDGER in figures]
    dumps = [figures[FIDELITY] for figures in measured if FIDELITY in figures]
    facts = []
    if pgd:
        facts.append(Fact("Page directory", f"unchanged in {_zeroes(pgd)}"))
    if ledger:
        facts.append(Fact("Changed memory", f"every byte has an owner in {_zeroes(ledger)}"))
    if dumps:
        lowest = f"fidelity {percent(min(dumps))}" + (" or better" if len(dumps) > 1 else "")
        facts.append(Fact("Dumps", f"{lowest}, of {plural(len(dumps), 'dump', 'dumps')} read whole"))
    if latest:
        first, last = (day(pick(run.started for run in latest)) for pick in (min, max))
        facts.append(Fact("Started", printable(f"{first} UTC" if first == last else f"{first} to {last} UTC")))
    return facts


def _zeroes(values: Sequence[float]) -> str:
    most = f", at most {plural(int(max(values)), 'byte', 'bytes')} elsewhere" if max(values) else ""
    return f"{sum(not value for value in values)} of {plural(len(values), 'run', 'runs')}{most}"


def _changed(found: Sequence[Changed], rows: Mapping[str, Row]) -> dict[Kind, list[ChangeItem]]:
    groups: dict[Kind, list[ChangeItem]] = {}
    for change in found:
        groups.setdefault(change.kind, []).append(ChangeItem(rows[change.record.id], printable(change.note)))
    return groups
