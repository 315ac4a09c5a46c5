"""JUnit XML, as Jenkins, GitLab and GitHub's test reporters read it. Pure.

    testsuites
      testsuite              a run: name is its id, time the sum of its phases, timestamp when it began (UTC)
        properties           directory, expected verdict, kernels, QEMU, accelerator, seconds of each phase
        testcase             a check; without a time, as checks are not timed
          failure            failed and should have passed, or passed and had to fail
          error              could not be judged
          skipped            does not apply here; the message says why
          system-out         a check that failed as its scenario expects: not a failure
        testcase "run"       only when no check tells the run's trouble, and always when it broke off
        system-err           the guest's last words of a run that broke off

There is no standard; the shape is that of Jenkins' xUnit plugin, which most readers take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from rig.model import RunResult
from rig.report.cases import Case, Status, check_cases, run_case, untold
from rig.report.wording import printable, printable_lines

RUN = "run"
_COUNTED = {"failures": Status.FAILED, "errors": Status.ERROR, "skipped": Status.SKIPPED}
_ELEMENTS = {Status.FAILED: "failure", Status.ERROR: "error", Status.SKIPPED: "skipped"}


def junit(results: Sequence[tuple[RunResult, Path]]) -> bytes:
    """A UTF-8 document of these runs. Characters that XML 1.0 has no place for (2.2) are shown as \\x1b."""
    top = Element("testsuites", name="rig")
    for number, (result, where) in enumerate(results):
        top.append(_suite(number, result, where))
    for name in ("tests", *_COUNTED):
        top.set(name, str(sum(int(suite.get(name, "0")) for suite in top)))
    top.set("time", _seconds(sum(_total(result) for result, _ in results)))
    ElementTree.indent(top)
    text: bytes = ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _suite(number: int, result: RunResult, where: Path) -> Element:
    cases = [*check_cases(result), *_own_case(result)]
    counts = Counter(case.status for case in cases)
    suite = Element("testsuite", name=printable(result.id), id=str(number), tests=str(len(cases)))
    for name, status in _COUNTED.items():
        suite.set(name, str(counts[status]))
    suite.set("time", _seconds(_total(result)))
    if result.started:
        suite.set("timestamp", printable(result.started).removesuffix("+00:00"))
    properties = SubElement(suite, "properties")
    for name, value in _properties(result, where):
        SubElement(properties, "property", name=printable(name), value=printable(value))
    for case in cases:
        suite.append(_testcase(case, result))
    if result.error is not None and result.error.console:
        SubElement(suite, "system-err").text = "\n".join(printable_lines(result.error.console))
    return suite


def _own_case(result: RunResult) -> Iterator[Case]:
    case = run_case(result) if result.error is not None else untold(result)
    if case is not None:
        yield Case(RUN, case.status, case.message, case.expected_failure)


def _testcase(case: Case, result: RunResult) -> Element:
    """classname: SCENARIO.GUEST.KERNEL, without further dots, by which readers would cut it into packages."""
    parts = (result.scenario, result.guest, result.id.rpartition("/")[2])
    element = Element(
        "testcase", classname=printable(".".join(part.replace(".", "_") for part in parts)), name=printable(case.name)
    )
    if case.status in _ELEMENTS:
        SubElement(element, _ELEMENTS[case.status], _told(case)).text = _hint(case, result)
    elif case.expected_failure:
        SubElement(element, "system-out").text = case.message
    return element


def _told(case: Case) -> dict[str, str]:
    """A skipped element has no type."""
    return {"message": case.message} | ({} if case.status is Status.SKIPPED else {"type": str(case.status)})


def _hint(case: Case, result: RunResult) -> str | None:
    if case.name != RUN or result.error is None or not result.error.hint:
        return None
    return "\n".join(printable_lines(f"hint: {result.error.hint}"))


def _properties(result: RunResult, where: Path) -> Iterator[tuple[str, str]]:
    """What is known of them; a run that broke off early has no kernel, and no QEMU."""
    yield "directory", str(where)
    yield "verdict", str(result.verdict)
    yield "expect", " ".join((str(result.expect), *result.expect_failed))
    if result.surprise:
        yield "surprise", result.surprise
    for role, kernel in (("kernel", result.kernel), ("crash_kernel", result.crash_kernel)):
        if kernel.sha256:
            yield f"{role}.name", kernel.name
            yield f"{role}.release", kernel.release
            yield f"{role}.sha256", kernel.sha256
    for name in ("qemu", "accel", "rig"):
        if name in result.environment:
            yield name, str(result.environment[name])
    for phase in result.phases:
        yield f"phase.{phase.name}", _seconds(phase.seconds)


def _total(result: RunResult) -> float:
    return sum(phase.seconds for phase in result.phases)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}"
