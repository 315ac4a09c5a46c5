"""Many cells: how long they will take by what earlier runs took, and what came of them (pure, but for `Timings`)."""

from __future__ import annotations

import contextlib
import heapq
import os
import statistics
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from rig.model import RunPlan, RunResult, Verdict
from rig.pool import Agenda, Capacity
from rig.progress import Forecast, duration
from rig.report.wording import headline, outcome, plural, printable

WIDTH = 80  # columns
FOREVER = 1e9  # seconds: no cell took so long
PREPARE = "prepare"  # the phase in which artefacts are fetched and built
# In a second attempt's environment: the directory of the first one, and why that one could not be judged.
RETRY_OF, RETRY_BECAUSE = "retry_of", "retry_because"
ENDED_WORKERS = "ended_workers"  # in the environment: names of a cluster's workers that ended while they ran this cell


class Timings:
    """What each cell took on this machine when it ran last: seconds of wall time, by its slug, a file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self) -> dict[str, float]:
        """Everything known. What is no number is as good as not there."""
        known: dict[str, float] = {}
        for path in sorted(self._directory.glob("*")):
            with contextlib.suppress(ValueError, OSError):
                seconds = float(path.read_text(encoding="ascii"))
                if 0 <= seconds < FOREVER:
                    known[path.name] = seconds
        return known

    def keep(self, slug: str, result: RunResult) -> None:
        """Replaces what was known, unless nothing was run, or not to the end. A directory that can't be written is no
        trouble: an estimate is all that is lost."""
        # Without what was fetched and built: that is done once.
        seconds = sum(phase.seconds for phase in result.phases if phase.name != PREPARE)
        if not seconds or result.verdict is Verdict.ERROR:
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


def wall(plans: Sequence[RunPlan], seconds: Sequence[float], capacity: Capacity) -> float:
    """How long cells of these lengths take side by side."""
    agenda, now = Agenda(plans, capacity), 0.0
    running: list[tuple[float, int]] = []  # (when it ends, its number)
    while True:
        while (number := agenda.begin()) is not None:
            heapq.heappush(running, (now + seconds[number], number))
        if not running:
            return now
        now, number = heapq.heappop(running)
        agenda.end(number)


def forecast(plans: Sequence[RunPlan], known: Mapping[str, float], capacity: Capacity) -> Forecast | None:
    """For the progress of these; None when nothing is known of how long they take."""
    seconds = {
        plan.id: length for plan, length in zip(plans, estimates(plans, known), strict=True) if length is not None
    }
    cpus = {plan.id: min(plan.guest.cpus, capacity.cpus) for plan in plans}
    return Forecast(seconds, cpus, capacity.cpus) if len(seconds) == len(plans) else None


# ---------------------------------------------------------------- for people


def plan_lines(plans: Sequence[RunPlan], known: Mapping[str, float], capacity: Capacity) -> list[str]:
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
        cpus = plural(capacity.cpus, "CPU", "CPUs")
        out.append(f"about {duration(wall(plans, total, capacity))}, on {cpus} at a time")
        if guessed:
            out.append(f"~ {guessed} never ran here: the median of their guest's other cells is taken")
    return out


def repeated_lines(results: Sequence[RunResult]) -> list[str]:
    """Of each cell, how often it came to which verdict, and from what to what this process's memory and files went."""
    out = []
    for name in dict.fromkeys(result.id for result in results):
        became = Counter(outcome(result).word for result in results if result.id == name)
        out.append(f"{printable(name)}: {', '.join(f'{count} {word}' for word, count in became.most_common())}")
    for key, what in (("memory_mib", "MiB of memory"), ("open_files", "open files")):
        used = [result.environment[key] for result in results if key in result.environment]
        if used:
            out.append(f"this process: {used[0]} {what} after the first run, {used[-1]} after the last")
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
            out += wrap(reason(result), WIDTH, initial_indent="        ", subsequent_indent="        ")
        if RETRY_OF in result.environment:
            out += wrap(_retried(result), WIDTH, initial_indent="        ", subsequent_indent="        ")
    counts = dict.fromkeys(("PASS", "OK", "FAIL", "ERROR", "SKIP"), 0)
    for result in results:
        counts[outcome(result).word] += 1
    sums = ", ".join(f"{count} {word.lower()}" for word, count in counts.items() if count)
    retried = sum(RETRY_OF in result.environment for result in results)
    return [*out, "", f"{plural(len(results), 'cell', 'cells')}: {sums}" + (f"; {retried} retried" if retried else "")]


def _retried(result: RunResult) -> str:
    first, because = (printable(str(result.environment.get(key, ""))) for key in (RETRY_OF, RETRY_BECAUSE))
    return f"retried: the first attempt ({first}) could not be judged: {because}"


def reason(result: RunResult) -> str:
    """Why this is no plain pass, in one line."""
    failed = [f"{c.name}: {c.summary}" for c in result.checks if c.verdict in (Verdict.FAIL, Verdict.ERROR)]
    return headline(result) if result.error is not None or not failed else printable("; ".join(failed))
