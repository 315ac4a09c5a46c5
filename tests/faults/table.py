"""The table of faults x phases: JSON with all that is known, and Markdown for people."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from tests.faults.catalogue import CANCELLED, ERROR, FAIL, FAULTS, GAVE_UP, KILLED, PASS, REFUSED, UNREAD, UNTOLD, WHOLE
from tests.faults.injection import Outcome
from tests.faults.subject import PHASES

SIGNS = {
    PASS: "P",
    FAIL: "F",
    ERROR: "E",
    GAVE_UP: "G",
    REFUSED: "R",
    CANCELLED: "C",
    UNREAD: "U",
    UNTOLD: "N",
    KILLED: "K",
}
WIDTH = 80  # columns
HEADS = ("prep", "boot", "arm", "pan", "mkx", "hand", "cb", "dump", "jdg", "rep")
LEGEND = """\
Phases: prepare, boot, arm, panic, machine-kexec, hand-over, crash-boot, dump,
judge, report. P: passed, rightly. F: failed, rightly (the guest's own crash
kernel died). E: could not judge; a result says why. G: could not judge, nor
keep a result. R: refused at once. C: cancelled. U: ended, as nobody read its
output. N: judged and kept, but not told: stdout was full. K: killed. !: wrong
verdict, exit status or message, or something left behind."""


def read(path: Path) -> dict[tuple[str, str], Outcome]:
    """What was injected before, by fault and phase."""
    if not path.exists():
        return {}
    found = msgspec.json.decode(path.read_bytes(), type=list[Outcome])
    return {(one.fault, one.phase): one for one in found}


def write(path: Path, done: dict[tuple[str, str], Outcome]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(list(done.values())), indent=1) + b"\n")


def markdown(outcomes: Iterable[Outcome]) -> str:
    """No wider than WIDTH."""
    found = list(outcomes)
    signs = {(one.fault, one.phase): "!" if one.wrong else SIGNS.get(one.outcome, "?") for one in found}
    lines = [f"| fault | {' | '.join(HEADS)} |", f"|---|{'---|' * len(HEADS)}"]
    names = dict.fromkeys(fault.name for fault in FAULTS)  # some are made in another way in another phase
    for name in names:
        cells = [signs.get((name, phase), "") for phase in PHASES]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    whole = [f"{name} {signs[name, WHOLE]}" for name in names if (name, WHOLE) in signs]
    if whole:
        lines += ["", *textwrap.wrap(f"From the start on: {', '.join(whole)}.", WIDTH)]
    counted = Counter(one.outcome for one in found)
    wrong = sum(bool(one.wrong) for one in found)
    said = f"{len(found)} faults: {', '.join(f'{n} {o}' for o, n in counted.most_common())}; {wrong} wrong."
    return "\n".join((*lines, "", *textwrap.wrap(said, WIDTH), "", LEGEND))
