"""KTAP, version 1 (the kernel's Documentation/dev-tools/ktap.rst). Pure.

    KTAP version 1
    1..N
      KTAP version 1              a run: its checks are subtests, its own result line follows them
      1..M
      ok 1 pgd-survives
      ok 2 memory-accounted # XFAIL failed as expected: ...
      ok 3 vmcore-faithful # SKIP ...
      not ok 4 handover-state # ERROR could not judge: ...
      # 8 of 4096 bytes ...       in front of a test that failed: why
      not ok 5 vmcore-registers
    not ok 1 panic@pae/debian-6.1

A run that was skipped as a whole, or has not a single check, is one line without subtests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rig.model import RunResult, Verdict
from rig.report.cases import Case, Status, check_cases, run_case
from rig.report.wording import printable, printable_lines

VERSION = "KTAP version 1"
INDENT = "  "


def ktap(results: Sequence[RunResult]) -> str:
    """One document of these runs, in their order, ending in a newline."""
    lines = [VERSION, f"1..{len(results)}"]
    for number, result in enumerate(results, 1):
        lines += _run(number, result)
    return "\n".join((*lines, ""))


def _run(number: int, result: RunResult) -> Iterator[str]:
    cases = check_cases(result)
    if cases and not all(check.verdict is Verdict.SKIP for check in result.checks):
        yield f"{INDENT}{VERSION}"
        yield f"{INDENT}1..{len(cases)}"
        for at, case in enumerate(cases, 1):
            for line in _result_lines(at, case):
                yield INDENT + line
    if result.error is not None:
        for text in (*printable_lines(result.error.message), *printable_lines(result.error.hint)):
            yield f"# {text}"
    yield from _result_lines(number, run_case(result))


def _result_lines(number: int, case: Case) -> Iterator[str]:
    """The result line; before it, as a diagnostic, why a test failed."""
    name = printable(case.name).replace("#", "_")  # what follows a # is no name any more
    match case.status:
        case Status.PASSED if case.expected_failure:
            yield f"ok {number} {name} # XFAIL {case.message}"
        case Status.PASSED:
            yield f"ok {number} {name}"
        case Status.SKIPPED:
            yield f"ok {number} {name} # SKIP {case.message}"
        case Status.ERROR:
            yield f"not ok {number} {name} # ERROR {case.message}"
        case Status.FAILED:
            yield f"# {case.message}"
            yield f"not ok {number} {name}"
