"""`rig history` in a terminal (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap

from rig.history import Record
from rig.report.changes import by_id, day
from rig.report.html.matrix import FIDELITY, LEDGER, PGD, percent
from rig.report.wording import Tone, number, outcome, plural, printable

WIDTH = 80  # columns


def shown(records: Iterable[Record], last: int = 0) -> list[Record]:
    """Cell by cell, of each the last `last` runs; 0 for all."""
    return [run for runs in by_id(records).values() for run in runs[-last:]]


def lines(records: Sequence[Record], last: int = 0) -> list[str]:
    """Cell by cell, a line a run, oldest first. last: only so many of each cell; 0 for all."""
    return [line for runs in by_id(records).values() for line in _cell(runs, last)]


def _cell(runs: Sequence[Record], last: int) -> Iterator[str]:
    words = Counter(outcome(run).word for run in runs)
    came_to = ", ".join(f"{count} {word}" for word, count in words.most_common())
    latest = runs[-last:]
    cut = f" (the last {len(latest)} shown)" if len(latest) < len(runs) else ""
    yield printable(runs[-1].id)
    yield f"  {plural(len(runs), 'run', 'runs')}: {came_to}{cut}"
    for run in latest:
        became = outcome(run)
        line = f"  {day(run.started):16}  {became.sign} {became.word:<5} {run.seconds:6.1f} s  {_figures(run)}"
        yield printable(line.rstrip())
        if became.tone in (Tone.BAD, Tone.UNKNOWN):
            yield from wrap(printable(run.why), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _figures(run: Record) -> str:
    parts = [
        f"{name} {number(int(run.figures[key]))}"
        for name, key in (("pgd", PGD), ("unaccounted", LEDGER))
        if key in run.figures
    ]
    return "  ".join([*parts, *([percent(run.figures[FIDELITY])] if FIDELITY in run.figures else [])])
