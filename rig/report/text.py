"""What a person sees in a terminal after a run (pure). Plain lines, or the same lines with styles for rich.

Nothing is ever interpreted as rich markup, and what a guest printed can't steer the terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from rig.model import CheckResult, Failure, RunResult, Verdict
from rig.report.wording import (
    PGD_CHECK,
    Tone,
    check_outcome,
    ending,
    entry_value,
    find_check,
    headline,
    outcome,
    paging_mode,
    pgd_sentence,
    plural,
    printable,
    printable_lines,
    records,
)

WIDTH = 80  # columns
ENTRIES_SHOWN = 8
CONSOLE_LINES = 12

STYLES = {Tone.GOOD: "green", Tone.BAD: "bold red", Tone.UNKNOWN: "bold yellow", Tone.NEUTRAL: "dim"}


@dataclass(frozen=True)
class _Line:
    text: str
    style: str = ""


def verdict_lines(result: RunResult, where: Path, width: int = WIDTH) -> list[str]:
    """The verdict in plain lines of at most `width` columns; only what can't be broken is longer.

    where: the evidence directory, printed as it is given.
    """
    return [line.text for line in _lines(result, where, width)]


def verdict_text(result: RunResult, where: Path, width: int = WIDTH) -> Text:
    """The lines of `verdict_lines`, styled: a rich Console shows the styles where it shows colours at all."""
    return Text("\n").join(Text(line.text, style=line.style) for line in _lines(result, where, width))


def _lines(result: RunResult, where: Path, width: int) -> Iterator[_Line]:
    became = outcome(result)
    phrase = f": {became.phrase}" if became.phrase else ""
    yield _Line(f"{became.sign} {became.word:<5} {printable(result.id)}{phrase}", STYLES[became.tone])
    if result.error is not None:
        yield from _error_lines(result.error, width)
    elif result.checks:
        yield from _wrapped(headline(result), "  ", width)
        yield from _wrapped(ending(result), "  ", width)
    if result.verdict is Verdict.SKIP:
        yield _Line(f"  evidence: {printable(str(where))}")
        return
    if result.surprise and result.error is None and became.phrase:
        yield from _wrapped(f"Not as expected: {printable(result.surprise)}", "  ", width, "bold")
    check = find_check(result, PGD_CHECK)
    if check is not None and check.verdict is Verdict.FAIL:
        yield from _entry_lines(check, width)
    yield from _check_lines(result, width)
    yield _Line(f"  evidence: {printable(str(where))}")


def _wrapped(text: str, indent: str, width: int, style: str = "", later: str | None = None) -> Iterator[_Line]:
    """later: the indent from the second line on, two columns more than the first unless given."""
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + "  " if later is None else later,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return (_Line(line, style) for line in lines)


def _error_lines(error: Failure, width: int) -> Iterator[_Line]:
    phase = f"in phase {printable(error.phase)}" if error.phase else "before the first phase"
    first, *more = printable_lines(error.message) or ["no message"]
    yield from _wrapped(f"{phase}: {first}", "  ", width)
    for line in more:
        yield from _wrapped(line, "    ", width)
    for line in printable_lines(error.hint):
        yield from _wrapped(f"hint: {line}", "  ", width, "bold")
    lines = [line for line in printable_lines(error.console) if line.strip()]
    if lines:
        yield _Line("  the guest's last words:")
    for line in lines[-CONSOLE_LINES:]:
        for piece in textwrap.wrap(line, width - 4, break_on_hyphens=False):
            yield _Line(f"  | {piece}", "dim")


def _entry_lines(check: CheckResult, width: int) -> Iterator[_Line]:
    """The entries that changed, the first few of them; who wrote them, when that is known."""
    entries = records(check.figures, "entries_changed")
    mode = paging_mode(check.figures)
    digits = len(entry_value(0, mode))
    if entries:
        yield _Line(f"    {'entry':<7} {'before':<{digits}}    {'after':<{digits}}  first seen at")
    for entry in entries[:ENTRIES_SHOWN]:
        before, after = (entry_value(entry.get(key), mode) or "?" for key in ("before", "after"))
        index = printable(f"[{entry.get('index', '?')}]")
        seen = printable(str(entry.get("checkpoint", "")))
        yield _Line(f"    {index:<7} {before:<{digits}} -> {after:<{digits}}  {seen}".rstrip())
    if len(entries) > ENTRIES_SHOWN:
        yield _Line(f"    ... and {plural(len(entries) - ENTRIES_SHOWN, 'more entry', 'more entries')}")
    if writer := check.figures.get("writer"):
        told = next(iter(records(check.figures, "writers")), {}).get("called_from") or ()
        through = "".join(f", called from {name}" for name in told)
        yield from _wrapped(printable(f"written by {writer}{through}"), "    ", width)


def _check_lines(result: RunResult, width: int) -> Iterator[_Line]:
    """A line or two per check. The summary of pgd-survives is left out where the headline has said it.

    When nothing could be judged, one line says so: why it broke off stands above.
    """
    if result.error is not None and all(check.verdict is Verdict.ERROR for check in result.checks):
        yield _Line(
            f"    none of {plural(len(result.checks), 'check', 'checks')} could be judged", STYLES[Tone.UNKNOWN]
        )
        return
    names = max((len(check.name) for check in result.checks), default=0)
    for check in result.checks:
        became = check_outcome(check, result)
        said = check.name == PGD_CHECK and pgd_sentence(check) and result.error is None
        summary = "" if said else printable(check.summary)
        phrase = f"({became.phrase}) " if became.phrase else ""
        head = f"    {became.sign} {check.name:<{names}}  {became.word:<5}  "
        body = f"{phrase}{summary}".strip()
        if body:
            yield from _wrapped(body, head, width, STYLES[became.tone], " " * len(head))
        else:
            yield _Line(head.rstrip(), STYLES[became.tone])
