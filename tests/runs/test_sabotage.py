"""The rig must be able to say no."""

from __future__ import annotations

import pytest

from tests.runs.conftest import Done, rig

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def selftest_run(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """`rig selftest --quick`: modules and the debugger, on x86_64."""
    return rig("selftest", "--quick", "--json", "--results", tmp_path_factory.mktemp("selftest"))


def test_every_sabotage_is_caught_by_exactly_the_right_checks(selftest_run: Done) -> None:
    rows = selftest_run.document["sabotages"]
    assert {row["id"]: row["surprise"] for row in rows if row["surprise"]} == {}, selftest_run.err
    assert {row["id"]: row["seen"] for row in rows if sorted(row["seen"]) != sorted(row["expected"])} == {}
    assert selftest_run.status == 0


def test_the_pre_2_6_19_overwrite_is_named_by_its_entries(tmp_path_factory: pytest.TempPathFactory) -> None:
    """On the guests that --quick leaves out; that each entry is what the module wrote, the judge has seen to."""
    done = rig(
        *("run", "overwritten-pgd", "--guest", "i386", "--guest", "pae", "--json"),
        *("--results", tmp_path_factory.mktemp("overwritten")),
    )
    entries = {
        guest: [e["index"] for c in result["checks"] for e in c["figures"].get("entries_changed", ())]
        for guest, result in done.results.items()
    }
    assert {guest: len(indices) for guest, indices in entries.items()} == {"i386": 1, "pae": 1}, done.err
    assert entries["pae"][0] < 4
    assert done.status == 0


def test_a_flipped_bit_is_named_by_its_entry(selftest_run: Done) -> None:
    [flipped] = [row["entries"] for row in selftest_run.document["sabotages"] if row["id"].startswith("flipped-bit")]
    assert len(flipped) == 1
