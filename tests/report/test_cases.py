"""What the checks of a run come to, measured against its scenario."""

from __future__ import annotations

import pytest

from rig.commands.common import exit_code
from rig.model import RunResult, Verdict
from rig.report.cases import Status, check_cases, run_case, untold
from tests.report import forge, kinds

P, F, E, S = Status.PASSED, Status.FAILED, Status.ERROR, Status.SKIPPED


@pytest.mark.parametrize(
    ("result", "checks", "run", "own"),
    [
        (forge.PASSED, [P, P, P, P], P, False),
        (forge.FAILED, [F, P, P, P], F, False),
        (forge.SABOTAGED, [P, P, P, P], P, False),
        (forge.UNNOTICED, [F, P], F, False),
        (forge.BROKEN_OFF, [], E, True),
        (kinds.SKIPPED, [S, S], S, False),
        (kinds.DIED, [P, S], P, False),
        (kinds.MISMATCH, [P, P, P, P], F, True),
        (kinds.HALF_JUDGED, [P, E], E, False),
        (kinds.SABOTAGE_HALF_JUDGED, [P, E], E, False),
    ],
)
def test_status_of_every_kind(result: RunResult, checks: list[Status], run: Status, own: bool) -> None:
    assert [case.status for case in check_cases(result)] == checks
    assert run_case(result).status is run
    assert (untold(result) is not None) == own


@pytest.mark.parametrize("result", kinds.ALL)
def test_the_run_is_what_the_exit_code_says(result: RunResult) -> None:
    codes = {P: 0, F: 1, E: 3, S: 3}  # skipped alone: nothing was judged
    assert codes[run_case(result).status] == exit_code([result])


def test_only_a_wanted_failure_is_an_expected_one() -> None:
    expected = {r.id: [c.name for c in check_cases(r) if c.expected_failure] for r in (forge.SABOTAGED, kinds.DIED)}
    assert expected == {forge.SABOTAGED.id: ["pgd-survives"], kinds.DIED.id: ["crash-kernel-boots"]}
    assert not any(case.expected_failure for case in check_cases(forge.FAILED))
    assert not run_case(forge.PASSED).expected_failure
    assert forge.SABOTAGED.verdict is Verdict.FAIL
    assert run_case(forge.SABOTAGED).expected_failure
