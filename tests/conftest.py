"""The order of the tests (unit tests, linters, VM tests), what is under way, and how long each part took; in one
process, or in several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest

from rig import catalog
from tests import linters

PARTS = ("unit", "lint", "vm")
# Files that take longest, by far when nothing is cached: begun last, one would run on when all others have ended.
LONGEST = ("test_sabotage.py", "test_dump.py", "test_jump.py", "test_legacy.py")
spans: dict[str, tuple[float, float]] = {}  # when the first test of a part began, and the last one ended
passed: Counter[str] = Counter()
total: Counter[str] = Counter()
PROPERTY = "part"  # of each test's report, which a worker of pytest-xdist sends to the process that sums up


def part(item: pytest.Item) -> str:
    """Which of PARTS a test belongs to."""
    if item.get_closest_marker("vm"):
        return "vm"
    return "lint" if "test_lint.py" in item.nodeid else "unit"


def rank(item: pytest.Item) -> tuple[int, int]:
    """What is quick to say no comes first; then what takes longest. Within the same rank the order stays."""
    name = item.path.name if part(item) == "vm" else ""
    return PARTS.index(part(item)), LONGEST.index(name) if name in LONGEST else len(LONGEST)


def reported(report: pytest.TestReport) -> str:
    """Which of PARTS a test that was run belongs to."""
    return str(dict(report.user_properties)[PROPERTY])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties.append((PROPERTY, part(item)))
    items.sort(key=rank)


def pytest_collection_finish(session: pytest.Session) -> None:
    """On another core than the unit tests; in a worker of pytest-xdist when they are asked, so that they run once."""
    wanted = any(part(item) == "lint" for item in session.items)
    if wanted and not session.config.option.collectonly and not hasattr(session.config, "workerinput"):
        linters.start()


class Begun:
    """Tells which file of VM tests is begun. With several processes pytest itself says nothing until a test has ended,
    and one that builds kernels takes many minutes."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._seen: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Called in the process that sums up; it has collected nothing, and knows a test's name only."""
        name = nodeid.split("::")[0]
        if name in self._seen:
            return
        self._seen.add(name)
        if "pytest.mark.vm" in (self._config.rootpath / name).read_text():
            reporter = self._config.pluginmanager.get_plugin("terminalreporter")
            assert reporter is not None
            reporter.write(f"\n{datetime.now():%H:%M:%S} {name} ")


def pytest_sessionstart(session: pytest.Session) -> None:
    if getattr(session.config.option, "numprocesses", None):  # None in its workers
        session.config.pluginmanager.register(Begun(session.config))


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
    name = reported(report)
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
        if report.when == "call" and reported(report) == "vm":
            terminalreporter.line(f"  vm  {report.nodeid}  {report.duration:.1f} s")
