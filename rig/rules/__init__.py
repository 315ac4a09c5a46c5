"""Rules that values from files are held to, after msgspec has seen to their types. Pure.

Stated in tables: type -> key -> rule, where the key "" is for the object as a whole. rig.rules.words has those for text
that becomes part of another language, rig.rules.numbers those for what no machine could have.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

Rule = Callable[[Any], Iterable[str]]  # what is wrong with a value, in words; nothing when it keeps to the rule
Table = Mapping[type, Mapping[str, Rule]]

DEPTH = 32  # of lists and objects in each other: what the rig writes has less than ten
_SCALARS = frozenset({str, int, float, bool, type(None)})
_LONGEST = 80  # characters of a value, or of where it is, in a complaint


def fits(holds: Callable[[Any], object], valid: str) -> Rule:
    """valid: what a value is for which `holds` is true."""
    return lambda value: () if holds(value) else (f"{repr(value)[:_LONGEST]} is not {valid}",)


def matches(pattern: str, valid: str) -> Rule:
    """All of a text."""
    return fits(re.compile(pattern).fullmatch, valid)


def optional(rule: Rule) -> Rule:
    """The rule, unless a text is empty."""
    return lambda text: rule(text) if text else ()


def each(rule: Rule) -> Rule:
    """The rule, for every item of a list."""
    return lambda values: itertools.chain.from_iterable(map(rule, values))


def own(value: object, table: Table) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with its value) of one object. None has no rules."""
    for key, rule in table.get(type(value), {}).items():
        told = getattr(value, key) if key else value
        if told is not None:
            for complaint in rule(told):
                yield key, complaint


def everywhere(
    value: object, table: Table, where: str = "", closed: Collection[type] = ()
) -> Iterator[tuple[str, str]]:
    """The same of an object and of all in it, model objects or plain JSON; the keys say where from the outermost on.

    closed: types whose insides have no rules but their own. Complains about what is nested deeper than DEPTH as well.
    """
    todo: list[tuple[object, str, int]] = [({where: value}, "", 0)]
    while todo:
        holder, outer, depth = todo.pop()
        if depth > DEPTH:
            yield f"{outer[:_LONGEST]}...", f"nested deeper than {DEPTH}"
            continue
        for name, inner in _inside(holder):
            kind = type(inner)
            if kind in table:
                for key, complaint in own(inner, table):
                    yield _named(_named(outer, name), key), complaint
            if kind not in _SCALARS and kind not in closed:
                todo.append((inner, _named(outer, name), depth + 1))


def _named(outer: str, name: str | int) -> str:
    return f"{outer}[{name}]" if isinstance(name, int) else f"{outer}.{name}".strip(".")


def _inside(value: object) -> Iterable[tuple[str | int, Any]]:
    """What it holds, and how it is got at."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple):
        return enumerate(value)
    kind: type = type(value)
    return [(field.name, getattr(value, field.name)) for field in _fields(kind)]


@functools.cache
def _fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
