"""The rig's pytest plugin, in a pytest of its own, with a conductor that only pretends."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from rig import conductor
from rig.errors import MachineError
from rig.model import Options, RunPlan, RunResult, Verdict
from tests.cli.pretended import result

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["pytester"]

Outcome = tuple[RunResult, Path]

SCENARIO = """
description = "{description}"
trigger = "sysrq-c"
guests = ["i386", "pae", "x86_64"]
{more}
"""
BROKEN = """
sabotage = "damage what=entry"
expect = "fail"
expect_failed = ["pgd-survives"]
"""


def pretended(plan: RunPlan, options: Options, *_: object) -> Outcome:
    """What each guest's run comes to."""
    where = options.results / plan.slug
    if plan.guest.name == "i386":
        return result(plan, Verdict.FAIL, "pgd-survives failed"), where
    if plan.guest.name == "pae":
        return result(plan, Verdict.ERROR, "nothing was judged"), where
    if plan.guest.name == "x86_64-smp":
        raise MachineError(f"no QEMU for {plan.kernel.name}, {options.accel}, {options.deadline}", hint="install it")
    return result(plan, plan.scenario.expect), where


@pytest.fixture
def catalogue(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's own catalogue in an empty directory: scenarios/mine.toml and scenarios/broken.toml."""
    monkeypatch.setattr(conductor, "run", pretended)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    scenarios = pytester.mkdir("scenarios")
    (scenarios / "mine.toml").write_text(SCENARIO.format(description="mine", more=""))
    (scenarios / "broken.toml").write_text(SCENARIO.format(description="broken on purpose", more=BROKEN))
    return pytester


NO_OTHERS = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"  # plugins of this environment, which take longer to import than the rest
WORDS = ("-p", "rig.pytest_plugin", "-p", "no:cacheprovider", "scenarios")


def run(catalogue: pytest.Pytester, *words: str) -> pytest.RunResult:
    return catalogue.runpytest_inprocess(*WORDS, *words)


def test_each_verdict_is_what_pytest_calls_it(catalogue: pytest.Pytester) -> None:
    done = run(catalogue, "-k", "mine", "--junitxml=junit.xml", "--results", "kept")
    done.assert_outcomes(passed=1, failed=1, errors=1)
    text = done.stdout.str()
    assert "ERROR scenarios/mine.toml::mine@pae/debian-6.1" in text
    assert "FAILED scenarios/mine.toml::mine@i386/debian-6.1" in text
    assert "FAIL  mine@i386/debian-6.1" in text  # the report, instead of a traceback
    cases = {case.attrib["name"]: case for case in ElementTree.parse(catalogue.path / "junit.xml").iter("testcase")}
    found = {name: {child.tag for child in case} for name, case in cases.items()}
    assert found["mine@i386/debian-6.1"] >= {"failure"}
    assert found["mine@pae/debian-6.1"] >= {"error"}
    properties = {p.attrib["name"]: p.attrib["value"] for p in cases["mine@x86_64/debian-6.1"].iter("property")}
    assert properties == {"rig-evidence": "kept/mine_x86_64_debian-6.1", "rig-verdict": "pass"}


def test_an_expected_failure_passes(catalogue: pytest.Pytester) -> None:
    run(catalogue, "-k", "broken and x86_64").assert_outcomes(passed=1, deselected=5)


def test_a_run_that_raises_is_an_error_with_its_hint(catalogue: pytest.Pytester) -> None:
    done = run(catalogue, "-k", "mine", "--guest", "x86_64-smp")
    done.assert_outcomes(errors=1, deselected=1)
    done.stdout.fnmatch_lines(["no QEMU for *", "  hint: install it"])
    assert "def run" not in done.stdout.str()  # no traceback


def test_a_combination_that_can_not_be_run_is_skipped(catalogue: pytest.Pytester) -> None:
    done = run(catalogue, "-k", "mine", "--guest", "pae-nopae", "-rs")
    done.assert_outcomes(skipped=1, deselected=1)
    done.stdout.fnmatch_lines(["*CPU flag pae*"])


def test_options_reach_the_run(catalogue: pytest.Pytester) -> None:
    words = ("-k", "mine", "--guest", "x86_64-smp", "--accel", "tcg", "--deadline", "7", "--kernel", "debian-6.12")
    run(catalogue, *words).stdout.fnmatch_lines(["no QEMU for debian-6.12, tcg, 7.0"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--guest", "pea"], "unknown guest 'pea'; did you mean 'pae'?"),
        (["--kernel", "no/such"], "no such file: no/such"),
        (["--kernel", "bzImage"], "fits one kind of guest, but"),
        (["--deadline", "0"], "--deadline: 0.0 is not a number of seconds above 0"),
        (["-n", "9999"], "9999 guests at a time may need"),
    ],
)
def test_a_wrong_request_is_refused_once(catalogue: pytest.Pytester, words: list[str], message: str) -> None:
    if words[0] == "-n" and importlib.util.find_spec("xdist") is None:
        pytest.skip("pytest-xdist is not installed")
    (catalogue.path / "bzImage").touch()
    done = run(catalogue, *words)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.str().count("ERROR: ") == 1
    assert message in done.stderr.str()


def test_runs_side_by_side(catalogue: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xdist")
    monkeypatch.setenv(NO_OTHERS, "1")
    words = (*WORDS, "-p", "xdist", "-n", "2", "--guest", "pae-nopae", "--results", "kept")
    catalogue.runpytest_subprocess(*words).assert_outcomes(skipped=2)


def test_the_rigs_own_scenarios_are_collected_when_they_are_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    done = pytester.runpytest_inprocess("-q", "--collect-only", "scenarios", "-k", "panic-nmi and pae")
    assert "scenarios/panic-nmi.toml::panic-nmi@pae/debian-6.1" in done.stdout.str()
