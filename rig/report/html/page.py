"""What all sections of a run's page are made of: facts, and links to the evidence that they come from. Pure."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

from rig.errors import EvidenceError
from rig.report.wording import printable

T = TypeVar("T")


@dataclass(frozen=True)
class Link:
    """A file of the evidence. href: relative to the page."""

    name: str
    href: str


@dataclass(frozen=True)
class Fact:
    """One line of a list of facts. code: value is an address, a number or a name to be set in monospace.

    href: the file that it comes from, relative to the page; empty when there is none.
    """

    name: str
    value: str
    code: bool = False
    href: str = ""


class Sources:
    """The files of an evidence directory, for links to them: what is not there is not linked to."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def href(self, name: str) -> str:
        """Empty when there is no such file."""
        return _quoted(name) if name in self._names else ""

    def links(self, names: Sequence[str]) -> list[Link]:
        """Those that are there. A name ending in / stands for all files in that folder."""
        found = [
            known
            for name in names
            for known in (sorted(n for n in self._names if n.startswith(name)) if name.endswith("/") else [name])
        ]
        return [Link(printable(name), _quoted(name)) for name in dict.fromkeys(found) if name in self._names]


def _quoted(name: str) -> str:
    """For a link: what is no UTF-8 in a file's name is kept byte by byte."""
    return quote(os.fsencode(name))


class Reader:
    """Calls what reads evidence, and notes what could not be read."""

    def __init__(self, folder: str) -> None:
        self._prefix = f"{folder}/"
        self.problems: list[str] = []

    def attempt(self, make: Callable[[], T], otherwise: T) -> T:
        """What `make` returns, or `otherwise` after an EvidenceError, which is noted."""
        try:
            return make()
        except EvidenceError as problem:
            said = printable(problem.message.replace(self._prefix, ""))
            if said not in self.problems:
                self.problems.append(said)
            return otherwise


def shown(value: object) -> str:
    """A figure as text: strings as they are, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def size_text(size: int) -> str:
    """Bytes below 10 KiB, then KiB, MiB and GiB with one decimal."""
    if size < 10 * 1024:
        return f"{size} B"
    for unit, bytes_each in (("KiB", 1 << 10), ("MiB", 1 << 20)):
        if size < 1024 * bytes_each:
            return f"{size / bytes_each:.1f} {unit}"
    return f"{size / (1 << 30):.1f} GiB"


def span_text(size: int) -> str:
    """The same of what is mostly a power of two: 4 MiB, not 4.0 MiB."""
    return size_text(size).replace(".0 ", " ")
