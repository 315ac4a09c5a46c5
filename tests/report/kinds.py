"""Results of every kind that the rig writes, for what all reports have to cope with."""

from __future__ import annotations

from dataclasses import replace

from rig.model import CheckResult, KernelIdentity, Verdict
from tests.report.forge import (
    BOOTS,
    BROKEN_OFF,
    FAILED,
    HOSTILE,
    HUNG,
    OVERWRITTEN,
    PASSED,
    SABOTAGED,
    SURVIVED,
    UNNOTICED,
    result,
)

NO_KERNEL = KernelIdentity("", "", "")
NO_FLAVOUR = "debian-6.12 has no flavour 686; it has amd64"
SKIPPED = result(
    Verdict.SKIP,
    [CheckResult(name, Verdict.SKIP, NO_FLAVOUR) for name in ("pgd-survives", "crash-kernel-boots")],
    id="panic@i386/debian-6.12",
    guest="i386",
    kernel=NO_KERNEL,
    crash_kernel=NO_KERNEL,
    phases=(),
    environment={},
    surprise=f"skipped: {NO_FLAVOUR}",
    started="2026-11-23T02:11:00+00:00",
)
DEAD = CheckResult("crash-kernel-boots", Verdict.FAIL, "the guest died in phase hand-over: triple fault", {})
NOT_SEEN = CheckResult("vmcore-registers", Verdict.ERROR, "could not judge: no headers were fetched", {})
# The sabotage killed the guest, as it should; what comes later could not be looked at.
DIED = result(
    Verdict.FAIL,
    [DEAD, NOT_SEEN],
    id="nx-control-page@x86_64/debian-6.1",
    scenario="nx-control-page",
    expect=Verdict.FAIL,
    expect_failed=("crash-kernel-boots",),
    error=replace(HUNG, kind="GuestDied", phase="hand-over"),
)
# Every check says what it should, but the sabotage did something else than it says.
MISMATCH = replace(SABOTAGED, surprise="the sabotage changed entries [(0, 1, 2)], the rig named []")
# As expected but for a check that had nothing to look at.
HALF_JUDGED = result(
    Verdict.ERROR, [SURVIVED, NOT_SEEN], surprise="could not judge", error=replace(HUNG, phase="dump", console=HOSTILE)
)
SABOTAGE_HALF_JUDGED = replace(SABOTAGED, checks=(OVERWRITTEN, NOT_SEEN), surprise="vmcore-registers not judged")
NASTY = result(
    Verdict.FAIL,
    [replace(OVERWRITTEN, summary=f"{HOSTILE} \ud800 \ufffe # SKIP not | really `` ` @everyone #1"), BOOTS],
    kernel=KernelIdentity("x` |y", HOSTILE, "cd" * 32),
    surprise=HOSTILE,
)
# fmt: off
ALL = (
    PASSED, FAILED, SABOTAGED, UNNOTICED, BROKEN_OFF, SKIPPED, DIED, MISMATCH, HALF_JUDGED, SABOTAGE_HALF_JUDGED, NASTY,
)
# fmt: on
