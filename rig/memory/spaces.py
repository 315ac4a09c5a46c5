"""Two versions of an address space, translation by translation. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rig.memory.levels import Flags, Words
from rig.memory.walk import AddressSpace

_PERMISSIONS = np.uint8(Flags.WRITABLE | Flags.USER | Flags.EXECUTABLE | Flags.GLOBAL)
_NOWHERE = np.uint64(2**64 - 1)

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Moved:
    """One place where the two differ. before, after: physical address, None where nothing is mapped."""

    virtual: int
    before: int | None
    after: int | None


@dataclass(frozen=True)
class Difference:
    """How one address space differs from an earlier version of it.

    lost, redirected, permissions: translations of the earlier version of which a part is no longer mapped; leads to
    another physical address; leads to the same with other permissions (R/W, U/S, XD, G). A translation may count in
    several of them. added: stretches that are mapped only now. examples: the first few of each kind.
    """

    lost: int = 0
    redirected: int = 0
    permissions: int = 0
    added: int = 0
    examples: tuple[Moved, ...] = ()


def compare(before: AddressSpace, after: AddressSpace, examples: int = 4) -> Difference:
    """All differences but for accessed and dirty bits. Exact for pages that were split or joined, too.

    Both map in straight pieces, so it is enough to look at each address where a piece begins or the one before it
    ended. Aliases (see AddressSpace.count) are not looked at.
    """
    points = np.unique(np.concatenate([a for s in (before, after) for a in (s.virtual, s.virtual + s.size)]))
    old, new = _Lookup(before, points), _Lookup(after, points)
    lost = old.mapped & ~new.mapped
    both = old.mapped & new.mapped
    redirected = both & (old.physical != new.physical)
    permissions = both & ~redirected & (old.permissions != new.permissions)
    added = ~old.mapped & new.mapped
    shown = [
        Moved(int(points[i]), _address(old, i), _address(new, i))
        for kind in (redirected, lost, added)
        for i in np.flatnonzero(kind)[:examples].tolist()
    ]
    return Difference(
        lost=old.rows(lost),
        redirected=old.rows(redirected),
        permissions=old.rows(permissions),
        added=int(np.count_nonzero(added)),
        examples=tuple(shown),
    )


def worst(found: Iterable[Difference]) -> Difference:
    """The largest of each count, and the examples of the first that has any."""
    all_ = [Difference(), *found]
    return Difference(
        lost=max(d.lost for d in all_),
        redirected=max(d.redirected for d in all_),
        permissions=max(d.permissions for d in all_),
        added=max(d.added for d in all_),
        examples=next((d.examples for d in all_ if d.examples), ()),
    )


class _Lookup:
    """What a space maps at some addresses. physical is _NOWHERE and permissions are 0 where nothing is mapped."""

    def __init__(self, space: AddressSpace, points: Words) -> None:
        row = np.searchsorted(space.virtual, points, side="right").astype(np.int64) - 1
        self.mapped: Mask = np.zeros(len(points), np.bool_)
        self.row = np.maximum(row, 0)
        self.physical = np.full(len(points), _NOWHERE)
        self.permissions = np.zeros(len(points), np.uint8)
        if not len(space.virtual):
            return
        into = points - space.virtual[self.row]
        self.mapped = (row >= 0) & (into < space.size[self.row])
        self.physical[self.mapped] = (space.physical[self.row] + into)[self.mapped]
        self.permissions[self.mapped] = (space.flags[self.row] & _PERMISSIONS)[self.mapped]

    def rows(self, where: Mask) -> int:
        """How many translations the marked points lie in."""
        return len(np.unique(self.row[where]))


def _address(found: _Lookup, index: int) -> int | None:
    return int(found.physical[index]) if found.mapped[index] else None
