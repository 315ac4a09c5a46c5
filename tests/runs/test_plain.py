"""Plain kexec on real guests, judged by what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from rig.evidence.reader import Evidence
from rig.model import Checkpoint
from rig.report.listing import hand_over_listing
from tests.runs.conftest import GUESTS, Done, checks, figures, rig

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def plain_runs(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return rig("run", "plain-kexec", "--json", "--results", tmp_path_factory.mktemp("plain"))


def test_the_second_kernel_boots_on_all_guests(plain_runs: Done) -> None:
    assert {guest: set(checks(r).values()) for guest, r in plain_runs.results.items()} == {
        guest: {"pass"} for guest in GUESTS
    }, plain_runs.err
    assert plain_runs.status == 0


@pytest.mark.parametrize("guest", GUESTS)
def test_the_checkpoints_and_what_was_copied(plain_runs: Done, guest: str) -> None:
    evidence = Evidence(plain_runs.directories[guest])
    assert list(evidence.registers()) == ["armed", "machine-kexec", "handover", "second-kernel"]
    image = evidence.facts.kimage
    assert image is not None
    assert evidence.crashing_cpu(Checkpoint.HANDOVER).general["rip"] == image.start
    copied = figures(plain_runs.results[guest], "image-copied")
    assert copied["pages"] * 4096 == sum(size for _, size in image.segments)
    assert copied["in_place"] == 0


@pytest.mark.parametrize("guest", GUESTS)
def test_the_recording_says_what_it_leaves_out_and_goes_on_after_it(plain_runs: Done, guest: str) -> None:
    evidence = Evidence(plain_runs.directories[guest])
    [gap] = evidence.trace.gaps
    pages = figures(plain_runs.results[guest], "image-copied")["pages"]
    assert gap.what == f"the rest of the copying of {pages} pages"
    assert 0 < gap.before < len(evidence.trace.steps) - 1
    listing = hand_over_listing(evidence)
    assert listing is not None
    assert any(gap.what in line for line in listing.lines)


@pytest.mark.parametrize(
    ("scenario", "guest"), [("plain-torn-image", "pae"), ("plain-unmapped-control-page", "x86_64")]
)
def test_sabotage_is_caught(scenario: str, guest: str, tmp_path: Path) -> None:
    done = rig("run", scenario, "--guest", guest, "--json", "--results", tmp_path)
    assert done.status == 0, done.err
    assert done.results[guest]["surprise"] == ""
