"""The history page: of each cell its verdicts and figures, run after run, as small drawings with text beside (pure)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rig.history import Record
from rig.report.changes import by_id, day
from rig.report.html.matrix import FIDELITY, LEDGER, PGD, Link, anchor, percent
from rig.report.html.render import render
from rig.report.wording import Outcome, number, outcome, plural, printable

RUNS_SHOWN = 30  # of each cell, the last ones
WIDTH, HEIGHT, MARGIN = 240, 40, 4  # of a drawing, in its own units; the margin is inside


@dataclass(frozen=True)
class Night:
    """One run in the strip of verdicts. about: what is said of it on hover, and to a screen reader."""

    outcome: Outcome
    href: str
    about: str


@dataclass(frozen=True)
class Series:
    """One figure over the runs. path: of an SVG, WIDTH by HEIGHT. said: all its values, in words."""

    name: str
    path: str
    end: tuple[float, float]  # where the latest point is
    latest: str
    span: str
    said: str
    from_zero: bool


@dataclass(frozen=True)
class Card:
    id: str
    anchor: str
    outcome: Outcome
    runs: str
    nights: list[Night]
    series: list[Series]


@dataclass(frozen=True)
class Single:
    """A cell that has run once: there is nothing to draw."""

    id: str
    night: Night


@dataclass(frozen=True)
class Figure:
    """always: drawn also when it is 0 in every run. from_zero: drawn above 0, so that a small change looks small."""

    name: str
    value: Callable[[Record], float | None]
    text: Callable[[float], str]
    always: bool = True
    from_zero: bool = True


def _figure(key: str) -> Callable[[Record], float | None]:
    return lambda run: run.figures.get(key)


def _seconds(value: float) -> str:
    return f"{value:.1f}"


def _whole(value: float) -> str:
    return number(int(value))


FIGURES = (
    Figure("Seconds", lambda run: run.seconds or None, _seconds),
    Figure("Seconds to the crash kernel", _figure("crash-kernel-boots.seconds"), _seconds),
    Figure("Dump fidelity", _figure(FIDELITY), percent, from_zero=False),
    Figure("pgd bytes changed", _figure(PGD), _whole, always=False),
    Figure("Bytes unaccounted", _figure(LEDGER), _whole, always=False),
)


def render_history(records: Sequence[Record], link: Link) -> str:
    """The page over all records, oldest first."""
    cells = by_id(records)
    cards = [_card(runs, link) for runs in cells.values() if len(runs) > 1]
    singles = [Single(printable(id), _night(runs[0], link)) for id, runs in cells.items() if len(runs) == 1]
    return render(
        "history.html.j2",
        ["site.css", "history.css"],
        cards=cards,
        singles=singles,
        width=WIDTH,
        height=HEIGHT,
        runs=len(records),
    )


def _card(runs: Sequence[Record], link: Link) -> Card:
    shown = runs[-RUNS_SHOWN:]
    cut = f", the last {RUNS_SHOWN} of them" if len(runs) > RUNS_SHOWN else ""
    drawn = (series(figure, shown) for figure in FIGURES)
    return Card(
        id=printable(runs[-1].id),
        anchor=anchor(runs[-1].id),
        outcome=outcome(runs[-1]),
        runs=printable(f"{plural(len(runs), 'run', 'runs')}{cut}, {_days(shown)}"),
        nights=[_night(run, link) for run in shown],
        series=[one for one in drawn if one is not None],
    )


def _days(runs: Sequence[Record]) -> str:
    first, last = (day(run.started).partition(" ")[0] for run in (runs[0], runs[-1]))
    return first if first == last else f"{first} to {last}"


def _night(run: Record, link: Link) -> Night:
    became = outcome(run)
    return Night(became, link(run), printable(f"{became.word}, {day(run.started)}"))


def series(figure: Figure, runs: Sequence[Record]) -> Series | None:
    """runs: oldest first. None when fewer than two of them have the figure."""
    points = [(at, value) for at, run in enumerate(runs) if (value := figure.value(run)) is not None]
    values = [value for _, value in points]
    if len(points) < 2 or not (figure.always or any(values)):
        return None
    placed = _placed(points, len(runs), 0 if figure.from_zero else min(values))
    low, high = figure.text(min(values)), figure.text(max(values))
    return Series(
        name=figure.name,
        path="M" + "L".join(f"{x:g} {y:g}" for x, y in placed),
        end=placed[-1],
        latest=figure.text(values[-1]),
        span=f"always {low}" if low == high else f"{low} to {high}",
        said=f"{figure.name}, oldest first: {', '.join(map(figure.text, values))}",
        from_zero=figure.from_zero,
    )


def _placed(points: Sequence[tuple[int, float]], count: int, low: float) -> list[tuple[float, float]]:
    """Points (place of the run, value) into the drawing: runs at even distances, values from `low` to the highest."""
    span = max(value for _, value in points) - low
    across, down = (WIDTH - 2 * MARGIN) / (count - 1), HEIGHT - 2 * MARGIN
    return [
        (round(MARGIN + at * across, 1), round(MARGIN + down * (1 - ((value - low) / span if span else 0.5)), 1))
        for at, value in points
    ]
