"""Machines unlike the stock guests, as a user runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.conftest import figures, rig

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


def test_uefi_tables_are_known_and_covered(tmp_path: Path) -> None:
    done = rig("run", "panic", "--guest", "x86_64-uefi", "--json", "--results", tmp_path)
    result = done.results["x86_64-uefi"]
    assert (done.status, result["verdict"]) == (0, "pass"), done.err
    needed = {r["name"]: r for r in figures(result, "identity-map-complete")["ranges"]}
    for name in ("EFI system table", "EFI configuration tables", "ACPI Tables"):
        assert needed[name]["covered"] == needed[name]["end"] - needed[name]["start"] > 0


def test_memory_above_4_gib_costs_what_the_guest_touches(tmp_path: Path) -> None:
    done = rig("run", "panic", "--guest", "pae-5g", "--json", "--results", tmp_path)
    result = done.results["pae-5g"]
    assert (done.status, result["verdict"]) == (0, "pass"), done.err
    assert figures(result, "user-space-survives")["physical"] >> 32, "user space lies in high memory"
    # 160 to 405 were seen: what of the guest's memory is mapped at a time counts, too
    assert result["environment"]["peak_memory_mib"] < 1024, "a fifth of the guest's memory"
