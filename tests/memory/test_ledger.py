"""Owners of changed bytes."""

from __future__ import annotations

from rig.memory.ledger import UNACCOUNTED, Change, Claim, account, divide, split

NOTES = Claim(0x1000, 0x1010, "crash notes")
DATA = Claim(0x1000, 0x2000, "kernel .data")


def test_a_change_is_cut_where_owners_meet() -> None:
    assert list(split(Change("i", 0xFF8, 0x20), [NOTES, DATA])) == [
        ("crash notes", 0x1000, 0x10),
        ("kernel .data", 0x1010, 8),
        (UNACCOUNTED, 0xFF8, 8),
    ]


def test_a_claim_in_the_middle_leaves_both_sides() -> None:
    inside = Claim(0x10, 0x12, "a")
    assert sorted(split(Change("i", 0x0E, 6), [inside])) == [
        ("a", 0x10, 2),
        (UNACCOUNTED, 0x0E, 2),
        (UNACCOUNTED, 0x12, 2),
    ]


def test_the_first_claim_wins() -> None:
    change = [Change("i", 0x1004, 4)]
    assert [part.owner for part in divide(change, [NOTES, DATA])] == ["crash notes"]
    assert [part.owner for part in divide(change, [DATA, NOTES])] == ["kernel .data"]


def test_the_parts_of_a_change_are_by_address() -> None:
    changes = [Change("i", 0x1FF8, 0x10), Change("i", 0xFF8, 0x20)]
    assert [(part.owner, part.address, part.length) for part in divide(changes, [NOTES, DATA])] == [
        ("kernel .data", 0x1FF8, 8),
        (UNACCOUNTED, 0x2000, 8),
        (UNACCOUNTED, 0xFF8, 8),
        ("crash notes", 0x1000, 0x10),
        ("kernel .data", 0x1010, 8),
    ]


def test_entries_are_by_interval_then_size() -> None:
    changes = [
        Change("late", 0x1000, 1),
        Change("early", 0x1020, 2),
        Change("early", 0x5000, 3),
        Change("early", 0x1FFF, 1),
    ]
    entries = account(divide(changes, [DATA]))
    assert [(e.interval, e.owner, e.bytes, e.pages) for e in entries] == [
        ("late", "kernel .data", 1, 1),
        ("early", "kernel .data", 3, 1),
        ("early", UNACCOUNTED, 3, 1),
    ]
    assert entries[1].addresses == ("0x1020+2", "0x1fff+1")


def test_a_change_over_two_pages_counts_both() -> None:
    assert account(divide([Change("i", 0x1FFE, 4)], []))[0].pages == 2
