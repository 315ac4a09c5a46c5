"""Which physical addresses a set of tables maps to themselves, and which wrongly. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rig.memory.levels import MODES, Flags, Words
from rig.memory.walk import AddressSpace

Span = tuple[int, int]  # [start, end), bytes


@dataclass(frozen=True)
class Coverage:
    """How far [start, end) is mapped to itself. covered: bytes; holes: what isn't; page_sizes: ascending, bytes.

    read_only, no_execute: whether a part of it can't be written (with CR0.WP=1), or can't be executed (with NX).
    """

    covered: int
    holes: tuple[Span, ...]
    page_sizes: tuple[int, ...]
    read_only: bool
    no_execute: bool


@dataclass(frozen=True)
class Wrong:
    """A page that is mapped elsewhere, where it had to be mapped to itself."""

    virtual: int
    physical: int
    size: int


@dataclass(frozen=True, eq=False)
class IdentityMap:
    """The translations with virtual == physical, one row each, ascending. Arrays of one length."""

    start: Words
    end: Words
    flags: np.ndarray[tuple[int], np.dtype[np.uint8]]

    @classmethod
    def of(cls, space: AddressSpace) -> IdentityMap:
        same = space.virtual == space.physical
        return cls(space.virtual[same], space.virtual[same] + space.size[same], space.flags[same])

    def cover(self, start: int, end: int) -> Coverage:
        """How far [start, end) is mapped to itself."""
        low, high = self._rows(start, end)
        spans = [(max(a, start), min(b, end)) for a, b in _merged(self._spans(low, high))]
        flags = self.flags[low:high]
        return Coverage(
            covered=sum(b - a for a, b in spans),
            holes=tuple(subtract([(start, end)], spans)),
            page_sizes=tuple(np.unique(self.end[low:high] - self.start[low:high]).tolist()),
            read_only=bool(np.any(flags & Flags.WRITABLE == 0)),
            no_execute=bool(np.any(flags & Flags.EXECUTABLE == 0)),
        )

    def spans(self) -> list[Span]:
        """All that is mapped to itself, as few spans as possible, ascending."""
        return _merged(self._spans(0, len(self.start)))

    def large_over(self, spans: Iterable[Span], smallest: int) -> list[Span]:
        """The pages larger than `smallest` bytes that touch one of the spans, ascending."""
        found: set[Span] = set()
        for start, end in spans:
            low, high = self._rows(start, end)
            found.update(s for s in self._spans(low, high) if s[1] - s[0] > smallest)
        return sorted(found)

    def user_pages(self) -> int:
        """How many of the pages user mode may access."""
        return int(np.count_nonzero(self.flags & Flags.USER))

    def _rows(self, start: int, end: int) -> tuple[int, int]:
        """The rows that overlap [start, end): they don't overlap each other, so both columns ascend."""
        low = np.searchsorted(self.end, np.uint64(start), side="right")
        return int(low), int(np.searchsorted(self.start, np.uint64(end), side="left"))

    def _spans(self, low: int, high: int) -> list[Span]:
        return list(zip(self.start[low:high].tolist(), self.end[low:high].tolist(), strict=True))


def wrong(space: AddressSpace, needed: Iterable[Span], but_for: Iterable[int]) -> list[Wrong]:
    """Pages in `needed` that lead elsewhere; in 64-bit modes, whose kernel has the upper half for itself, any page of
    the lower half. but_for: physical pages that may be mapped anywhere."""
    elsewhere = (space.virtual != space.physical) & ~np.isin(space.physical, np.fromiter(but_for, np.uint64))
    bits = MODES[space.mode].virtual_bits
    if bits > 32:
        concerned = space.virtual < np.uint64(1 << bits - 1)
    else:
        concerned = np.zeros(len(space.virtual), np.bool_)
        for start, end in needed:
            concerned |= (space.virtual < np.uint64(end)) & (space.virtual + space.size > np.uint64(start))
    rows = np.flatnonzero(elsewhere & concerned)
    columns = (column[rows].tolist() for column in (space.virtual, space.physical, space.size))
    return [Wrong(*row) for row in zip(*columns, strict=True)]


def subtract(spans: Sequence[Span], holes: Sequence[Span]) -> Iterator[Span]:
    """What of `spans` lies in none of the `holes`. Both ascending, without overlaps among themselves."""
    for start, end in spans:
        for low, high in holes:
            if high <= start or low >= end:
                continue
            if start < low:
                yield start, low
            start = high
        if start < end:
            yield start, end


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Spans in ascending order, those that meet joined."""
    found: list[Span] = []
    for start, end in spans:
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
