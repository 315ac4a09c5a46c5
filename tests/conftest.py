"""The order of the tests (linters, unit tests, VM tests one after the other) and how long each part took."""

from __future__ import annotations

from collections import Counter

import pytest

PARTS = ("lint", "unit", "vm")
seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
passed: Counter[str] = Counter()
total: Counter[str] = Counter()
# Told by the marker, not by a report's keywords: those hold the names of folders, too, and one is tests/vm.
vm_tests: set[str] = set()


def part(nodeid: str, is_vm: bool) -> str:
    """Which of PARTS a test belongs to."""
    if is_vm:
        return "vm"
    return "lint" if "test_lint.py" in nodeid else "unit"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is quick to say no comes first. The sort is stable: within a part the order stays."""
    vm_tests.update(item.nodeid for item in items if item.get_closest_marker("vm"))
    items.sort(key=lambda item: PARTS.index(part(item.nodeid, item.nodeid in vm_tests)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = part(report.nodeid, report.nodeid in vm_tests)
    seconds[name] += report.duration
    total[name] += report.when == "setup"
    passed[name] += report.when == "call" and report.passed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("parts")
    for name in PARTS:
        if total[name]:
            terminalreporter.line(f"{name:5} {passed[name]} of {total[name]} passed in {seconds[name]:.1f} s")
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and report.nodeid in vm_tests:
            terminalreporter.line(f"  vm  {report.nodeid}  {report.duration:.1f} s")
