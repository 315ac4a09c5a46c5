"""The figures of two results side by side: those that differ, and by how much. Pure.

A figure is known by the way to it: "owners[crash notes of CPU 0].bytes". Rows of a list are known by what names them,
so that a row that is new doesn't shift all that follow.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rig.report.wording import number, printable

# Keys of figures that are addresses, or registers that hold some: these differ from boot to boot.
PLACES = frozenset((
    "address", "addresses", "base", "cr2", "cr3", "destination", "dom0_vmcoreinfo", "end", "holes", "idle", "idle_pgd",
    "large_pages_beyond", "next", "not_zero", "page", "path", "pc", "physical", "physical_after", "physical_before",
    "pseudo_physical", "register", "registers", "root", "source", "start", "stack_low", "virtual",
))  # fmt: skip
# Keys of figures whose bits count, not their size.
BITS = frozenset(("after", "before", "cr0", "cr4", "efer", "flags", "limit", "rflags", "selector"))
# What names a row, the first of these that it has.
NAMES = (("index",), ("owner", "interval"), ("from", "to"), ("checkpoint",), ("name",), ("use",), ("kind",))
_PARTS = re.compile(r"\.|\[[^]]*\]\.?")  # what stands between the parts of a key
_ADDRESS = re.compile(r"0x[0-9a-f]{5,}")


@dataclass(frozen=True)
class FigureChange:
    """before, after: as in the result; None on the side that has none, named by `only` ("after": it is new).

    relative: (after - before) / before, of numbers only. place: an address, or what an address is part of.
    """

    key: str
    before: Any
    after: Any
    only: str = ""
    relative: float | None = None
    place: bool = False


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[FigureChange, ...]:
    """Of two sets of figures those that differ, in their order, new ones last."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return tuple(
        _change(key, key in old, old.get(key), key in new, new.get(key))
        for key in old | new
        if key not in old or key not in new or old[key] != new[key]
    )


def _change(key: str, had: bool, before: Any, has: bool, after: Any) -> FigureChange:
    place = _is_place(key, before, after)
    only = "" if had and has else "before" if had else "after"
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (before, after))
    counts = numbers and not place and _PARTS.split(key)[-1] not in BITS
    relative = (after - before) / before if counts and before else None
    return FigureChange(key, before, after, only, relative, place)


def _is_place(key: str, before: Any, after: Any) -> bool:
    if any(part in PLACES or _ADDRESS.fullmatch(part) for part in _PARTS.split(key)):
        return True
    both = isinstance(before, str) and isinstance(after, str)
    return both and _ADDRESS.sub("?", before) == _ADDRESS.sub("?", after)


def _leaves(figures: Mapping[str, Any], way: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of each value that is no object; a list of plain values is one, an empty list none."""
    for key, value in figures.items():
        if isinstance(value, list | tuple) and not value:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{way}{key}.")
        elif isinstance(value, list | tuple) and all(isinstance(row, Mapping) for row in value):
            for name, row in zip(_names(value), value, strict=True):
                yield from _leaves(row, f"{way}{key}[{name}].")
        else:
            yield f"{way}{key}", list(value) if isinstance(value, tuple) else value


def _names(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What each row is called; those called the same are numbered from the second on."""
    seen: Counter[str] = Counter()
    for at, row in enumerate(rows):
        keys = next((keys for keys in NAMES if all(key in row for key in keys)), ())
        name = ", ".join(str(row[key]) for key in keys) or str(at)
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} #{seen[name]}"


# ---------------------------------------------------------------- in words


def value_texts(change: FigureChange) -> tuple[str, str]:
    """Before and after as text, on one line; empty on the side that has none."""
    wide = change.place or _PARTS.split(change.key)[-1] in BITS
    before, after = (
        "" if change.only == side else value for side, value in (("after", change.before), ("before", change.after))
    )
    return value_text(before, wide), value_text(after, wide)


def value_text(value: Any, wide: bool = False) -> str:
    """wide: whole numbers are addresses or bits, so they are shown in hex."""
    match value:
        case str() if re.fullmatch("[0-9a-f]{64}", value):
            return f"{value[:12]}…"  # a hash, of which so many digits tell it from others
        case str():
            return printable(value)
        case bool() | None:
            return json.dumps(value)
        case int():
            return f"{value:#x}" if wide else number(value)
        case float():
            return f"{value:.7g}"
    return printable(json.dumps(value, ensure_ascii=False, default=str))


def relative_text(relative: float | None) -> str:
    """ "+12.6 %"; what would be rounded to nothing with the power of ten it has."""
    if relative is None:
        return ""
    percent = relative * 100
    return f"{percent:+.1f} %" if abs(percent) >= 0.05 or not percent else f"{percent:+.0e} %"
