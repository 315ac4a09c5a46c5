"""`pytest scenarios/ -k pae`: each cell is a test, named by its id. Loaded by scenarios/conftest.py, or with `-p`.

    passed     as the scenario expects, an expected failure too
    failed     a check failed that should have passed, or the other way round
    error      could not judge: raised while the test is set up, where pytest keeps it apart from a failure
    skipped    the combination can't be run, and why

Not an entry point: each pytest in the same environment would have these options, and start more slowly.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rig.errors import RequestError, RigError
from rig.model import Options, RunPlan, RunResult, Verdict

if TYPE_CHECKING:
    from rig.catalog import Catalogue

SCENARIOS = "scenarios"  # the name of a catalogue's directory of them
KEY = pytest.StashKey["Catalogue"]()


# ---------------------------------------------------------------- options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Paths stay text: pytest-xdist can't hand others to its workers."""
    group = parser.getgroup("rig", "kexec and kdump runs (rig)")
    group.addoption("--guest", action="append", default=[], metavar="NAME", help="repeatable; default: the scenario's")
    group.addoption("--kernel", metavar="NAME|BZIMAGE", help="default: the guest's own")
    group.addoption("--vmlinux", metavar="FILE", help="the kernel's vmlinux, for names in reports")
    group.addoption("--crash-kernel", metavar="NAME|BZIMAGE", help="default: the same as the kernel")
    group.addoption("--results", default=str(Options.results), metavar="DIR", help="default: %(default)s")
    group.addoption("--accel", choices=("auto", "tcg", "kvm"), default=Options.accel, help="default: %(default)s")
    text = "the longest that a phase of a run may take (default: %(default)g)"
    group.addoption("--deadline", type=float, default=Options.deadline, metavar="SECONDS", help=text)


def _options(config: pytest.Config) -> Options:
    given = config.option
    if not 0 < given.deadline < math.inf:
        raise RequestError(f"--deadline: {given.deadline} is not a number of seconds above 0")
    return Options(results=Path(given.results), accel=given.accel, deadline=given.deadline)


def _catalogue(config: pytest.Config) -> Catalogue:
    """The rig's own, RIG_CATALOGUE's, and those whose scenarios are named on the command line."""
    if KEY not in config.stash:
        from rig import catalog

        named = (config.invocation_params.dir / argument.partition("::")[0] for argument in config.args)
        folders = [path if path.is_dir() else path.parent for path in map(Path.resolve, named)]
        own = {folder.parent for folder in folders if folder.name == SCENARIOS} - set(catalog.roots())
        config.stash[KEY] = catalog.load(catalog.extra_roots(sorted(own)))
    return config.stash[KEY]


def _plans(config: pytest.Config, scenario: str, guests: Sequence[str]) -> list[RunPlan]:
    from rig.plan import plan

    given = config.option
    vmlinux = Path(given.vmlinux) if given.vmlinux else None
    return plan(_catalogue(config), [scenario], guests, given.kernel, given.crash_kernel, vmlinux)


# ---------------------------------------------------------------- before anything is run


def pytest_sessionstart(session: pytest.Session) -> None:
    """What is asked wrongly is said once, before anything is collected."""
    from rig.commands.common import require_writable

    try:
        require_writable(_options(session.config).results)
        need, have = _largest(session.config)
    except RigError as problem:
        raise pytest.UsageError(str(problem)) from problem
    workers = getattr(session.config.option, "numprocesses", None) or 1  # pytest-xdist's
    if workers > 1 and workers * need > have:
        raise pytest.UsageError(
            f"{workers} guests at a time may need {workers * need} MiB, and {have} MiB are available"
            "\n  hint: -n auto runs as many as fit; --guest chooses one with less memory"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """-n auto: a guest for each core, as far as they fit into memory."""
    from rig import pool

    need, have = _largest(config)
    return max(1, min(pool.cores(), have // need))


def _largest(config: pytest.Config) -> tuple[int, int]:
    """MiB: what a run of the largest guest selected may need, and what there is."""
    from rig import pool

    catalogue = _catalogue(config)
    plans = _plans(config, next(iter(catalogue.scenarios)), config.option.guest or list(catalogue.guests))
    return max(map(pool.need, plans)), pool.available_memory()


# ---------------------------------------------------------------- the tests


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix == ".toml" and file_path.parent.name == SCENARIOS:
        return ScenarioFile.from_parent(parent, path=file_path)
    return None


class ScenarioFile(pytest.File):
    """scenarios/NAME.toml."""

    def collect(self) -> Iterator[RunItem]:
        """With --guest also on guests that the scenario doesn't list, unless it has a kernel of its own."""
        name = self.path.stem
        read = _catalogue(self.config).files.get((SCENARIOS, name))
        if read is None or read.resolve() != self.path.resolve():
            raise self.CollectError(
                f"{self.path} is of a catalogue that is not loaded: name its directory {SCENARIOS}/"
            )
        for plan in _plans(self.config, name, self.config.option.guest):
            if plan.guest.name in plan.scenario.guests or not plan.scenario.kernel:
                yield RunItem.from_parent(self, name=plan.id, plan=plan)


class RunItem(pytest.Item):
    """One cell. The guest runs in the test's setup; the test itself is whether its verdict is as expected."""

    def __init__(self, *, plan: RunPlan, **rest: Any) -> None:
        super().__init__(**rest)
        self.plan = plan
        self.report = ""
        self.exit_code = 3

    def setup(self) -> None:
        from rig import conductor
        from rig.commands.common import exit_code

        if self.plan.skip:
            pytest.skip(self.plan.skip)
        try:
            result, where = conductor.run(self.plan, _options(self.config), lambda _phase: None, threading.Event())
        except RigError as problem:
            pytest.fail(str(problem), pytrace=False)
        self._tell(result, where)
        if result.verdict is Verdict.SKIP:
            pytest.skip(result.checks[0].summary)
        self.exit_code = exit_code([result])
        if self.exit_code == 3:
            pytest.fail(self.report, pytrace=False)

    def runtest(self) -> None:
        if self.exit_code != 0:
            pytest.fail(self.report, pytrace=False)

    def _tell(self, result: RunResult, where: Path) -> None:
        from rig.report.text import verdict_lines

        self.report = "\n".join(verdict_lines(result, where))
        self.user_properties += [("rig-evidence", str(where)), ("rig-verdict", result.verdict.value)]
        self.add_report_section("setup", "evidence", str(where))

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name
