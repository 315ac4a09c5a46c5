"""What is different since the last run of each cell, and which cells can't make up their mind (pure)."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rig.history import Record
from rig.report.wording import Tone, outcome, plural

FLAKY_RUNS = 10  # a cell is judged flaky by its last so many runs


class Kind(enum.StrEnum):
    """In the order in which a reader wants to know. The value is its heading."""

    FAILURE = "New failures"
    UNJUDGED = "New errors"
    FLAKY = "Flaky"
    FIXED = "Fixed"
    SKIPPED = "Now skipped"


@dataclass(frozen=True)
class Changed:
    """One cell that has changed. note: what it was before, or how often it was what."""

    kind: Kind
    record: Record
    note: str


def by_id(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The runs of each cell, in the order given; cells in the order of their names."""
    cells: dict[str, list[Record]] = {}
    for record in records:
        cells.setdefault(record.id, []).append(record)
    return dict(sorted(cells.items()))


def changes(cells: Mapping[str, Sequence[Record]]) -> list[Changed]:
    """All of them, by kind, of each kind the latest first. A cell that is flaky and fails now is in the list twice; one
    that is flaky and passes now is not fixed: when it was run again, the same kernel came to something else.
    """
    found = [change for runs in cells.values() for change in _of_cell(runs)]
    kinds = list(Kind)
    latest_first = sorted(found, key=lambda change: change.record.started, reverse=True)
    return sorted(latest_first, key=lambda change: kinds.index(change.kind))


def _of_cell(runs: Sequence[Record]) -> Iterator[Changed]:
    since, flaky = _since_last(runs), _flaky(runs)
    if since and not (flaky and since.kind is Kind.FIXED):
        yield since
    if flaky:
        yield flaky


def _since_last(runs: Sequence[Record]) -> Changed | None:
    """runs: of one cell, oldest first, at least one."""
    before = outcome(runs[-2]) if len(runs) > 1 else None
    kind = _kind(before.tone if before else None, outcome(runs[-1]).tone)
    if kind is None:
        return None
    note = f"before: {before.word}, {day(runs[-2].started)}" if before else "its first run"
    return Changed(kind, runs[-1], note)


def _kind(before: Tone | None, now: Tone) -> Kind | None:
    """before: None when there was no run before; what is wrong from the start is news as well."""
    if before is now:
        return None
    match now:
        case Tone.BAD:
            return Kind.FAILURE
        case Tone.UNKNOWN:
            return Kind.UNJUDGED
        case Tone.NEUTRAL:
            return Kind.SKIPPED if before else None
        case Tone.GOOD:
            return Kind.FIXED if before in (Tone.BAD, Tone.UNKNOWN) else None


def _flaky(runs: Sequence[Record]) -> Changed | None:
    """Flaky: of the last FLAKY_RUNS runs, those with the kernel image of the latest one did not all come to the same.

    Only the same image counts: with another one a change is news, not a whim. Runs without an image, which were
    skipped or broke off before they had one, are no runs of it.
    """
    kernel = runs[-1].sha256
    words = Counter(outcome(run).word for run in runs[-FLAKY_RUNS:] if kernel and run.sha256 == kernel)
    if len(words) < 2:
        return None
    counts = ", ".join(f"{count} {word}" for word, count in words.most_common())
    return Changed(Kind.FLAKY, runs[-1], f"{plural(words.total(), 'run', 'runs')} of the same kernel: {counts}")


def day(started: str) -> str:
    """The date and the minute of a moment in ISO 8601, for people."""
    return started[:16].replace("T", " ") or "at an unknown time"
