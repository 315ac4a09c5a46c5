"""Whose memory is it? Names an owner for every changed byte, as a kernel developer would. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

UNACCOUNTED = "unaccounted"


@dataclass(frozen=True)
class Claim:
    """Bytes [start, end) of physical memory and who owns them. The first claim on a byte wins."""

    start: int
    end: int
    owner: str


@dataclass(frozen=True)
class Change:
    """`length` changed bytes at a physical address, seen between two checkpoints."""

    interval: str  # "panic -> machine-kexec"
    address: int
    length: int


@dataclass(frozen=True)
class Part:
    """`length` bytes of a change that have one owner. address: physical."""

    interval: str
    owner: str
    address: int
    length: int


@dataclass(frozen=True)
class Entry:
    """A line of the ledger. addresses: the first few places, physical."""

    owner: str
    interval: str
    bytes: int
    pages: int
    addresses: tuple[str, ...]


def split(change: Change, claims: Iterable[Claim]) -> Iterator[tuple[str, int, int]]:
    """(owner, address, length) for a change, cut where owners meet; what nobody claims is UNACCOUNTED."""
    todo = [(change.address, change.address + change.length)]
    for claim in claims:
        rest: list[tuple[int, int]] = []
        for start, end in todo:
            low, high = max(start, claim.start), min(end, claim.end)
            if low >= high:
                rest.append((start, end))
                continue
            yield claim.owner, low, high - low
            rest += [(s, e) for s, e in ((start, low), (high, end)) if s < e]
        if not (todo := rest):
            return
    for start, end in todo:
        yield UNACCOUNTED, start, end - start


def divide(changes: Iterable[Change], claims: Iterable[Claim]) -> list[Part]:
    """All changes, in their order, cut as split() does; of one change the parts by address."""
    claims = tuple(claims)
    return [
        Part(change.interval, *part)
        for change in changes
        for part in sorted(split(change, claims), key=lambda part: part[1])
    ]


def account(parts: Iterable[Part], places: int = 6) -> list[Entry]:
    """The ledger: one entry for each owner and interval, the largest first within its interval."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    order: dict[str, int] = {}
    for part in parts:
        order.setdefault(part.interval, len(order))
        found[part.interval, part.owner].append((part.address, part.length))
    entries = [
        Entry(
            owner,
            interval,
            sum(length for _, length in spots),
            len({page for a, n in spots for page in range(a >> 12, (a + n - 1 >> 12) + 1)}),
            tuple(f"{a:#x}+{n}" for a, n in sorted(spots)[:places]),
        )
        for (interval, owner), spots in found.items()
    ]
    return sorted(entries, key=lambda e: (order[e.interval], -e.bytes, e.owner))
