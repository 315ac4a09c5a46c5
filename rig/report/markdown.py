"""A step summary in GitHub's Markdown: what is not as expected, with the why; folded below it, every run. Pure.

Whatever a run brought with it stands in code spans, where nothing is markup, a mention, a reference or a link (GitHub
Flavored Markdown, 6.3); only in tables a pipe would still end the cell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from rig.model import RunResult, Verdict
from rig.report.cases import Status, check_cases, run_case
from rig.report.wording import Tone, check_outcome, outcome, printable

WHY_LENGTH = 400  # characters
_TONES = {
    Tone.GOOD: "as expected",
    Tone.BAD: "not as expected",
    Tone.UNKNOWN: "could not judge",
    Tone.NEUTRAL: "skipped",
}
_FIRST = (Tone.BAD, Tone.UNKNOWN)
SIGNS = {Tone.GOOD: "✅", Tone.BAD: "❌", Tone.UNKNOWN: "⚠️", Tone.NEUTRAL: "➖"}


def markdown(results: Sequence[RunResult]) -> str:
    """For $GITHUB_STEP_SUMMARY, or a comment."""
    told = sorted(results, key=lambda result: (list(_TONES).index(_tone(result)), result.id))
    trouble = [result for tone in _FIRST for result in told if _tone(result) is tone]
    return "\n".join((*_counts(results), *_trouble(trouble), *_table(told), ""))


def _tone(result: RunResult) -> Tone:
    return outcome(result).tone


def _counts(results: Sequence[RunResult]) -> Iterator[str]:
    counts = Counter(map(_tone, results))
    runs = "1 run" if len(results) == 1 else f"{len(results)} runs"
    yield f"## rig: {runs}"
    yield ""
    yield ", ".join(f"{SIGNS[tone]} {counts[tone]} {word}" for tone, word in _TONES.items() if counts[tone])


def _trouble(results: Sequence[RunResult]) -> Iterator[str]:
    if not results:
        return
    yield ""
    yield "### Not as expected"
    for result in results:
        became = outcome(result)
        yield ""
        yield f"- {SIGNS[became.tone]} {code(result.id)} **{became.word}**: {code(run_case(result).message)}"
        if result.error is not None and result.error.hint:
            yield f"  - hint: {code(result.error.hint)}"
        for case in check_cases(result):
            if case.status in (Status.FAILED, Status.ERROR):
                yield f"  - {code(case.name)}: {code(case.message)}"


def _table(results: Sequence[RunResult]) -> Iterator[str]:
    yield ""
    yield f"<details><summary>All runs ({len(results)})</summary>"
    yield ""
    yield "| | run | verdict | kernel | checks | seconds |"
    yield "|---|---|---|---|---|--:|"
    for result in results:
        became = outcome(result)
        seconds = sum(phase.seconds for phase in result.phases)
        release = code(result.kernel.release, cell=True) if result.kernel.release else ""
        word = f"{became.word}: {became.phrase}" if became.phrase else became.word
        yield (
            f"| {SIGNS[became.tone]} | {code(result.id, cell=True)} | {word} | {release} | {_checks(result)} "
            f"| {seconds:.1f} |"
        )
    yield ""
    yield "</details>"


def _checks(result: RunResult) -> str:
    """How many are as they should be; why a run was skipped."""
    if result.verdict is Verdict.SKIP and result.checks:
        return code(run_case(result).message, cell=True)
    good = sum(check_outcome(check, result).tone is Tone.GOOD for check in result.checks)
    return f"{good} of {len(result.checks)}"


def code(text: str, *, cell: bool = False) -> str:
    """A code span that ends where it should. cell: in a table.

    Its fence is longer than any run of backticks inside (CommonMark 6.1). In a table a backslash hides the pipe that
    follows it, but not when it is hidden itself by another.
    """
    line = printable(text)
    line = line if len(line) <= WHY_LENGTH else f"{line[: WHY_LENGTH - 1]}…"
    if cell:
        line = re.sub(r"\\+(?=\|)|\\+$", lambda run: run[0] + " ", line).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}"
