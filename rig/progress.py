"""What the user sees while guests run: one live line a guest on a terminal, one line a phase anywhere else."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from rig.report.wording import printable

if TYPE_CHECKING:
    from rich.console import Console, Group

Clock = Callable[[], float]
WIDTHS = (16, 8, 8)  # columns of the live table after the run's id: phase or outcome, its seconds, all seconds
JUSTIFY: tuple[Literal["left", "right"], ...] = ("left", "right", "right")
SHOWN = 16  # runs that the live table may have rows for
NOTE = "note: "  # what a listener is told is a phase's name, or free text after this


class Progress(Protocol):
    """Told by many threads what each run is doing. `text` is a phase's name, or `note: ` and free text."""

    def start(self, run: str) -> None: ...
    def say(self, run: str, text: str) -> None: ...
    def end(self, run: str, outcome: str) -> None: ...


@dataclass
class Row:
    """One run's state. Times are the clock's, in seconds."""

    started: float
    phase: str
    phase_started: float
    outcome: str = ""
    ended: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """seconds, cpus: what each run is expected to take, by its id. capacity: CPUs that runs have together."""

    seconds: Mapping[str, float]
    cpus: Mapping[str, int]
    capacity: int

    def left(self, spent: Mapping[str, float], over: Collection[str]) -> float:
        """Seconds until all have ended, were all CPUs in use to the end. spent: seconds, of those that have begun.

        A run that takes longer than expected is taken to end now.
        """
        rest = {run: max(0.0, s - spent.get(run, 0.0)) for run, s in self.seconds.items() if run not in over}
        shared = sum(seconds * self.cpus[run] for run, seconds in rest.items()) / self.capacity
        return max([shared, *rest.values()])


def duration(seconds: float) -> str:
    """In words: 45 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


class PlainProgress:
    """Lines that can be read in a log: `panic@pae/debian-6.1: boot 7.1 s`, each when that phase is over."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self._lock = threading.Lock()

    def start(self, run: str) -> None:
        with self._lock:
            now = self._clock()
            self._rows[run] = Row(started=now, phase="", phase_started=now)
            self._print(run, "started")

    def say(self, run: str, text: str) -> None:
        with self._lock:
            if text.startswith(NOTE):
                self._print(run, text)
            else:
                self._finish_phase(run)
                self._rows[run].phase = text

    def end(self, run: str, outcome: str) -> None:
        with self._lock:
            self._finish_phase(run)
            self._print(run, f"{outcome} {self._clock() - self._rows[run].started:.1f} s in all")

    def _finish_phase(self, run: str) -> None:
        row, now = self._rows[run], self._clock()
        if row.phase:
            self._print(run, f"{row.phase} {now - row.phase_started:.1f} s")
        row.phase, row.phase_started = "", now

    def _print(self, run: str, text: str) -> None:
        """A run goes on when nobody reads any more how it does: whoever did may have gone (`rig run 2>&1 | head`)."""
        try:
            print(printable(f"{run}: {text}"), file=self._stream, flush=True)
        except OSError:
            self._stream = io.StringIO()


class LiveProgress:
    """A table that is drawn again and again: run, phase, seconds in the phase, seconds in all.

    total: how many runs there will be. When they are more than fit on a screen, those that have ended are counted only.
    forecast: how long it will still take, when that is known.
    """

    def __init__(
        self, console: Console, clock: Clock = time.monotonic, total: int = 0, forecast: Forecast | None = None
    ) -> None:
        self._console = console
        self._total = total
        self._forecast = forecast
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self._lock = threading.Lock()

    def start(self, run: str) -> None:
        with self._lock:
            now = self._clock()
            self._rows[run] = Row(started=now, phase="start", phase_started=now)

    def say(self, run: str, text: str) -> None:
        if text.startswith(NOTE):
            self._console.print(printable(f"{run}: {text}"), markup=False, highlight=False)
            return
        with self._lock:
            row = self._rows[run]
            row.phase, row.phase_started = text, self._clock()

    def end(self, run: str, outcome: str) -> None:
        with self._lock:
            row = self._rows[run]
            row.outcome, row.ended = outcome, self._clock()

    def table(self) -> Group:
        """How things stand now, no wider than the console: a run's id is cut when it is too long."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        fixed = sum(WIDTHS) + 2 * len(WIDTHS)
        table.add_column(overflow="ellipsis", no_wrap=True, max_width=max(8, self._console.width - fixed))
        for width, justify in zip(WIDTHS, JUSTIFY, strict=True):
            table.add_column(no_wrap=True, min_width=width, justify=justify)
        with self._lock:
            now = self._clock()
            many = self._total > SHOWN
            heads = [Text(self._count(now), style="bold")] if many or self._forecast else []
            for run, row in self._rows.items():
                if many and row.outcome:
                    continue
                end = row.ended if row.outcome else now
                in_phase = "" if row.outcome else f"{end - row.phase_started:.1f} s"
                style = "bold" if row.outcome else ""
                cells = (run, row.outcome or row.phase, in_phase, f"{end - row.started:.1f} s")
                table.add_row(*(Text(cell, style=style) for cell in cells))
        return Group(*heads, table)

    def _count(self, now: float) -> str:
        ended = Counter(row.outcome for row in self._rows.values() if row.outcome)
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(ended.items()))
        counted = f"{ended.total()} of {self._total} runs" + (f": {outcomes}" if outcomes else "")
        if self._forecast is None:
            return counted
        spent = {run: (row.ended if row.outcome else now) - row.started for run, row in self._rows.items()}
        over = {run for run, row in self._rows.items() if row.outcome}
        return f"{counted}; about {duration(self._forecast.left(spent, over))} left"


@contextlib.contextmanager
def open_progress(stream: TextIO, total: int, forecast: Forecast | None = None) -> Iterator[Progress]:
    """Live on a terminal, plain otherwise (and on a terminal that can't be redrawn: TERM=dumb)."""
    if not stream.isatty():
        yield PlainProgress(stream)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream)
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainProgress(stream)
        return
    progress = LiveProgress(console, total=total, forecast=forecast)
    with Live(console=console, get_renderable=progress.table, refresh_per_second=4):
        yield progress
