"""The rig must be able to say no."""

from __future__ import annotations

import pytest

from tests.runs.conftest import GUESTS, Done

pytestmark = pytest.mark.vm


def test_every_sabotage_is_caught_by_exactly_the_right_checks(selftest_run: Done) -> None:
    rows = {row["id"]: (row["seen"], row["surprise"]) for row in selftest_run.document["sabotages"]}
    assert rows == {
        f"{scenario}@{guest}/debian-6.1": (["pgd-survives"], "")
        for scenario in ("overwritten-pgd", "flipped-bit")
        for guest in GUESTS
    }, selftest_run.err
    assert selftest_run.status == 0


def test_the_pre_2_6_19_overwrite_is_named_by_its_entries(selftest_run: Done) -> None:
    rows = (row for row in selftest_run.document["sabotages"] if row["id"].startswith("overwritten-pgd@"))
    entries = {row["id"].split("@")[1].split("/")[0]: row["entries"] for row in rows}
    assert len(entries["i386"]) == 1
    assert len(entries["pae"]) == 1
    assert entries["pae"][0] < 4
    assert entries["x86_64"]
    assert all(index < 256 for index in entries["x86_64"])  # the low half


def test_a_flipped_bit_is_named_by_its_entry(selftest_run: Done) -> None:
    flips = [row["entries"] for row in selftest_run.document["sabotages"] if row["id"].startswith("flipped-bit")]
    assert [len(entries) for entries in flips] == [1, 1, 1]
