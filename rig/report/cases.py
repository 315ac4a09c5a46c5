"""A run's checks as the machine-readable reports tell them: measured against what the scenario expects. Pure.

JUnit, KTAP and KCIDB have no word for "fails, as it should": a scenario that damages a kernel on purpose must not turn
them red, and one whose damage nobody noticed must.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from rig.model import CheckResult, RunResult, Verdict
from rig.report.wording import headline, printable


class Status(enum.StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"  # could not be judged: neither of the two above
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Case:
    """message: one printable line, why it is so. expected_failure: PASSED because it failed where it must."""

    name: str
    status: Status
    message: str
    expected_failure: bool = False


def check_cases(result: RunResult) -> tuple[Case, ...]:
    """One case a check, in the order of the result."""
    return tuple(_of_check(check, result) for check in result.checks)


def _of_check(check: CheckResult, result: RunResult) -> Case:
    """What could not be judged in a run that is as expected is SKIPPED: a machine that died as it should leaves nothing
    behind for the checks that look at what comes later."""
    wanted, summary = check.name in result.expect_failed, printable(check.summary)
    match check.verdict:
        case Verdict.PASS if wanted:
            return Case(check.name, Status.FAILED, f"passed, but had to fail: {summary}")
        case Verdict.PASS:
            return Case(check.name, Status.PASSED, summary)
        case Verdict.FAIL if wanted:
            return Case(check.name, Status.PASSED, f"failed as expected: {summary}", expected_failure=True)
        case Verdict.FAIL:
            return Case(check.name, Status.FAILED, summary)
        case Verdict.ERROR if not result.as_expected:
            return Case(check.name, Status.ERROR, summary)
        case Verdict.ERROR:
            return Case(check.name, Status.SKIPPED, f"not judged, as the guest died as expected: {summary}")
        case Verdict.SKIP:
            return Case(check.name, Status.SKIPPED, summary)


def run_case(result: RunResult) -> Case:
    """The run as a whole, by the rules of the exit code: a failure outweighs what could not be judged."""
    surprise = printable(result.surprise)
    if result.verdict is Verdict.ERROR:
        return Case(result.id, Status.ERROR, headline(result) if result.error else surprise or "could not judge")
    if result.verdict is Verdict.SKIP:
        return Case(result.id, Status.SKIPPED, surprise or headline(result))
    if result.as_expected:
        return Case(result.id, Status.PASSED, headline(result), expected_failure=result.verdict is Verdict.FAIL)
    seen = {case.status for case in check_cases(result)}
    unjudged = Status.FAILED not in seen and seen & {Status.ERROR, Status.SKIPPED}
    return Case(result.id, Status.ERROR if unjudged else Status.FAILED, surprise)


def untold(result: RunResult) -> Case | None:
    """The run's case when none of its checks tells its trouble, as that a sabotage did something else than it says."""
    case = run_case(result)
    told = {one.status for one in check_cases(result)}
    return case if case.status not in told and case.status in (Status.FAILED, Status.ERROR) else None
