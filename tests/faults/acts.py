"""What is done to a running rig, from outside, in a phase of its run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.place import damage
from tests.faults.subject import GLANCE, PHASES, Subject, write_all

Act = Callable[[Subject, str], None]  # the rig and the phase that it is in

FLOOD = 100 << 20  # bytes
FILL = 1 << 20  # bytes written at a time to fill a file system
PAUSE = 3.0  # seconds for which something stands still
OTHER_TEXT = b"this is not what was here before\n" * 64

# All that the rig waits for on a serial line, in one breath.
MARKERS = b"".join(
    (
        b"\nLinux version 9.9.9 (forged)\n",
        b"@rig hello role=crash release=9.9.9 channel=ttyS1 uptime=1.0 net=yes vmcore=yes dom0=no cmdline x\n",
        b"@rig hello role=first release=9.9.9 channel=ttyS0 uptime=1.0 net=no:forged vmcore=no dom0=no cmdline x\n",
        b"@rig ready\n@rig back\n@rig hello role=second\n@rig hello\n",
        *(b"\n@rig begin %d\nforged\n@rig end %d 0\n" % (number, number) for number in range(60)),
        b"Kernel panic - not syncing: forged\nNo working init found\n",
    )
)
NOT_TEXT = bytes(range(256)) * 16 + b"\xff\xfe\xc3\x28\xed\xa0\x80\x1b[2J\x1b]0;title\x07\x9b31m" * 64


def signal_rig(*numbers: signal.Signals) -> Act:
    """One after the other, each once the one before was noticed: the rig says so."""

    def act(subject: Subject, _phase: str) -> None:
        for place, number in enumerate(numbers):
            if place:
                _until_it_says(subject, "rig: SIG")
            subject.signal(number)

    return act


def _until_it_says(subject: Subject, words: str) -> None:
    while words not in subject.err and subject.process.poll() is None:
        time.sleep(GLANCE)


def signal_qemu(number: signal.Signals) -> Act:
    def act(subject: Subject, _phase: str) -> None:
        os.kill(subject.qemu, number)

    return act


def suspend(who: Callable[[Subject], int]) -> Act:
    """Stopped for PAUSE seconds, as by a terminal or by a machine that sleeps."""

    def act(subject: Subject, _phase: str) -> None:
        pid = who(subject)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(PAUSE)  # this is the fault
        os.kill(pid, signal.SIGCONT)

    return act


def fill(subject: Subject, _phase: str) -> None:
    """The results' own small file system, to the last byte. The rig stands still meanwhile: a run is judged sooner."""
    os.kill(subject.pid, signal.SIGSTOP)
    try:
        with (subject.place.results / "filler").open("wb", buffering=0) as stream:
            size = FILL
            while size:
                try:
                    stream.write(bytes(size))
                except OSError:
                    size //= 2
    finally:
        os.kill(subject.pid, signal.SIGCONT)


def fill_for_a_phase(subject: Subject, phase: str) -> None:
    """The same, but there is room again as soon as the next phase has begun."""
    fill(subject, phase)
    following = PHASES[PHASES.index(phase) + 1]
    subject.wait_until(lambda: subject.has_begun(following) or _is_over(subject), following)
    (subject.place.results / "filler").unlink()


def _is_over(subject: Subject) -> bool:
    return subject.process.poll() is not None


def remove_results(subject: Subject, _phase: str) -> None:
    shutil.rmtree(subject.place.results, ignore_errors=True)


def remove_cache(subject: Subject, _phase: str) -> None:
    shutil.rmtree(subject.place.cache, ignore_errors=True)


def damage_cache(change: Callable[[bytes], bytes], part: str = "*") -> Act:
    """Files of the cache's directories `part` get another content."""

    def act(subject: Subject, _phase: str) -> None:
        for path in sorted(subject.place.cache.glob(f"{part}/**/*")):
            if path.is_file():
                damage(path, change(path.read_bytes()[: 4 << 20]))

    return act


def cut_off(name: str) -> Act:
    """A connection between rig and QEMU is closed under both."""

    def act(subject: Subject, _phase: str) -> None:
        with subject.connection(name) as connection:
            connection.shutdown(2)

    return act


def guest_prints(data: bytes, line: str) -> Act:
    """As if the guest printed it: it comes to the rig over that serial line."""

    def act(subject: Subject, _phase: str) -> None:
        with subject.connection(line) as connection:
            write_all(connection, data, lambda: subject.process.poll() is None)

    return act


def flood(line: str) -> Act:
    text = b"[    0.000000] nothing in particular happened, and it happened again and again\r\n"
    return guest_prints(text * (FLOOD // len(text)), line)


def guest_does(command: str) -> Act:
    """The guest's shell is made to do something that the rig has not asked for."""

    def act(subject: Subject, _phase: str) -> None:
        logs = list(subject.place.results.glob(".*/control.log"))
        subject.wait_until(lambda: any(b"@rig hello" in log.read_bytes() for log in logs), "the guest's shell")
        with subject.connection("control", ours=True) as connection:
            write_all(connection, command.encode() + b"\n", lambda: subject.process.poll() is None)

    return act


def close_pipe(name: str) -> Act:
    """Whoever read the rig's stdout or stderr has gone."""

    def act(subject: Subject, _phase: str) -> None:
        stream = getattr(subject.process, name)
        subject.err  # noqa: B018 - what was said until now
        stream.close()

    return act


def jump_clock(seconds: int) -> Act:
    """The wall clock, for the rig and its QEMU: see clock.c."""

    def act(subject: Subject, _phase: str) -> None:
        (subject.place.root / "clock").write_text(str(seconds))

    return act


def _another_passes(subject: Subject) -> None:
    other = _another(subject)
    try:
        status = other.wait(120.0)
    finally:
        other.end()
    assert status == 0, other.err


def once_more(subject: Subject, _phase: str) -> None:
    """The same again, once it has ended, and without the fault."""
    subject.process.wait()
    _another_passes(subject)


def remove_templates(subject: Subject, _phase: str) -> None:
    shutil.rmtree(subject.place.templates, ignore_errors=True)


def second_maker(subject: Subject, _phase: str) -> None:
    """Another rig that needs the same guest, which is being booted."""
    _another_passes(subject)
    subject.process.wait()
    assert len(_sealed(subject)) == 1


def kill_maker(subject: Subject, _phase: str) -> None:
    """Killed while it writes the template down. The next rig makes it; where it lay before does not matter."""
    rams = subject.place.templates
    subject.wait_until(lambda: any(path.stat().st_size for path in rams.glob("*/ram")), "a template's RAM")
    subject.signal(signal.SIGKILL)
    assert not _sealed(subject), "killed too late"
    _another_passes(subject)
    assert len(_sealed(subject)) == 1


def _another(subject: Subject) -> Subject:
    return Subject(subject.words, subject.place, subject.mark, {}, name="other.")


def _sealed(subject: Subject) -> list[Path]:
    return list(subject.place.templates.glob("*/told.json"))


def crowd(subject: Subject, _phase: str) -> None:
    """Seven more of the same at once, on the same cache and into the same results; each is stopped once it boots."""
    others = [Subject(subject.words, subject.place, subject.mark, {}, name=f"{number}.") for number in range(7)]
    try:
        for other in others:
            other.wait_for_phase("boot")
            other.signal(signal.SIGTERM)
        statuses = {other.wait(60.0) for other in others}
    finally:
        for other in others:
            other.end()
    assert statuses == {130}, statuses


def nothing(_subject: Subject, _phase: str) -> None:
    """The fault is in how the rig was started."""


def build_clock(folder: Path) -> Path:
    """A library that shifts the wall clock of whoever preloads it."""
    library = folder / "clock.so"
    if not library.exists():
        source = Path(__file__).with_name("clock.c")
        part = folder / "clock.so.part"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(part), str(source)], check=True)
        part.rename(library)
    return library
