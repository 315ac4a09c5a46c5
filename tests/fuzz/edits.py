"""Structured damage: bytes that a fuzzer makes up, read as edits of a JSON document, so that most of it stays valid."""

from __future__ import annotations

import copy
from typing import Any

EDIT = 4  # bytes: where (2), how, with what
MOST = 64  # edits of a document: with each it may grow, and what is in it is looked through anew
# Values that a place may get instead: the ends of what numbers can be, other types, words for people and terminals.
VALUES: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 63, 64, 4095, 4096, 4097, 0x5000, 0x800000, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 52) - 1,
    1 << 52, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 63), 10**300, 0.0, -0.5, 1e308, -1e308, 0.1,
    True, False, None,
    "", "x", "..", "../../../../etc/passwd", "/etc/passwd", "\x00", "\x1b[2J\x1b]0;title\x07", "\x9b31m", "\u202egnp",
    "<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>", "javascript:alert(1)", "{{ 7*7 }}", "[bold]x[/]",
    "%s%n", "panic", "handover", "crash-kernel", "machine-kexec", "died", "pae", "2-level", "4-level", "5-level",
    "fail", "pass", "skip", "error", "i386", "amd64", "raw", "makedumpfile", "kexec_load", "x" * 5000, "a\nb\r\nc\td",
    [], [0], [[]], {}, {"a": 1}, [None], [{}], [[1, 2, 3]], [{"index": 1}], [0, 4096], [[0, 4096]],
)  # fmt: skip


def places(document: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every value in it, containers before what is in them.

    No generator: edits make documents deep, and each value would be handed up through all that is around it.
    """
    found: list[tuple[Any, Any]] = []

    def look_into(container: Any) -> None:
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            found.append((container, key))
            if isinstance(value, dict | list):
                look_into(value)

    look_into(document)
    return found


def edited(document: Any, data: bytes) -> Any:
    """A copy of a JSON document, with each EDIT bytes of `data` carried out, up to MOST: another value, none,
    twice, a bit off.
    """
    new = copy.deepcopy(document)
    for at in range(0, min(len(data), MOST * EDIT) - EDIT + 1, EDIT):
        where, how, what = int.from_bytes(data[at : at + 2], "little"), data[at + 2], data[at + 3]
        if not (known := places(new)):
            break
        container, key = known[where % len(known)]
        _edit(container, key, how, what)
    return new


def _edit(container: Any, key: Any, how: int, what: int) -> None:
    value = container[key]
    match how % 8:
        case 0:
            del container[key]
        case 1 if isinstance(container, list):
            container.insert(key, copy.deepcopy(value))
        case 2 if isinstance(value, int) and not isinstance(value, bool):
            container[key] = value ^ 1 << what % 64
        case 3 if isinstance(value, int) and not isinstance(value, bool):
            container[key] = value + what - 128
        case 4 if isinstance(value, list) and value:
            container[key] = value * (what % 16)
        case 5 if isinstance(container, dict):
            container[VALUES[what % len(VALUES)] if isinstance(VALUES[what % len(VALUES)], str) else "new"] = value
        case _:
            container[key] = copy.deepcopy(VALUES[what % len(VALUES)])
