"""Known defects on the very kernels that shipped with them, and the same scenario on kernels with the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.conftest import figures, rig

pytestmark = pytest.mark.vm


def test_the_stray_twin_is_found_where_it_is_and_nowhere_else(tmp_path: Path) -> None:
    for scenario, twins in (("pti-shadow-6.1", 1), ("pti-shadow", 0)):
        done = rig("run", scenario, "--json", "--results", tmp_path)
        assert done.status == 0, done.err
        assert len(figures(done.results["x86_64-pti"], "control-pages-placed")["stray_twins"]) == twins


def test_the_switch_from_5_to_4_levels_kills_one_crash_kernel_and_not_the_other(tmp_path: Path) -> None:
    dies = rig("run", "5-to-4-level", "--kernel", "debian-6.12.43", "--json", "--results", tmp_path)
    assert dies.status == 1, dies.err
    [run] = dies.results.values()
    assert run["error"]["phase"] == "crash-boot"
    assert "triple fault" in run["error"]["message"]
    boots = rig("run", "5-to-4-level", "--json", "--results", tmp_path)
    assert boots.status == 0, boots.err
    assert figures(boots.results["x86_64-la57"], "pgd-survives")["mode"] == "5-level"


def test_the_cpu_that_panics_can_be_another_than_the_boot_cpu(tmp_path: Path) -> None:
    done = rig("run", "panic-other-cpu", "--guest", "x86_64-smp", "--json", "--results", tmp_path)
    assert done.status == 0, done.err
    summaries = {c["name"]: c["summary"] for c in done.results["x86_64-smp"]["checks"]}
    assert "CPU 1 is at" in summaries["vmcore-registers"]
