"""Evidence -> RunResult. Pure: the same evidence gives the same result, today and offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rig.checks import run_check
from rig.errors import RequestError
from rig.evidence import Evidence, Facts
from rig.model import CheckResult, RunResult, Verdict


def judge(evidence: Evidence) -> RunResult:
    """Run the scenario's checks over the evidence; the worst verdict wins.

    A run that broke off is an error, unless what was seen until then already is a failure.
    """
    facts = evidence.facts
    scenario = facts.plan.scenario
    checks = tuple(run_check(name, evidence) for name in scenario.checks)
    verdicts = [c.verdict for c in checks]
    if facts.broke_off is not None and not facts.died:
        verdicts.append(Verdict.ERROR)
    verdict = Verdict.worst(verdicts) if checks else Verdict.ERROR
    return RunResult(
        id=facts.plan.id,
        scenario=scenario.name,
        guest=facts.plan.guest.name,
        kernel=facts.kernel,
        crash_kernel=facts.crash_kernel,
        expect=scenario.expect,
        verdict=verdict,
        checks=checks,
        phases=facts.phases,
        environment=facts.environment,
        expect_failed=scenario.expect_failed,
        surprise=_surprise(facts, verdict, checks),
        error=facts.broke_off,
    )


def judge_dir(path: Path) -> RunResult:
    """Judge saved evidence again. RequestError when the directory is no evidence directory."""
    if not (path / "run.json").is_file():
        raise RequestError(
            f"{path} is not an evidence directory: it has no run.json", hint="give a directory below results/"
        )
    return judge(Evidence(path))


def _surprise(facts: Facts, verdict: Verdict, checks: Sequence[CheckResult]) -> str:
    """Why this is not what the scenario expects; empty when it is."""
    scenario = facts.plan.scenario
    if verdict is Verdict.ERROR:
        return "could not judge"
    failed = {c.name for c in checks if c.verdict is Verdict.FAIL}
    expected = set(scenario.expect_failed) if scenario.expect is Verdict.FAIL else set()
    parts = []
    if unseen := expected - failed:
        parts.append(f"went unnoticed by {', '.join(sorted(unseen))}")
    if extra := failed - expected:
        parts.append(f"{', '.join(sorted(extra))} failed")
    if others := [c.name for c in checks if c.verdict in (Verdict.ERROR, Verdict.SKIP)]:
        parts.append(f"{', '.join(others)} not judged")
    if not parts and scenario.sabotage:
        parts += _sabotage_mismatch(facts, checks)
    return "; ".join(parts)


def _sabotage_mismatch(facts: Facts, checks: Sequence[CheckResult]) -> list[str]:
    """Are the entries that the rig names exactly those which the sabotage says it changed?"""
    told = {(d.index, d.before, d.after) for d in facts.damage}
    found = {
        (e["index"], e["before"], e["after"])
        for c in checks
        if c.name == "pgd-survives"
        for e in c.figures["entries_changed"]
    }
    if not told:
        return ["the sabotage left no record of what it did"]
    if told != found:
        return [f"the sabotage changed entries {sorted(told)}, the rig named {sorted(found)}"]
    return []
