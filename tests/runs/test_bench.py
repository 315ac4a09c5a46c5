"""`rig bench` with a guest: that it measures at all. What it measures is this machine's business, not a test's."""

from __future__ import annotations

import pytest

from tests.runs.conftest import rig


@pytest.mark.vm
def test_a_family_with_a_guest() -> None:
    done = rig("bench", "trace", "--guest", "x86_64", "--json")
    figures = {figure["name"]: figure for figure in done.document["figures"]}
    assert not any(figure["missing"] for figure in figures.values()), done.err
    assert done.status == (0 if all(figure["holds"] is not False for figure in figures.values()) else 1)
    both, alone = figures["instructions recorded and read"], figures["recorded alone"]
    assert 0 < both["value"] < alone["value"], "reading takes time, too"
    assert {figure["guest"] for figure in figures.values()} == {"x86_64"}
