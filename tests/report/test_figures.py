"""Figures side by side."""

from __future__ import annotations

from typing import Any

import pytest

from rig.report.figures import FigureChange, differing, relative_text, value_texts
from tests.report import forge


def by_key(before: dict[str, Any], after: dict[str, Any]) -> dict[str, FigureChange]:
    return {change.key: change for change in differing(before, after)}


def test_only_what_differs_is_told() -> None:
    assert differing(forge.pgd_figures(), forge.pgd_figures()) == ()
    (change,) = differing(forge.pgd_figures(), forge.pgd_figures(bytes_changed=8))
    assert (change.key, change.before, change.after, change.relative) == ("bytes_changed", 0, 8, None)


def test_a_new_row_does_not_shift_the_others() -> None:
    def owner(name: str, size: int) -> dict[str, Any]:
        return {"owner": name, "interval": "i", "bytes": size}

    before = {"owners": [owner("notes", 100), owner("stack", 50), owner("stack", 7)]}
    after = {"owners": [owner("new", 1), owner("notes", 112), owner("stack", 50), owner("stack", 8)]}
    changes = by_key(before, after)
    assert {key: (change.before, change.after) for key, change in changes.items() if not change.only} == {
        "owners[notes, i].bytes": (100, 112),
        "owners[stack, i #2].bytes": (7, 8),
    }
    assert changes["owners[notes, i].bytes"].relative == pytest.approx(0.12)
    assert {key: change.only for key, change in changes.items() if change.only} == {
        "owners[new, i].owner": "after",
        "owners[new, i].interval": "after",
        "owners[new, i].bytes": "after",
    }


def test_entries_that_changed_on_one_side_only() -> None:
    changes = by_key(dict(forge.SURVIVED.figures), dict(forge.OVERWRITTEN.figures))
    assert "entries_changed" not in changes  # the empty list is no figure that has gone
    assert changes["entries_changed[255].after"].only == "after"
    assert value_texts(changes["entries_changed[0].after"]) == ("", "0x1fe93063")


@pytest.mark.parametrize(
    ("key", "before", "after", "place", "texts"),
    [
        ("cr3", 0x1000, 0x2000, True, ("0x1000", "0x2000")),
        ("vmcore", {"physical": 4096}, {"physical": 8192}, True, ("0x1000", "0x2000")),
        ("writers", {"0x14001075": 4}, {}, True, ("0x4", "")),
        ("instruction", "ljmpl $0x60:$0xd605879c", "ljmpl $0x60:$0xc1026be2", True, None),
        ("instruction", "ljmpl $0x60:$0xd605879c", "jmp 0xc1026be2", False, None),
        ("cr0", 0x33, 0x10033, False, ("0x33", "0x10033")),
        ("bytes", 10, 65536, False, ("10", "65,536")),
        ("ok", True, False, False, ("true", "false")),
        ("problem", None, "\x1b[2J", False, ("null", "\\x1b[2J")),
        ("sha256", "ab" * 32, "cd" * 32, False, ("abababababab…", "cdcdcdcdcdcd…")),
        ("code", [97, 489], [97, 480], False, ("[97, 489]", "[97, 480]")),
    ],
)
def test_addresses_bits_and_numbers(key: str, before: Any, after: Any, place: bool, texts: Any) -> None:
    (change,) = differing({key: before}, {key: after})
    assert change.place is place
    assert change.relative is None or key == "bytes"
    assert texts is None or value_texts(change) == texts


@pytest.mark.parametrize(
    ("relative", "text"), [(None, ""), (0.126, "+12.6 %"), (-0.5, "-50.0 %"), (1.2e-8, "+1e-06 %"), (0.0, "+0.0 %")]
)
def test_relative(relative: float | None, text: str) -> None:
    assert relative_text(relative) == text
