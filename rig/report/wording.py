"""How results are put into words, the same for the terminal and for HTML (pure).

Nothing here escapes for HTML: that is the template's. What a guest may have printed goes through `printable`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rig.model import Checkpoint, CheckResult, PagingMode, RunResult, Until, Verdict

PGD_CHECK = "pgd-survives"

# log2 of the bytes that one entry of the table at CR3 maps; how many entries it has (SDM vol. 3, 4.3-4.5).
TOP_SHIFT = {
    PagingMode.TWO_LEVEL: 22,
    PagingMode.PAE: 30,
    PagingMode.FOUR_LEVEL: 39,
    PagingMode.FIVE_LEVEL: 48,
}
TOP_ENTRIES = {
    PagingMode.TWO_LEVEL: 1024,
    PagingMode.PAE: 4,
    PagingMode.FOUR_LEVEL: 512,
    PagingMode.FIVE_LEVEL: 512,
}


class Tone(enum.StrEnum):
    """What an outcome means to a person, whatever its verdict: drives colour, never stands alone."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"
    NEUTRAL = "neutral"


@dataclass(frozen=True)
class Outcome:
    """sign and word stand before the run's id; phrase follows it, empty when the word says it all."""

    sign: str
    word: str
    phrase: str
    tone: Tone


class Judged(Protocol):
    """What a RunResult says of itself, and what is kept of one."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def expect(self) -> Verdict: ...
    @property
    def as_expected(self) -> bool: ...


def outcome(result: Judged) -> Outcome:
    """What became of the run, seen from what its scenario expects."""
    match result.verdict:
        case Verdict.ERROR:
            return Outcome("!", "ERROR", "could not judge", Tone.UNKNOWN)
        case Verdict.SKIP:
            return Outcome("-", "SKIP", "skipped", Tone.NEUTRAL)
        case Verdict.FAIL if result.as_expected and result.expect is Verdict.FAIL:
            return Outcome("✓", "OK", "failed as expected", Tone.GOOD)
        case Verdict.FAIL if result.expect is Verdict.FAIL:
            return Outcome("✗", "FAIL", "failed, but not as expected", Tone.BAD)
        case Verdict.FAIL:
            return Outcome("✗", "FAIL", "", Tone.BAD)
        case Verdict.PASS if result.as_expected and result.expect is Verdict.PASS:
            return Outcome("✓", "PASS", "", Tone.GOOD)
        case Verdict.PASS if result.expect is Verdict.FAIL:
            return Outcome("✗", "FAIL", "passed, but had to fail", Tone.BAD)
        case Verdict.PASS:
            return Outcome("✗", "FAIL", "passed, but not as expected", Tone.BAD)


def check_outcome(check: CheckResult, result: RunResult) -> Outcome:
    """What one check's verdict means in this run: a failure that the scenario asks for is a good one."""
    wanted = check.name in result.expect_failed
    match check.verdict:
        case Verdict.PASS if wanted:
            return Outcome("✗", "pass", "should have failed", Tone.BAD)
        case Verdict.PASS:
            return Outcome("✓", "pass", "", Tone.GOOD)
        case Verdict.FAIL if wanted:
            return Outcome("✓", "fail", "as expected", Tone.GOOD)
        case Verdict.FAIL:
            return Outcome("✗", "FAIL", "", Tone.BAD)
        case Verdict.ERROR:
            return Outcome("!", "error", "", Tone.UNKNOWN)
        case Verdict.SKIP:
            return Outcome("-", "skip", "", Tone.NEUTRAL)


def headline(result: RunResult) -> str:
    """The run in one sentence: why it broke off or was skipped, else what became of the page directory."""
    if result.verdict is Verdict.SKIP and result.checks:
        return f"Skipped: {printable(result.checks[0].summary)}."
    if result.error is not None:
        phase = f"In phase {printable(result.error.phase)}: " if result.error.phase else ""
        return phase + printable(result.error.message)
    check = find_check(result, PGD_CHECK)
    sentence = pgd_sentence(check) if check is not None else ""
    if not sentence:
        return checks_sentence(result)
    others = [c.name for c in result.checks if c.verdict is Verdict.FAIL and c is not check]
    if others and check is not None and check.verdict is Verdict.PASS:
        return f"{', '.join(others)} failed. {sentence}"
    return sentence


def ending(result: RunResult) -> str:
    """That the run did not go to its usual end; empty when it did."""
    if result.environment.get("until") != Until.HANDOVER:
        return ""
    return "The run ended at the hand-over: the new kernel was entered and not run."


def pgd_sentence(check: CheckResult) -> str:
    """Which page, how many bytes compared, how many changed; empty when the figures don't say that."""
    figures = check.figures
    where = integer(figures, "root")
    if where is None:
        where = integer(figures, "cr3")
    compared, changed = integer(figures, "bytes_compared"), integer(figures, "bytes_changed")
    if where is None or compared is None or changed is None:
        return ""
    whose, kind = _whose(figures)
    amount = f"{number(changed)} of {number(compared)} bytes at {kind}{where:#x} changed{_span(figures)}"
    if check.verdict is Verdict.PASS and not changed:
        return f"{whose} survived: {amount}."
    if check.verdict is Verdict.FAIL and changed:
        entries = len(records(figures, "entries_changed"))
        return f"{whose} did not survive: {amount}" + (
            f", in {plural(entries, 'entry', 'entries')}." if entries else "."
        )
    return ""


def _whose(figures: Mapping[str, Any]) -> tuple[str, str]:
    """The page directory, with its owner where a hypervisor has one as well, and the kind of its address."""
    owner = figures.get("owner")
    if not isinstance(owner, Mapping):
        return "The page directory", ""
    pseudo = integer(owner, "pseudo_physical")
    known = f" (pseudo-physical {pseudo:#x})" if pseudo is not None else ""
    name = {"hypervisor": "The hypervisor"}.get(str(owner.get("name")), printable(str(owner.get("name"))))
    return f"{name}'s page directory{known}", "machine address "


def _span(figures: Mapping[str, Any]) -> str:
    """' from panic to LAST', LAST being the last checkpoint compared; empty when unknown. A kexec jump has no panic."""
    names = [str(row["checkpoint"]) for row in records(figures, "compared") if "checkpoint" in row]
    if Checkpoint.RETURNED in names:
        return " out and back"
    return f" from panic to {printable(names[-1])}" if names else ""


def checks_sentence(result: RunResult) -> str:
    """How many checks passed, and which did not."""
    total = plural(len(result.checks), "check", "checks")
    others = [f"{c.name} ({c.verdict})" for c in result.checks if c.verdict is not Verdict.PASS]
    if not others:
        return f"{total}, all passed."
    return f"{total}, {len(result.checks) - len(others)} passed; not: {', '.join(others)}."


def find_check(result: RunResult, name: str) -> CheckResult | None:
    return next((check for check in result.checks if check.name == name), None)


# ---------------------------------------------------------------- figures: JSON, any of which may be missing


def integer(figures: Mapping[str, Any], key: str) -> int | None:
    value = figures.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def records(figures: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The list of objects under `key`; what is not an object is left out."""
    value = figures.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str):
        return []
    return [row for row in value if isinstance(row, Mapping)]


def paging_mode(figures: Mapping[str, Any]) -> PagingMode | None:
    try:
        return PagingMode(figures.get("mode"))  # type: ignore[arg-type]  # any other value raises
    except ValueError:
        return None


# ---------------------------------------------------------------- numbers and text


def number(value: int) -> str:
    """With separators from five digits on: a page has 4096 bytes, not 4,096."""
    return f"{value:,}" if abs(value) >= 10_000 else str(value)


def plural(count: int, one: str, many: str) -> str:
    return f"{number(count)} {one if count == 1 else many}"


def entry_value(value: object, mode: PagingMode | None) -> str:
    """A page-table entry in hex at its full width: 4 bytes in 2-level paging, 8 in the others."""
    if not isinstance(value, int):
        return ""
    return f"{value:#0{10 if mode is PagingMode.TWO_LEVEL else 18}x}"


def mapped_range(index: int, mode: PagingMode | None) -> tuple[int, int] | None:
    """First and last virtual address that entry `index` of the table at CR3 maps; None without such an entry.

    Upper-half addresses of 4- and 5-level paging come out canonical (SDM vol. 1, 3.3.7.1).
    """
    if mode is None or not 0 <= index < TOP_ENTRIES[mode]:
        return None
    shift = TOP_SHIFT[mode]
    start = index << shift
    if mode in (PagingMode.FOUR_LEVEL, PagingMode.FIVE_LEVEL) and index >= TOP_ENTRIES[mode] // 2:
        start |= -1 << (shift + 9) & (1 << 64) - 1
    return start, start + (1 << shift) - 1


def printable(text: str) -> str:
    """One line's worth of text that a terminal can't take for anything else.

    Tabs become a space; whatever else is not printable (control and format characters, line ends, escape
    sequences, bidirectional overrides) is shown as \\x1b or \\u202e. `printable_lines` keeps line ends.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _shown(c) for c in text)


def _shown(character: str) -> str:
    if character == "\t":
        return " "
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable_lines(text: str) -> list[str]:
    """The lines of `text`, each `printable`. CR LF and LF end a line, a lone CR does not: it is shown."""
    if not text:
        return []
    lines = text.replace("\r\n", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    return [printable(line.rstrip("\r").expandtabs()) for line in lines]
