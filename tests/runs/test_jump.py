"""kexec jumps on real guests, judged by what they leave behind. The kernels are built the first time: ten minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig.evidence.reader import Evidence
from rig.report.listing import hand_over_listing
from tests.runs.conftest import checks, figures, rig

pytestmark = pytest.mark.vm


@pytest.mark.parametrize("guest", ["i386", "x86_64"])  # a kernel to be built for each
def test_out_and_back(guest: str, tmp_path: Path) -> None:
    done = rig("run", "kexec-jump-gdt", "--guest", guest, "--json", "--results", tmp_path)
    result = done.results[guest]
    assert set(checks(result).values()) == {"pass"}, done.err
    context = figures(result, "context-preserved")
    assert context["pages_swapped"] == 2
    owners = {row["owner"]: row["bytes"] for row in context["owners"]}
    assert owners["written by the image, in itself"] == 1  # the count of its entries: 0 -> 1
    evidence = Evidence(done.directories[guest])
    assert list(evidence.registers()) == ["armed", "machine-kexec", "handover", "returned"]
    listing = hand_over_listing(evidence)
    assert listing is not None
    assert "machine_kexec returned to" in listing.ending


@pytest.mark.parametrize(
    ("scenario", "guest"),
    [
        ("kexec-jump-empty-gdt", "i386"),
        ("kexec-jump-stray-write", "x86_64"),
        ("kexec-jump-other-code-mapped", "x86_64"),
    ],
)
def test_what_goes_wrong_is_told(scenario: str, guest: str, tmp_path: Path) -> None:
    done = rig("run", scenario, "--guest", guest, "--json", "--results", tmp_path)
    assert done.status == 0, done.err
    assert done.results[guest]["surprise"] == ""


def test_a_kernel_without_the_option_is_skipped_by_its_name(tmp_path: Path) -> None:
    done = rig("run", "kexec-jump", "--kernel", "debian-6.1", "--json", "--results", tmp_path)
    [check, *_] = done.results["x86_64"]["checks"]
    assert (check["verdict"], "CONFIG_KEXEC_JUMP" in check["summary"]) == ("skip", True)
