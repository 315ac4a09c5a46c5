"""Many cells: how long they will take by what earlier runs took, and what came of them (pure, but for `Timings`)."""

from __future__ import annotations

import contextlib
import heapq
import os
import statistics
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from rig.model import RunPlan, RunResult, Verdict
from rig.report.wording import headline, outcome, plural, printable

WIDTH = 80  # columns


class Timings:
    """What each cell took on this machine when it ran last: seconds of wall time, by its slug, a file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self) -> dict[str, float]:
        """Everything known. What is no number is as good as not there."""
        known: dict[str, float] = {}
        for path in sorted(self._directory.glob("*")):
            with contextlib.suppress(ValueError, OSError):
                known[path.name] = float(path.read_text(encoding="ascii"))
        return known

    def keep(self, slug: str, result: RunResult) -> None:
        """Replaces what was known, unless nothing was run. A directory that can't be written is no trouble: an estimate
        is all that is lost."""
        if not (seconds := sum(phase.seconds for phase in result.phases)):
            return
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            draft = self._directory / f".{slug}.{os.getpid()}.{threading.get_ident()}"
            draft.write_text(f"{seconds:.1f}", encoding="ascii")
            draft.rename(self._directory / slug)


def estimates(plans: Sequence[RunPlan], known: Mapping[str, float]) -> list[float | None]:
    """Seconds for each cell: its own last time; else the median of its guest's known cells, else of all of them.

    0 for what is skipped; None as long as nothing at all is known.
    """
    by_guest: dict[str, list[float]] = {}
    for cell in plans:
        if cell.slug in known:
            by_guest.setdefault(cell.guest.name, []).append(known[cell.slug])
    everything = [seconds for times in by_guest.values() for seconds in times]
    default = statistics.median(everything) if everything else None

    def one(cell: RunPlan) -> float | None:
        if cell.skip:
            return 0.0
        times = by_guest.get(cell.guest.name)
        return known.get(cell.slug, statistics.median(times) if times else default)

    return [one(cell) for cell in plans]


def wall(seconds: Iterable[float], jobs: int) -> float:
    """How long cells of these lengths take in this order, `jobs` at a time."""
    ends = [0.0] * jobs
    for length in seconds:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def duration(seconds: float) -> str:
    """In words: 45 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


# ---------------------------------------------------------------- for people


def plan_lines(plans: Sequence[RunPlan], known: Mapping[str, float], jobs: int) -> list[str]:
    """The cells and their expected times, what is skipped with its reason, and what it comes to."""
    expected = estimates(plans, known)
    width = max(len(cell.id) for cell in plans)
    out = []
    for cell, seconds in zip(plans, expected, strict=True):
        own = "" if cell.slug in known else "~"
        text = f"skip: {cell.skip}" if cell.skip else "?" if seconds is None else f"{own}{seconds:.0f} s"
        out += wrap(f"{cell.id:{width}}  {text}", WIDTH, subsequent_indent="    ", break_long_words=False)
    skipped = sum(bool(cell.skip) for cell in plans)
    total = [seconds for seconds in expected if seconds is not None]
    out += ["", f"{plural(len(plans), 'cell', 'cells')}, {skipped} of them skipped"]
    if len(total) < len(expected):
        out.append("none of them was ever run on this machine: how long it takes is not known")
    else:
        guessed = sum(cell.slug not in known and not cell.skip for cell in plans)
        out.append(f"about {duration(wall(total, jobs))}, {jobs} at a time")
        if guessed:
            out.append(f"~ {guessed} never ran here: the median of their guest's other cells is taken")
    return out


def lines(results: Sequence[RunResult]) -> list[str]:
    """One line a cell, why for each that isn't simply passed, and the sums."""
    out: list[str] = []
    width = max(len(result.id) for result in results)
    for result in results:
        became = outcome(result)
        seconds = sum(phase.seconds for phase in result.phases)
        out.append(f"{became.sign} {became.word:<5} {printable(result.id):{width}}  {seconds:6.1f} s")
        if result.verdict is not Verdict.PASS or not result.as_expected:
            out += wrap(_reason(result), WIDTH, initial_indent="        ", subsequent_indent="        ")
    counts = dict.fromkeys(("PASS", "OK", "FAIL", "ERROR", "SKIP"), 0)
    for result in results:
        counts[outcome(result).word] += 1
    sums = ", ".join(f"{count} {word.lower()}" for word, count in counts.items() if count)
    return [*out, "", f"{plural(len(results), 'cell', 'cells')}: {sums}"]


def _reason(result: RunResult) -> str:
    failed = [f"{c.name}: {c.summary}" for c in result.checks if c.verdict in (Verdict.FAIL, Verdict.ERROR)]
    return headline(result) if result.error is not None or not failed else printable("; ".join(failed))
