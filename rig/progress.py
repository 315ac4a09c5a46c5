"""What the user sees while guests run: one live line a guest on a terminal, one line a phase anywhere else."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

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
        print(f"{run}: {text}", file=self._stream, flush=True)


class LiveProgress:
    """A table that is drawn again and again: run, phase, seconds in the phase, seconds in all.

    total: how many runs there will be. When they are more than fit on a screen, those that have ended are counted only.
    """

    def __init__(self, console: Console, clock: Clock = time.monotonic, total: int = 0) -> None:
        self._console = console
        self._total = total
        self._clock = clock
        self._rows: dict[str, Row] = {}
        self._lock = threading.Lock()

    def start(self, run: str) -> None:
        with self._lock:
            now = self._clock()
            self._rows[run] = Row(started=now, phase="start", phase_started=now)

    def say(self, run: str, text: str) -> None:
        if text.startswith(NOTE):
            self._console.print(f"{run}: {text}", markup=False, highlight=False)
            return
        with self._lock:
            row = self._rows[run]
            row.phase, row.phase_started = text, self._clock()

    def end(self, run: str, outcome: str) -> None:
        with self._lock:
            row = self._rows[run]
            row.outcome, row.ended = outcome, self._clock()

    def table(self) -> Table:
        """How things stand now, no wider than the console: a run's id is cut when it is too long."""
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
            if many:
                ended = Counter(row.outcome for row in self._rows.values() if row.outcome)
                outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(ended.items()))
                table.add_row(Text(f"{ended.total()} of {self._total} runs: {outcomes}", style="bold"), "", "", "")
            for run, row in self._rows.items():
                if many and row.outcome:
                    continue
                end = row.ended if row.outcome else now
                in_phase = "" if row.outcome else f"{end - row.phase_started:.1f} s"
                style = "bold" if row.outcome else ""
                cells = (run, row.outcome or row.phase, in_phase, f"{end - row.started:.1f} s")
                table.add_row(*(Text(cell, style=style) for cell in cells))
        return table


@contextlib.contextmanager
def open_progress(stream: TextIO, total: int) -> Iterator[Progress]:
    """Live on a terminal, plain otherwise (and on a terminal that can't be redrawn: TERM=dumb)."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream)
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainProgress(stream)
        return
    progress = LiveProgress(console, total=total)
    with Live(console=console, get_renderable=progress.table, refresh_per_second=4):
        yield progress
