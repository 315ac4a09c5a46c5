"""The page that holds runs against each other: the content as plain values, which the template lays out and escapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rig.report.compare import CheckPair, Comparison, Course, in_order, overall
from rig.report.figures import FigureChange, relative_text, value_texts
from rig.report.html.render import render
from rig.report.tracediff import Line
from rig.report.wording import Outcome, outcome, printable

TONES = {
    Course.WORSE: "bad",
    Course.GONE: "unknown",
    Course.NEW: "unknown",
    Course.BETTER: "good",
    Course.SAME: "neutral",
}
SIGNS = {Course.WORSE: "▼", Course.GONE: "−", Course.NEW: "+", Course.BETTER: "▲", Course.SAME: "="}
SPOKEN = {"-": "only before: ", "+": "only after: ", " ": ""}  # what a screen reader says for the sign and the colour


@dataclass(frozen=True)
class Badge:
    """As parts.html.j2 shows an Outcome."""

    sign: str
    word: str
    tone: str


@dataclass(frozen=True)
class ValueRow:
    name: str
    before: str
    after: str
    relative: str


@dataclass(frozen=True)
class FigureGroup:
    check: str
    rows: list[ValueRow]


@dataclass(frozen=True)
class CheckRow:
    name: str
    before: Outcome | None
    after: Outcome | None
    course: Badge
    summaries: list[tuple[str, str]]  # side, what the check said; only where its course isn't "same"


@dataclass(frozen=True)
class TraceRow:
    """kind: the line's class in the page. sign: what stands before it."""

    kind: str
    sign: str
    spoken: str
    number: str
    where: str
    text: str
    changed: str


@dataclass(frozen=True)
class WayView:
    """controls: before, after; changes of control registers, descriptor tables and segments, all of them."""

    sentence: str
    controls: list[tuple[str, str]]
    hunks: list[list[TraceRow]]


@dataclass(frozen=True)
class Pair:
    """anchor: of its section. figures: those that are no addresses; places: those that are."""

    anchor: str
    name: str
    course: Badge
    before: Outcome
    after: Outcome
    checks_changed: int
    figures_changed: int
    steps: str
    setting: list[ValueRow]
    checks: list[CheckRow]
    figures: list[FigureGroup]
    places: list[FigureGroup]
    phases: list[ValueRow]
    way: WayView | None
    no_way: str


def render_comparisons(comparisons: Sequence[Comparison], unmatched: tuple[Sequence[str], Sequence[str]]) -> str:
    """One page of at least one pair. unmatched: the ids of runs that only one side has: before, after."""
    pairs = [_pair(number, one) for number, one in enumerate(in_order(comparisons), 1)]
    counts = Counter(overall(one) for one in comparisons)
    return render(
        "compare.html.j2",
        ["compare.css"],
        pairs=pairs,
        counts=", ".join(f"{counts[course]} {course}" for course in Course if counts[course]),
        tone=next(TONES[course] for course in Course if counts[course]),
        unmatched=[[printable(name) for name in names] for names in unmatched],
    )


def _pair(number: int, one: Comparison) -> Pair:
    return Pair(
        anchor=f"pair-{number}",
        name=printable(one.name),
        course=_badge(overall(one)),
        before=outcome(one.before),
        after=outcome(one.after),
        checks_changed=sum(pair.course is not Course.SAME for pair in one.checks),
        figures_changed=one.figures,
        steps=f"−{one.way.removed} +{one.way.inserted}" if one.way else "?",
        setting=[_value_row(change) for change in one.setting],
        checks=[_check_row(pair) for pair in one.checks],
        figures=_groups(one.checks, place=False),
        places=_groups(one.checks, place=True),
        phases=[
            ValueRow(
                printable(phase.name), _seconds(phase.before), _seconds(phase.after), relative_text(phase.relative)
            )
            for phase in one.phases
        ],
        way=_way(one),
        no_way=printable(one.no_way),
    )


def _badge(course: Course) -> Badge:
    return Badge(SIGNS[course], str(course), TONES[course])


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _value_row(change: FigureChange) -> ValueRow:
    before, after = map(printable, value_texts(change))
    return ValueRow(printable(change.key), before, after, relative_text(change.relative))


def _groups(checks: Sequence[CheckPair], *, place: bool) -> list[FigureGroup]:
    groups = [
        FigureGroup(printable(pair.name), [_value_row(figure) for figure in pair.figures if figure.place == place])
        for pair in checks
    ]
    return [group for group in groups if group.rows]


def _check_row(pair: CheckPair) -> CheckRow:
    said = zip(("before", "after"), map(printable, pair.summaries), strict=True)
    summaries = [] if pair.course is Course.SAME else [(side, text) for side, text in said if text]
    return CheckRow(printable(pair.name), pair.before, pair.after, _badge(pair.course), summaries)


def _way(one: Comparison) -> WayView | None:
    way = one.way
    if way is None:
        return None
    amount = f"{way.steps[0]} instructions before, {way.steps[1]} after"
    sentence = f"{amount}: the same, but for addresses."
    if way.hunks:
        sentence = f"{amount}; {way.removed} only before, {way.inserted} only after."
    controls = [(printable(pair.before), printable(pair.after)) for pair in way.controls]
    return WayView(sentence, controls, [[_trace_row(line) for line in hunk] for hunk in way.hunks])


def _trace_row(line: Line) -> TraceRow:
    one = line.instruction
    kind = {"-": "gone", "+": "new", " ": "both"}[line.mark]
    sign = "−" if line.mark == "-" else line.mark
    changed = f"; {printable(one.changed)}" if one.changed else ""
    return TraceRow(
        kind, sign, SPOKEN[line.mark], f"{one.number:5}", f"{printable(one.where):<30}", printable(one.text), changed
    )
