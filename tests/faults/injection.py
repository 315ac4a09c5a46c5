"""One fault, injected: what became of the run, and what is wrong with that."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rig import unfinished
from rig.errors import RigError
from rig.judge import judge_dir
from tests.faults import acts, catalogue
from tests.faults.catalogue import (
    CANCELLED,
    ERROR,
    FAIL,
    GAVE_UP,
    KILLED,
    MADE,
    PASS,
    REFUSED,
    UNREAD,
    UNTOLD,
    WHOLE,
    Fault,
)
from tests.faults.leftovers import leftovers, shared
from tests.faults.place import KERNEL, ROOT, Place, open_place
from tests.faults.subject import PHASES, Subject

LIMIT = 150.0  # seconds in which a rig must have ended after a fault; the longest deadline given is 20
EXITS = {0: PASS, 1: FAIL, 2: REFUSED, 3: ERROR, 130: CANCELLED, 141: UNREAD, -signal.SIGKILL: KILLED}
NOBODY_FORESAW = ("Traceback (most recent call last)", "Exception in thread", "Exception ignored")


@dataclass(frozen=True)
class Outcome:
    """outcome: one of tests.faults.catalogue's, or in words what else. wrong: each a reason why this must not be.

    phase: injected in. told: where the rig says that it happened. seconds: from the fault to the rig's end.
    """

    fault: str
    phase: str
    guest: str
    outcome: str
    exit: int | None
    told: str
    message: str
    hint: str
    seconds: float
    wrong: tuple[str, ...]


def inject(fault: Fault, phase: str, guest: str, root: Path, master: Path) -> Outcome:
    """root: a directory that is not there yet. :raise NotReached: the fault could not be injected"""
    with open_place(root, master, room=fault.room) as place:
        mark, before = secrets.token_hex(8), shared()
        if fault.templates == MADE:
            shutil.rmtree(place.templates)
        words, environment = _words(fault, phase, guest, place), fault.setting(place)
        subject = Subject(words, place, mark, environment, pipes=fault.pipes, before=fault.before)
        try:
            # a fault that is there from the start may keep the phase from ever being reached
            if phase != WHOLE and fault.act is not acts.nothing:
                subject.wait_for_phase(phase)
            started = time.monotonic()
            fault.act(subject, phase)
            status = subject.wait(LIMIT)
            seconds = time.monotonic() - started
        finally:
            subject.end()
        return _outcome(fault, phase, guest, _End(place, subject, status, seconds), leftovers(place, mark, before))


def _words(fault: Fault, phase: str, guest: str, place: Place) -> list[str]:
    """The command line; with a guest of the fault's own, in a catalogue of its own."""
    words = ["run", "panic", "--kernel", KERNEL, "--results", str(place.results), *fault.words]
    if not fault.text:
        words.append("--json")
    if not fault.templates and phase in (WHOLE, "prepare", "boot", "arm"):
        words.append("--no-template")
    if not fault.guest:
        return [*words, "--guest", guest]
    folder = place.root / "catalogue" / "guests"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "guests" / f"{guest}.toml", folder / "even.toml")  # `like` is of the same directory
    (folder / "odd.toml").write_text(f'like = "even"\ndescription = "odd"\n{fault.guest}\n')
    return [*words, "--guest", "odd", "--catalogue", str(folder.parent)]


@dataclass(frozen=True)
class _End:
    """Of a rig. status: None when it did not end."""

    place: Place
    subject: Subject
    status: int | None
    seconds: float

    @property
    def result(self) -> dict[str, Any] | None:
        """As stdout, or a directory of results, gives it; the same run must not give two."""
        said = self.subject.out
        if said.startswith("{") and (runs := json.loads(said).get("runs")):
            found: dict[str, Any] = runs[0]["result"]
            return found
        for path in self.directories:
            kept: dict[str, Any] = json.loads((path / "result.json").read_bytes())
            return kept
        return None

    @property
    def directories(self) -> list[Path]:
        """Finished evidence directories."""
        return sorted(path.parent for path in self.place.results.glob("[!.]*/result.json"))


def _outcome(fault: Fault, phase: str, guest: str, end: _End, left: list[str]) -> Outcome:
    result, error = end.result, (end.result or {}).get("error") or {}
    outcome = EXITS.get(end.status, f"exit {end.status}") if end.status is not None else "did not end"
    if outcome == ERROR and result is None:
        outcome = GAVE_UP
    elif outcome == ERROR and result is not None and result["verdict"] != ERROR:
        outcome = UNTOLD
    said = _last_words(end.subject.err)
    wrong = [*_complaints(fault, phase, outcome, end), *_left(outcome, end.place, left)]
    return Outcome(
        fault=fault.name,
        phase=phase,
        guest=guest,
        outcome=outcome,
        exit=end.status,
        told=error.get("phase", ""),
        message=error.get("message") or said[0],
        hint=error.get("hint") or said[1],
        seconds=round(end.seconds, 1),
        wrong=tuple(wrong),
    )


def _last_words(err: str) -> tuple[str, str]:
    """What the rig itself said at its end on stderr, and its hint."""
    match = re.search(r"^rig: (.*?)(?:\n  hint: (.*))?$", err, re.M | re.S)
    return (match[1].strip(), (match[2] or "").strip()) if match else ("", "")


def _complaints(fault: Fault, phase: str, outcome: str, end: _End) -> Iterator[str]:
    err, result = end.subject.err, end.result
    if outcome not in fault.accepted(phase):
        yield f"{outcome}, where only {' or '.join(sorted(fault.accepted(phase)))} is right"
    yield from (f"stderr: {words}" for words in NOBODY_FORESAW if words in err)
    if outcome in (GAVE_UP, REFUSED) and not all(_last_words(err)):
        yield "it says neither why nor what to do"
    if outcome == UNTOLD:
        yield from _of_untold(end)
    if result is not None:
        yield from _of_result(fault, phase, outcome, result)
    for path in end.directories:
        try:
            again = judge_dir(path).verdict
        except RigError as problem:
            yield f"{path.name} can't be judged again: {problem.message}"
        else:
            if again != (result or {}).get("verdict"):
                yield f"judged again, {path.name} is {again}"


def _of_result(fault: Fault, phase: str, outcome: str, result: dict[str, Any]) -> Iterator[str]:
    """Does the result say what the exit status says; and of an error where it happened, and what can be done?"""
    if outcome in (PASS, FAIL, ERROR) and result["verdict"] != outcome:
        yield f"exit status of {outcome}, verdict {result['verdict']}"
    if outcome != ERROR:
        return
    error = result["error"]
    if error is None:
        yield "an error that does not say what broke"
        return
    at = PHASES.index(phase) if phase in PHASES else 0
    # not the next one only: that a serial line is gone is noticed by who waits for it
    if phase != WHOLE and error["phase"] not in PHASES[at:]:
        yield f"injected in {phase}, told of {error['phase'] or 'no phase'}"
    if not error["hint"]:
        yield "no hint"


def _of_untold(end: _End) -> Iterator[str]:
    """Does it say why, and where its results are; and are they what acts.once_more gave, which was not hindered?"""
    said, hint = _last_words(end.subject.err)
    first, *others = [json.loads((path / "result.json").read_bytes()) for path in end.directories]
    told = (f"stdout: {os.strerror(errno.ENOSPC)}" in said, str(end.place.results) in said, "rig check" in hint)
    if not all(told):
        yield "it does not say that stdout is full, where the results are, or how to see them"
    if not others:
        yield "there is nothing to compare its result with"
    yield from ("its result is another than without the fault" for other in others if _gist(other) != _gist(first))


def _gist(result: Mapping[str, Any]) -> object:
    """What is the same in every run of one kind: not times, addresses, and what the environment says of itself."""
    checks = [(check["name"], check["verdict"]) for check in result["checks"]]
    what = ("id", "kernel", "crash_kernel", "expect", "verdict", "surprise", "error")
    return [result[key] for key in what], checks


def _left(outcome: str, place: Place, left: list[str]) -> Iterator[str]:
    """What a killed rig leaves in the results directory must be gone once the next one begins a run there."""
    if outcome == KILLED:
        unfinished.begin(place.results, "next")
        left = [what for what in left if not what.startswith(f"hidden {unfinished.PREFIX}")]
        left += [f"swept: {path.name}" for path in place.results.glob(f"{unfinished.PREFIX}panic*")]
    yield from (f"left behind: {what}" for what in left)


def all_faults() -> list[tuple[Fault, str]]:
    """Every fault in every phase it is for."""
    return [(fault, phase) for fault in catalogue.FAULTS for phase in fault.phases]
