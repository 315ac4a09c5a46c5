"""A whole address space at once, level by level with numpy.

Every table is read and decoded once for each level at which it is reached, however many entries point to it:
that bounds the work by levels x page frames, for tables that point to themselves or are garbage too. Listing
the translations could still blow up (a PML4 of entries that all point to itself has 2^36), so they are
counted first, and over `limit` each table's are listed only at the lowest address at which it appears.
Garbage in a large guest can lead to a hundred thousand tables, and each of them to 512 others: of one level
MOST_TABLES are read.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rig.errors import EvidenceError
from rig.memory.levels import (
    MODES,
    PERMISSIONS,
    PRESENT,
    Level,
    Mode,
    Words,
    allowed,
    canonical,
    flags,
    levels,
    page_address,
    root,
)
from rig.memory.physical import Memory, OutsideMemory
from rig.model import PagingMode

Rows = NDArray[np.int64]

_TABLES_AT_ONCE = 1024  # 4 MiB of tables decoded in one go
LIMIT = 8 << 20  # translations; 25 bytes each
MOST_TABLES = 1 << 14  # of one level: as many as LIMIT translations take, or 32 GiB in pages of 4 KiB
_SHOWN = 256  # tables outside memory of one level that get a problem of their own


class ProblemKind(enum.StrEnum):
    OUTSIDE_MEMORY = "outside-memory"  # entries point to a table that memory does not have
    RESERVED_BITS = "reserved-bits"  # present entries that the CPU would fault on
    SEVERAL_LEVELS = "several-levels"  # one page is a table of two levels: tables that form a loop, or garbage
    TOO_MANY = "too-many"  # more translations than the limit: repeated tables are in `aliases`
    TOO_MANY_TABLES = "too-many-tables"  # of a level: those at the lowest addresses were read, and no others


@dataclass(frozen=True)
class Problem:
    """Something wrong with the table page at physical address `table`, first reached at `virtual`.

    count: entries concerned (outside-memory: pointing there; reserved-bits: having them set; several-levels:
    the number of levels; too-many: all translations; too-many-tables: the tables that were not read).
    """

    kind: ProblemKind
    level: str
    table: int
    virtual: int
    count: int
    detail: str


@dataclass(frozen=True)
class TablePage:
    """A table reached: physical address, level (PML4, PDPT, PD, PT), lowest virtual address it serves."""

    address: int
    level: str
    virtual: int


@dataclass(frozen=True, eq=False)
class AddressSpace:
    """All that a root table maps.

    virtual (ascending), physical, size (bytes), flags (`Flags` values): one row a translation, arrays of one
    length. tables: by level from the root, then by address. count: translations in all, len(virtual) unless
    there is a too-many problem; only then has `aliases` rows (virtual, virtual of the listed place, bytes):
    from the first on, addresses translate as from the second on, but for the permissions of the levels above.
    """

    mode: PagingMode
    root: int
    virtual: Words
    physical: Words
    size: Words
    flags: NDArray[np.uint8]
    tables: tuple[TablePage, ...]
    problems: tuple[Problem, ...]
    count: int
    aliases: Words


@dataclass(frozen=True)
class _Entries:
    """Entries of many tables: row (of the table), index (in the table), value; sorted by row, then index."""

    row: Rows
    index: Rows
    value: Words

    def where(self, mask: NDArray[np.bool_]) -> _Entries:
        return _Entries(self.row[mask], self.index[mask], self.value[mask])


@dataclass(frozen=True)
class _Layer:
    """The tables of one level (ascending addresses), their valid entries. child: rows of the next layer."""

    level: Level
    address: Words
    first: Words  # lowest virtual address at which each table is reached, not sign-extended
    pages: _Entries
    links: _Entries
    child: Rows


def walk(
    memory: Memory,
    mode: PagingMode,
    cr3: int,
    *,
    pse: bool = True,
    nx: bool = True,
    maxphyaddr: int = 52,
    limit: int = LIMIT,
) -> AddressSpace:
    """Everything that CR3 maps. What is wrong with the tables is told in `problems`, never raised.

    Only the tables need to be in memory, not the pages. Options as for `translate`.
    """
    shape = MODES[mode]
    layers, problems = _read_layers(memory, shape, root(mode, cr3), levels(mode, pse=pse, nx=nx, maxphyaddr=maxphyaddr))
    counts = _translations_below(layers)
    total = int(counts[0].sum())
    if total > limit:
        detail = f"{total} translations, over the limit of {limit}: each table's are listed once"
        problems.append(Problem(ProblemKind.TOO_MANY, layers[0].level.table, root(mode, cr3), 0, total, detail))
    virtual, physical, size, flag, aliases = _list_translations(layers, counts, once=total > limit)
    order = np.argsort(virtual, kind="stable")
    return AddressSpace(
        mode=mode,
        root=root(mode, cr3),
        virtual=canonical(shape, virtual[order]),
        physical=physical[order],
        size=size[order],
        flags=flag[order],
        tables=tuple(
            TablePage(int(address), layer.level.table, int(first))
            for layer in layers
            for address, first in zip(layer.address, canonical(shape, layer.first), strict=True)
        ),
        problems=tuple(problems + _several_levels(shape, layers)),
        count=total,
        aliases=np.column_stack([canonical(shape, aliases[:, 0]), canonical(shape, aliases[:, 1]), aliases[:, 2]]),
    )


def require_all_read(space: AddressSpace) -> AddressSpace:
    """The same. Raises EvidenceError when it has more tables than are read: nothing can be said of all it maps."""
    for problem in space.problems:
        if problem.kind is ProblemKind.TOO_MANY_TABLES:
            raise EvidenceError(f"the tables at {space.root:#x} can't be followed: {problem.detail}")
    return space


# ---------------------------------------------------------------- reading the tables


def _read_layers(
    memory: Memory, shape: Mode, root_address: int, all_levels: tuple[Level, ...]
) -> tuple[list[_Layer], list[Problem]]:
    """Read every table once for each level. A layer's tables are those that memory has."""
    layers: list[_Layer] = []
    problems: list[Problem] = []
    address = np.array([root_address], np.uint64)
    first, pointing = np.zeros(1, np.uint64), np.ones(1, np.int64)
    for level in all_levels:
        found, there = _present_entries(memory, shape, level, address[:MOST_TABLES])
        problems += _not_there(shape, level, address, first, pointing, there)
        there = np.concatenate([there, np.zeros(len(address) - len(there), np.bool_)])
        if layers:
            layers[-1] = _without_lost(layers[-1], there)
        address, first = address[there], first[there]
        mask, expected = level.leaf.value
        is_page = (found.value & mask) == expected
        wrong = found.value & np.where(is_page, np.uint64(level.page_reserved), np.uint64(level.reserved))
        problems += _reserved_bits(shape, level, address, first, found.where(wrong != 0))
        pages, links = found.where(is_page & (wrong == 0)), found.where(~is_page & (wrong == 0))
        below, child = np.unique(links.value & level.frame, return_inverse=True)
        layers.append(_Layer(level, address, first, pages, links, child.astype(np.int64)))
        reached = first[links.row] + (links.index.astype(np.uint64) << level.shift)
        first = np.full(len(below), np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(first, child, reached)
        address, pointing = below, np.bincount(child, minlength=len(below))
    return layers, problems


def _present_entries(memory: Memory, shape: Mode, level: Level, addresses: Words) -> tuple[_Entries, NDArray[np.bool_]]:
    """The present entries of the tables that memory has, and which it has. Rows count only those."""
    width, size = 1 << level.bits, shape.table_size(level)
    there = np.ones(len(addresses), np.bool_)
    parts: list[_Entries] = []
    base = 0
    for start in range(0, len(addresses), _TABLES_AT_ONCE):
        raw: list[bytes] = []
        for i, address in enumerate(addresses[start : start + _TABLES_AT_ONCE].tolist(), start):
            try:
                raw.append(memory.read(address, size))
            except OutsideMemory:
                there[i] = False
        words = np.frombuffer(b"".join(raw), dtype=f"<u{shape.entry_size}")
        at = np.flatnonzero(words & PRESENT)
        parts.append(_Entries(at // width + base, at % width, words[at].astype(np.uint64)))
        base += len(raw)
    if not parts:
        nothing = np.zeros(0, np.int64)
        return _Entries(nothing, nothing, nothing.astype(np.uint64)), there
    return _Entries(
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.value for part in parts]),
    ), there


def _without_lost(layer: _Layer, there: NDArray[np.bool_]) -> _Layer:
    """The layer without links to tables that are not there; child rows renumbered."""
    kept = there[layer.child]
    rows = np.cumsum(there) - 1
    return _Layer(
        layer.level, layer.address, layer.first, layer.pages, layer.links.where(kept), rows[layer.child[kept]]
    )


def _not_there(
    shape: Mode, level: Level, address: Words, first: Words, pointing: Rows, there: NDArray[np.bool_]
) -> list[Problem]:
    """A problem for each table outside memory, the last one for many of them; and one for those that were not read."""

    def problem(kind: ProblemKind, i: int, count: int, detail: str) -> Problem:
        return Problem(kind, level.table, int(address[i]), int(canonical(shape, int(first[i]))), count, detail)

    absent = np.flatnonzero(~there)
    outside = ProblemKind.OUTSIDE_MEMORY
    found = [
        problem(outside, i, int(pointing[i]), f"the {level.table} at {int(address[i]):#x} is outside memory")
        for i in absent[:_SHOWN].tolist()
    ]
    if len(rest := absent[_SHOWN:]):
        words = f"the {level.table} at {int(address[rest[0]]):#x} and {len(rest) - 1} others are outside memory"
        found.append(problem(outside, int(rest[0]), int(pointing[rest].sum()), words))
    if unread := len(address) - len(there):
        words = f"{len(address)} tables {level.table}, of which {len(there)} were read: this is garbage"
        found.append(problem(ProblemKind.TOO_MANY_TABLES, len(there), unread, words))
    return found


def _reserved_bits(shape: Mode, level: Level, address: Words, first: Words, wrong: _Entries) -> list[Problem]:
    """One problem for each table that has entries with reserved bits set, showing the first of them."""
    rows, starts, counts = np.unique(wrong.row, return_index=True, return_counts=True)
    return [
        Problem(
            ProblemKind.RESERVED_BITS,
            level.table,
            int(address[row]),
            int(canonical(shape, int(first[row]) + (int(wrong.index[start]) << level.shift))),
            int(count),
            f"reserved bits set at {level.name} [{int(wrong.index[start])}] ({int(wrong.value[start]):#x})",
        )
        for row, start, count in zip(rows, starts, counts, strict=True)
    ]


def _several_levels(shape: Mode, layers: list[_Layer]) -> list[Problem]:
    """One problem for each page that is a table of more than one level.

    PAE's PDPT is 32 bytes of a page, so pages are compared, not addresses.
    """
    reached: defaultdict[int, list[tuple[_Layer, int]]] = defaultdict(list)
    for layer in layers:
        frames, rows = np.unique(layer.address >> 12, return_index=True)
        for frame, row in zip(frames.tolist(), rows.tolist(), strict=True):
            reached[frame].append((layer, row))
    return [
        Problem(
            ProblemKind.SEVERAL_LEVELS,
            at[0][0].level.table,
            int(at[0][0].address[at[0][1]]),
            int(canonical(shape, int(at[0][0].first[at[0][1]]))),
            len(at),
            f"the page at {frame << 12:#x} is a table of several levels:"
            f" {', '.join(layer.level.table for layer, _ in at)}",
        )
        for frame, at in reached.items()
        if len(at) > 1
    ]


# ---------------------------------------------------------------- listing the translations


def _translations_below(layers: list[_Layer]) -> list[Rows]:
    """For each layer, how many translations each of its tables leads to."""
    counts: list[Rows] = []
    for layer in reversed(layers):
        own = np.bincount(layer.pages.row, minlength=len(layer.address))
        if counts:
            np.add.at(own, layer.links.row, counts[-1][layer.child])
        counts.append(own)
    return counts[::-1]


def _list_translations(
    layers: list[_Layer], counts: list[Rows], *, once: bool
) -> tuple[Words, Words, Words, NDArray[np.uint8], Words]:
    """(virtual, physical, size, flags, aliases), not sorted. once: each table only where first reached."""
    columns: list[tuple[Words, Words, Words, NDArray[np.uint8]]] = []
    aliases = [np.zeros((0, 3), np.uint64)]
    # The places at which this level's tables appear, in ascending order of virtual address.
    row = np.flatnonzero(counts[0])
    virtual, permitted = np.zeros(len(row), np.uint64), np.full(len(row), PERMISSIONS, np.uint64)
    for depth, layer in enumerate(layers):
        level = layer.level
        place, entry = _expand(row, layer.pages.row, len(layer.address))
        value = layer.pages.value[entry]
        columns.append(
            (
                virtual[place] + (layer.pages.index[entry].astype(np.uint64) << level.shift),
                page_address(level, value),
                np.full(len(value), level.span, np.uint64),
                flags(permitted[place] & allowed(level, value), value).astype(np.uint8),
            )
        )
        if depth + 1 == len(layers):
            break
        fruitful = counts[depth + 1][layer.child] > 0  # places without translations could be far too many
        links, child = layer.links.where(fruitful), layer.child[fruitful]
        place, entry = _expand(row, links.row, len(layer.address))
        virtual = virtual[place] + (links.index[entry].astype(np.uint64) << level.shift)
        permitted = permitted[place] & allowed(level, links.value[entry])
        row = child[entry]
        if once:
            repeated = np.ones(len(row), np.bool_)
            _, firsts, back = np.unique(row, return_index=True, return_inverse=True)
            repeated[firsts] = False
            original = virtual[firsts][back]
            span = np.full(len(row), level.span, np.uint64)
            aliases.append(np.column_stack([virtual, original, span])[repeated])
            virtual, permitted, row = virtual[~repeated], permitted[~repeated], row[~repeated]
    virtuals, physicals, sizes, flag = (np.concatenate(column) for column in zip(*columns, strict=True))
    return virtuals, physicals, sizes, flag, np.concatenate(aliases)


def _expand(rows: Rows, entry_rows: Rows, tables: int) -> tuple[Rows, Rows]:
    """Pair each place (by its table's row) with each entry of that table: (place numbers, entry numbers)."""
    per_table = np.bincount(entry_rows, minlength=tables)
    start = np.cumsum(per_table) - per_table
    lengths = per_table[rows]
    place = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(len(place)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return place, start[rows][place] + within
