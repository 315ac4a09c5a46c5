"""The bytes of pages that changed, before and after, side by side."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rig.evidence.reader import Evidence
from rig.memory.diff import changed_ranges
from rig.report.html.changes import Changed, is_unowned, page_at
from rig.report.html.page import Link, Sources
from rig.report.wording import plural, printable

LINE = 16  # bytes
LINES_EACH = 40  # of one page that changed, without the script
LINES = 1500  # of all pages together
WHOLE = 60  # pages that are there in full, for the script
SHOWN = 400  # pages at all


@dataclass(frozen=True)
class Piece:
    """Bytes in hex, a blank before each; of those that differ the sign instead of the blank."""

    text: str
    differs: bool


@dataclass(frozen=True)
class HexLine:
    address: str
    before: list[Piece]
    after: list[Piece]


@dataclass(frozen=True)
class PageBytes:
    """A page that changed in an interval. more: lines with changes that are not among `lines`.

    whole: its 4096 bytes before, base64; patch: what came instead, "offset:bytes" in hex, by blanks. Both are empty
    when they are left out.
    """

    id: str
    address: str
    interval: str
    owners: str
    bytes: str
    lines: list[HexLine]
    more: int
    whole: str
    patch: str
    files: list[Link]


@dataclass(frozen=True)
class Pages:
    """left_out: how many pages that changed are not among them. ids: by interval and physical address."""

    pages: list[PageBytes]
    left_out: int
    ids: Mapping[tuple[str, int], str]

    def href(self, interval: str, page: int) -> str:
        """A link to the page at a physical address as it changed in an interval; empty when it is not among them."""
        return f"#{self.ids[interval, page]}" if (interval, page) in self.ids else ""


NONE = Pages([], 0, {})


def pages(evidence: Evidence, changed: Sequence[Changed], sources: Sources) -> Pages:
    """What nobody owns comes first, and is left out last.

    :raise EvidenceError: a page was not kept
    """
    grouped: dict[tuple[str, int], list[Changed]] = defaultdict(list)
    for change in changed:
        for page in change.pages:
            grouped[change.interval, page].append(change)
    intervals = list(dict.fromkeys(change.interval for change in changed))
    order = sorted(grouped.items(), key=lambda group: not any(map(is_unowned, group[1])))
    ids = {(interval, page): f"page-{page:x}-{intervals.index(interval)}" for (interval, page), _ in order[:SHOWN]}
    found: list[PageBytes] = []
    budget = LINES
    for (interval, page), parts in order[:SHOWN]:
        before, after = (page_at(evidence, where, page) for where in (parts[0].before, parts[0].after))
        lines = _lines(page, before, after)
        shown = lines[: min(LINES_EACH, budget)]
        budget -= len(shown)
        ranges = changed_ranges(before, after)
        whole = len(found) < WHOLE
        found.append(
            PageBytes(
                id=ids[interval, page],
                address=f"{page:#x}",
                interval=interval,
                owners=printable(", ".join(dict.fromkeys(part.owner for part in parts))),
                bytes=plural(sum(size for _, size in ranges), "byte", "bytes"),
                lines=[HexLine(at, list(old), list(new)) for at, old, new in shown],
                more=len(lines) - len(shown),
                whole=base64.b64encode(before).decode() if whole else "",
                patch=" ".join(f"{at:x}:{after[at : at + size].hex()}" for at, size in ranges) if whole else "",
                files=sources.links([f"memory/{where}.pages.zst" for where in (parts[0].before, parts[0].after)]),
            )
        )
    return Pages(found, len(grouped) - len(found), ids)


def _lines(page: int, before: bytes, after: bytes) -> list[tuple[str, Iterator[Piece], Iterator[Piece]]]:
    """The lines of 16 bytes that differ."""
    old, new = (np.frombuffer(blob, np.uint8).reshape(-1, LINE) for blob in (before, after))
    differs = old != new
    return [
        (f"{page + row * LINE:08x}", _pieces(old[row], differs[row], "−"), _pieces(new[row], differs[row], "+"))
        for row in np.flatnonzero(differs.any(axis=1)).tolist()
    ]


def _pieces(line: NDArray[np.uint8], differs: NDArray[np.bool_], sign: str) -> Iterator[Piece]:
    edges = [0, *(np.flatnonzero(np.diff(differs)) + 1).tolist(), LINE]
    for start, end in pairwise(edges):
        other = bool(differs[start])
        text = " " + line[start:end].tobytes().hex(" ")
        yield Piece(text.replace(" ", sign) if other else text, other)
