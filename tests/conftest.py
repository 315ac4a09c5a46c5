"""The order of the tests (unit tests, linters, VM tests one after the other) and how long each part took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rig import catalog
from tests import linters

PARTS = ("unit", "lint", "vm")
spans: dict[str, tuple[float, float]] = {}  # when the first test of a part began, and the last one ended
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
    """What is quick to say no comes first; linters are asked when they have had time. Within a part the order stays."""
    vm_tests.update(item.nodeid for item in items if item.get_closest_marker("vm"))
    items.sort(key=lambda item: PARTS.index(part(item.nodeid, item.nodeid in vm_tests)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """On another core than the unit tests; in a worker of pytest-xdist when they are asked, so that they run once."""
    wanted = any(part(item.nodeid, False) == "lint" for item in session.items)
    if wanted and not session.config.option.collectonly and not hasattr(session.config, "workerinput"):
        linters.start()


def pytest_sessionfinish() -> None:
    linters.stop()


@pytest.fixture(scope="session", autouse=True)
def own_catalogue_is_read_once() -> Iterator[None]:
    """A hundred tests of commands begin with reading the rig's own catalogue, which nobody changes meanwhile."""
    directories, known, read = catalog.roots(), catalog.registries(), catalog.read
    own = read(directories, known)

    def read_others(asked: Sequence[Path], names: catalog.Registries) -> catalog.Catalogue:
        return own if (tuple(asked), names) == (directories, known) else read(asked, names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "read", read_others)
        yield


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = part(report.nodeid, report.nodeid in vm_tests)
    began, ended = spans.get(name, (report.start, report.stop))
    spans[name] = min(began, report.start), max(ended, report.stop)
    total[name] += report.when == "setup"
    passed[name] += report.when == "call" and report.passed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("parts")
    for name in PARTS:
        if total[name]:
            began, ended = spans[name]
            terminalreporter.line(f"{name:5} {passed[name]} of {total[name]} passed in {ended - began:.1f} s")
    for report in terminalreporter.getreports("passed"):
        if report.when == "call" and report.nodeid in vm_tests:
            terminalreporter.line(f"  vm  {report.nodeid}  {report.duration:.1f} s")
