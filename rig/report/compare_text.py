"""A comparison of runs in a terminal (pure). Plain lines, each with a style for rich."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.text import Text

from rig.report.compare import CheckPair, Comparison, Course, in_order, overall
from rig.report.figures import relative_text, value_texts
from rig.report.text import STYLES, WIDTH
from rig.report.tracediff import Line as TraceLine
from rig.report.tracediff import WayDifference
from rig.report.wording import Outcome, Tone, outcome, plural, printable

VALUE_WIDTH = 24  # columns of a value; the page has them whole
HUNK_LINES = 60
UNMATCHED = 6  # ids that are named
COURSES = {
    Course.WORSE: "bold red",
    Course.GONE: "bold yellow",
    Course.BETTER: "green",
    Course.NEW: "",
    Course.SAME: "",
}
MARKS = {"-": "red", "+": "green", " ": "dim"}

Line = tuple[str, str]  # text, style


def one_text(comparison: Comparison) -> Text:
    """Two runs in full."""
    return _styled(_one(comparison))


def many_text(comparisons: Sequence[Comparison], unmatched: tuple[Sequence[str], Sequence[str]]) -> Text:
    """A table of pairs, those that got worse first. unmatched: ids only before, only after."""
    return _styled(_many(comparisons, unmatched))


def _styled(lines: Iterator[Line]) -> Text:
    return Text("\n").join(Text(text, style=style) for text, style in lines)


# ---------------------------------------------------------------- many


def _many(comparisons: Sequence[Comparison], unmatched: tuple[Sequence[str], Sequence[str]]) -> Iterator[Line]:
    counts = Counter(overall(comparison) for comparison in comparisons)
    counted = ", ".join(f"{counts[course]} {course}" for course in Course if counts[course])
    yield f"{plural(len(comparisons), 'run', 'runs')} on both sides: {counted}", ""
    for ids, where in zip(unmatched, ("before", "after"), strict=True):
        if ids:
            more = f", and {len(ids) - UNMATCHED} more" if len(ids) > UNMATCHED else ""
            names = ", ".join(map(printable, ids[:UNMATCHED]))
            yield from _wrapped(f"{len(ids)} only {where}: {names}{more}", "  ", STYLES[Tone.NEUTRAL])
    yield "", ""
    yield f"  {'':6} {'verdict':<15} {'checks':>6} {'figures':>7} {'steps -/+':>11}  run", "dim"
    for one in in_order(comparisons):
        steps = f"-{one.way.removed}/+{one.way.inserted}" if one.way else "?"
        verdicts = f"{outcome(one.before).word} -> {outcome(one.after).word}"
        checks = sum(pair.course is not Course.SAME for pair in one.checks)
        course = overall(one)
        line = f"  {course:6} {verdicts:<15} {checks:>6} {one.figures:>7} {steps:>11}  {printable(one.name)}"
        yield line, COURSES[course]


# ---------------------------------------------------------------- one


def _one(comparison: Comparison) -> Iterator[Line]:
    before, after = outcome(comparison.before), outcome(comparison.after)
    yield from _wrapped(f"{_word(before)} -> {_word(after)}  {printable(comparison.name)}", "", "bold")
    for change in comparison.setting:
        old, new = value_texts(change)
        yield from _wrapped(f"{printable(change.key)}: {old or 'none'} -> {new or 'none'}", "  ", "")
    yield from _checks(comparison.checks)
    yield from _figures(comparison)
    yield from _phases(comparison)
    yield from _way(comparison.way, comparison.no_way)


def _word(became: Outcome | None) -> str:
    if became is None:
        return "none"
    return f"{became.sign} {became.word}" + (f" ({became.phrase})" if became.phrase else "")


def _checks(pairs: Sequence[CheckPair]) -> Iterator[Line]:
    changed = [pair for pair in pairs if pair.course is not Course.SAME]
    same = len(pairs) - len(changed)
    yield "", ""
    yield f"checks: {same} of {len(pairs)} the same", "bold"
    for pair in changed:
        words = f"{pair.course:6} {printable(pair.name)}: {_word(pair.before)} -> {_word(pair.after)}"
        yield from _wrapped(words, "  ", COURSES[pair.course])
        for side, summary in zip(("before", "after"), pair.summaries, strict=True):
            if summary:
                yield from _wrapped(f"{side}: {printable(summary)}", "         ", "")


def _figures(comparison: Comparison) -> Iterator[Line]:
    places = sum(figure.place for pair in comparison.checks for figure in pair.figures)
    yield "", ""
    yield f"figures: {comparison.figures} differ, addresses aside ({places} of those)", "bold"
    for pair in comparison.checks:
        shown = [figure for figure in pair.figures if not figure.place]
        if shown:
            yield f"  {pair.name}", ""
        for figure in shown:
            old, new = (_cut(text) or "none" for text in value_texts(figure))
            values = f"{old:>12} -> {new:<12} {relative_text(figure.relative)}".rstrip()
            key = printable(figure.key)
            if len(key) + len(values) + 6 <= WIDTH:
                yield f"    {key:<{WIDTH - 44}}{values}", ""
            else:
                yield from _wrapped(key, "    ", "")
                yield f"{'':{WIDTH - 40}}{values}", ""


def _phases(comparison: Comparison) -> Iterator[Line]:
    yield "", ""
    yield "phases, seconds", "bold"
    for phase in comparison.phases:
        old, new = ("none" if value is None else f"{value:.3f}" for value in (phase.before, phase.after))
        yield f"    {phase.name:<20}{old:>12} -> {new:<12} {relative_text(phase.relative)}".rstrip(), ""


def _way(way: WayDifference | None, no_way: str) -> Iterator[Line]:
    yield "", ""
    if way is None:
        yield from _wrapped(f"hand-over: not compared: {printable(no_way)}", "", STYLES[Tone.UNKNOWN])
        return
    amount = f"{way.steps[0]} -> {way.steps[1]} instructions"
    if not way.hunks:
        yield f"hand-over: {amount}, the same but for addresses", "bold"
        return
    yield f"hand-over: {amount}; {way.removed} only before, {way.inserted} only after", "bold"
    for pair in way.controls:
        if not pair.same:
            mark, words = ("-", pair.before) if pair.before else ("+", pair.after)
            yield from _wrapped(f"{mark} {words}", "  ", MARKS[mark])
    lines = [line for hunk in way.hunks for line in (None, *hunk)]
    for line in lines[:HUNK_LINES]:
        yield ("  ...", "dim") if line is None else _trace_line(line)
    if len(lines) > HUNK_LINES:
        yield f"  and {len(lines) - HUNK_LINES} more lines: --html FILE has all of them", "dim"


def _trace_line(line: TraceLine) -> Line:
    one = line.instruction
    changed = f"  ; {one.changed}" if one.changed else ""
    text = f"  {line.mark} {one.number:5} {one.where:<28} {one.text}{changed}"
    return (text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"), MARKS[line.mark]


def _cut(text: str) -> str:
    return text if len(text) <= VALUE_WIDTH else f"{text[: VALUE_WIDTH - 1]}…"


def _wrapped(text: str, indent: str, style: str) -> Iterator[Line]:
    lines = textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)
    return ((line, style) for line in lines)
