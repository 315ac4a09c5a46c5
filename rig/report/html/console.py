"""What the guest printed, cut where phases began. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rig.model import Phase
from rig.report.html.page import Link, Sources
from rig.report.wording import printable, printable_lines

CONSOLE_LINES = 5000  # the last so many are in the page, all of them in the evidence's own file
LINE = 2000  # characters of a line that are


@dataclass(frozen=True)
class Part:
    """What was printed while a phase lasted. phase: empty for what no phase is known of. at: where it begins.

    id: by the phase's number, for links to it.
    """

    id: str
    phase: str
    began: str
    at: str
    text: str


@dataclass(frozen=True)
class Console:
    """cut: lines left out at the start. marked: whether the run noted where phases began."""

    parts: list[Part]
    cut: int
    marked: bool
    files: list[Link]

    @property
    def silent(self) -> bool:
        return not any(part.text for part in self.parts)


def console(log: bytes, phases: Sequence[Phase], sources: Sources) -> Console:
    """Phases that began where the next one did, with nothing printed between them, are named all the same."""
    pieces = _pieces(log, phases)
    budget = CONSOLE_LINES
    total = 0
    parts: list[Part] = []
    for id, phase, began, at, blob in reversed(pieces):
        lines = [_shortened(line) for line in printable_lines(blob.decode("utf-8", "replace"))]
        total += len(lines)
        kept = lines[-budget:] if budget else []
        budget -= len(kept)
        parts.append(Part(id, phase, began, at, "\n".join(kept)))
    marked = any(phase.console is not None for phase in phases)
    return Console(parts[::-1], total - (CONSOLE_LINES - budget), marked, sources.links(["console.log", "control.log"]))


def _shortened(line: str) -> str:
    """A line without end must not make a page without end."""
    return line if len(line) <= LINE else f"{line[:LINE]}… ({len(line) - LINE} more characters)"


def phase_id(number: int) -> str:
    """The anchor of the part that a phase printed."""
    return f"console-{number}"


def _pieces(log: bytes, phases: Sequence[Phase]) -> list[tuple[str, str, str, str, bytes]]:
    """(id, phase, when it began, where, what was printed until the next one began)."""
    began = 0.0
    starts: list[tuple[str, str, str, int]] = []
    for number, phase in enumerate(phases):
        if phase.console is not None:
            starts.append((phase_id(number), printable(phase.name), f"{began:.2f} s", phase.console))
        began += phase.seconds
    if not starts or starts[0][-1] > 0:
        starts.insert(0, ("console-start", "", "", 0))
    ends = [*(at for *_, at in starts[1:]), len(log)]
    return [(id, name, when, f"byte {at}", log[at:end]) for (id, name, when, at), end in zip(starts, ends, strict=True)]
