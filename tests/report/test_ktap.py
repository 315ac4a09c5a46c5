"""KTAP, read by a strict parser of our own, and by the kernel's where its source is at hand."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest

from rig.guest.cache import default_root
from rig.report.cases import Status, check_cases, run_case
from rig.report.ktap import ktap
from tests.report import forge, kinds

RESULT = re.compile(r"(ok|not ok) ([0-9]+) ([^#\n]+?)(?: # (SKIP|XFAIL|ERROR) (.+))?")


@dataclass
class Test:
    __test__ = False
    ok: bool
    name: str
    directive: str
    subtests: list[Test]


def parse(lines: list[str], depth: int = 0) -> list[Test]:
    """The tests of one nesting level, from its version line to its last result. Anything unforeseen is an error."""
    indent = "  " * depth
    assert lines.pop(0) == f"{indent}KTAP version 1"
    plan = re.fullmatch(rf"{indent}1\.\.([0-9]+)", lines.pop(0))
    assert plan
    tests: list[Test] = []
    for number in range(1, int(plan[1]) + 1):
        subtests = parse(lines, depth + 1) if lines[0].startswith(f"{indent}  KTAP") else []
        while lines[0].startswith(f"{indent}# "):
            lines.pop(0)
        found = RESULT.fullmatch(lines.pop(0).removeprefix(indent))
        assert found
        assert int(found[2]) == number
        tests.append(Test(found[1] == "ok", found[3], found[4] or "", subtests))
    return tests


def expected(status: Status, wanted: bool) -> tuple[bool, str]:
    directives = {Status.SKIPPED: "SKIP", Status.ERROR: "ERROR", Status.PASSED: "XFAIL" if wanted else ""}
    return status in (Status.PASSED, Status.SKIPPED), directives.get(status, "")


def test_every_kind_is_told_as_it_is() -> None:
    lines = ktap(kinds.ALL).splitlines()
    tests = parse(lines)
    assert not lines
    for test, result in zip(tests, kinds.ALL, strict=True):
        run = run_case(result)
        assert (test.ok, test.directive, test.name) == (*expected(run.status, run.expected_failure), result.id)
        told = [(t.ok, t.directive, t.name) for t in test.subtests]
        cases = [] if run.status is Status.SKIPPED else check_cases(result)
        assert told == [(*expected(c.status, c.expected_failure), c.name) for c in cases]
        assert test.ok or not test.subtests or not all(t.ok for t in test.subtests) or result is kinds.MISMATCH


def test_why_stands_before_what_is_not_ok() -> None:
    lines = ktap([forge.FAILED, forge.BROKEN_OFF]).splitlines()
    assert lines[lines.index("  not ok 1 pgd-survives") - 1] == f"  # {forge.OVERWRITTEN.summary}"
    assert f"# {forge.HUNG.hint}" in lines
    assert lines[-1].startswith(f"not ok 2 {forge.BROKEN_OFF.id} # ERROR In phase boot: ")


@pytest.mark.parametrize("text", ["KTAP version 1\n1..2\nok 1 a\n", "KTAP version 1\n1..1\nok 2 a\n", "1..1\nok 1 a\n"])
def test_the_parser_here_is_strict(text: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        parse(text.splitlines())


# ---------------------------------------------------------------- the kernel's own parser


@pytest.fixture
def kunit_parser(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """tools/testing/kunit/kunit_parser.py of a kernel source that the rig has unpacked."""
    places = ("sources/*", "builds/*/tree")
    found = sorted(
        path for place in places for path in default_root().glob(f"{place}/tools/testing/kunit/kunit_parser.py")
    )
    if not found:
        pytest.skip("no kernel source is unpacked (rig build built-7.2)")
    monkeypatch.syspath_prepend(found[-1].parent)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # in the source of a kernel
    spec = importlib.util.spec_from_file_location("kunit_parser", found[-1])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kunit_parser", module)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("kunit_printer", None)


def test_the_kernel_reads_the_same(kunit_parser: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    from kunit_printer import stdout  # type: ignore[import-not-found]  # beside it

    parse = kunit_parser.parse_run_tests
    printer = (stdout,) if len(inspect.signature(parse).parameters) > 1 else ()  # newer ones are told where to print
    whole = parse(ktap(kinds.ALL).splitlines(), *printer)
    assert not whole.counts.errors, capsys.readouterr().out
    names = {True: {"SUCCESS"}, False: {"FAILURE"}}
    for test, result in zip(whole.subtests, kinds.ALL, strict=True):
        cases = check_cases(result) if test.subtests else (run_case(result),)
        found = test.subtests or [test]
        for one, case in zip(found, cases, strict=True):
            ok, directive = expected(case.status, case.expected_failure)
            assert one.status.name in ({"SKIPPED"} if directive == "SKIP" else names[ok])
            assert one.name == case.name
