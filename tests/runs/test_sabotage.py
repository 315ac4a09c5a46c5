"""The rig must be able to say no."""

from __future__ import annotations

import pytest

from tests.runs.conftest import Done, figures, rig

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def selftest_run(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Modules, the debugger, and built kernels, on x86_64. From cold, ten minutes of it are spent on building."""
    return rig("selftest", "--guest", "x86_64", "--json", "--results", tmp_path_factory.mktemp("selftest"))


def test_every_sabotage_is_caught_by_exactly_the_right_checks(selftest_run: Done) -> None:
    rows = selftest_run.document["sabotages"]
    assert {row["id"]: row["surprise"] for row in rows if row["surprise"]} == {}, selftest_run.err
    assert {row["id"]: row["seen"] for row in rows if sorted(row["seen"]) != sorted(row["expected"])} == {}
    assert selftest_run.status == 0


def test_the_pre_2_6_19_overwrite_is_named_by_its_entries(tmp_path_factory: pytest.TempPathFactory) -> None:
    """On the guests that --quick leaves out; that each entry is what the module wrote, the judge has seen to."""
    entries = {}
    for scenario, guest in (("overwritten-pde", "i386"), ("overwritten-pgd", "pae")):
        done = rig("run", scenario, "--guest", guest, "--json", "--results", tmp_path_factory.mktemp(guest))
        assert done.status == 0, done.err
        pgd = figures(done.results[guest], "pgd-survives")
        entries[guest] = [entry["index"] for entry in pgd["entries_changed"]]
        assert "[damage]" in pgd["writer"]
    assert {guest: len(indices) for guest, indices in entries.items()} == {"i386": 1, "pae": 1}
    assert entries["pae"][0] < 4


def test_a_flipped_bit_is_named_by_its_entry(selftest_run: Done) -> None:
    [flipped] = [row["entries"] for row in selftest_run.document["sabotages"] if row["id"].startswith("flipped-bit")]
    assert len(flipped) == 1
