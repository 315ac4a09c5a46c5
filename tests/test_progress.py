from __future__ import annotations

import io

from rich.console import Console

from rig.progress import Forecast, LiveProgress, PlainProgress, Progress, open_progress


class Clock:
    """Seconds that pass only when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def drive(progress: Progress, clock: Clock) -> None:
    progress.start("panic@pae/k")
    progress.say("panic@pae/k", "boot")
    clock.now += 7.125
    progress.say("panic@pae/k", "arm")
    clock.now += 0.5
    progress.say("panic@pae/k", "note: dropbear took [its] time")


def test_plain_lines_say_how_long_each_phase_took() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock)
    drive(progress, clock)
    progress.end("panic@pae/k", "pass")
    assert stream.getvalue().splitlines() == [
        "panic@pae/k: started",
        "panic@pae/k: boot 7.1 s",
        "panic@pae/k: note: dropbear took [its] time",
        "panic@pae/k: arm 0.5 s",
        "panic@pae/k: pass 7.6 s in all",
    ]


def test_a_guests_words_move_nothing_on_the_terminal() -> None:
    """A note may quote the guest: here it sets the window's title, and turns the direction of writing."""
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, color_system=None)
    for progress in (PlainProgress(stream), LiveProgress(console)):
        progress.say("a run", "note: \x1b]0;pwned\x07 \u202egnp.exe")
    assert stream.getvalue() == "a run: note: \\x1b]0;pwned\\x07 \\u202egnp.exe\n" * 2


class Unread(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_a_run_goes_on_when_nobody_reads_how_it_does() -> None:
    clock = Clock()
    progress = PlainProgress(Unread(), clock)
    drive(progress, clock)
    progress.end("panic@pae/k", "pass")


def test_live_table_fits_80_columns() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, width=80, force_terminal=True, color_system=None)
    progress = LiveProgress(console, clock)
    drive(progress, clock)
    long = "overwritten-pgd@a-guest-with-a-very-long-name-of-its-own/linux-6.19-rc1-next-20261122"
    progress.start(long)
    progress.say(long, "crash-kernel")
    console.print(progress.table())
    note, pae, other = stream.getvalue().splitlines()
    assert note.rstrip() == "panic@pae/k: note: dropbear took [its] time"
    assert pae.split() == ["panic@pae/k", "arm", "0.5", "s", "7.6", "s"]
    assert other.startswith("overwritten-pgd@a-guest-with-a-very-long-…")
    assert other.split()[1:] == ["crash-kernel", "0.0", "s", "0.0", "s"]
    assert max(len(pae), len(other)) <= 80


def test_of_many_runs_those_that_ended_are_counted() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, width=80, force_terminal=True, color_system=None)
    progress = LiveProgress(console, clock, total=200)
    for number in range(40):
        progress.start(f"panic@pae/k{number}")
        if number < 38:
            progress.end(f"panic@pae/k{number}", "skip" if number < 3 else "pass")
    console.print(progress.table())
    counted, *running = stream.getvalue().splitlines()
    assert counted.strip() == "38 of 200 runs: 35 pass, 3 skip"
    assert [line.split()[0] for line in running] == ["panic@pae/k38", "panic@pae/k39"]


def test_how_long_it_will_still_take_is_said() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, width=80, force_terminal=True, color_system=None)
    names = [f"panic@pae/k{number}" for number in range(200)]
    forecast = Forecast(dict.fromkeys(names, 30.0), dict.fromkeys(names, 1), capacity=2)
    progress = LiveProgress(console, clock, len(names), forecast)
    for number, name in enumerate(names[:102]):
        progress.start(name)
        if number < 100:
            progress.end(name, ("pass", "skip", "fail, unexpected", "error, unexpected")[number % 4])
    clock.now += 20.0
    console.print(progress.table())
    lines = stream.getvalue().splitlines()
    words = " ".join(lines[0].split() + lines[1].split())
    counts = "25 error, unexpected, 25 fail, unexpected, 25 pass, 25 skip"
    # 98 of 30 s and two that have run 20 of them, by two CPUs
    assert words == f"100 of 200 runs: {counts}; about 25 min left"
    assert max(map(len, lines)) <= 80


def test_live_table_stops_counting_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, width=80, color_system=None)
    progress = LiveProgress(console, clock)
    progress.start("panic@pae/k")
    clock.now += 3
    progress.end("panic@pae/k", "pass")
    clock.now += 50
    console.print(progress.table())
    assert stream.getvalue().split() == ["panic@pae/k", "pass", "3.0", "s"]


def test_what_is_no_terminal_gets_plain_lines() -> None:
    with open_progress(io.StringIO(), 1) as progress:
        assert isinstance(progress, PlainProgress)
