"""`rig rerun`: what it refuses before anything boots, what reaches the run, what it says afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rig import cli, rerun
from rig.evidence.writer import EvidenceWriter, to_json
from rig.facts import Facts
from rig.model import Options, Repeat, RunPlan, RunResult, Verdict
from tests.cli.pretended import Conductor, result, words
from tests.forge import GUEST, KERNEL, scenario
from tests.test_ingredients import made

PLAN = RunPlan(scenario(), GUEST, KERNEL, KERNEL)
SAME = rerun.Outlook((), ("rig 0.0.1 ran it",), None)
OTHER = replace(SAME, differences=("bzImage is gone",))


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """Of a run that failed."""
    writer = EvidenceWriter(tmp_path / "results", "old")
    writer.write("run.json", to_json(Facts(rig="0", plan=PLAN, environment={"accel": "tcg", "sabotage_seed": 7})))
    writer.write("result.json", to_json(replace(result(PLAN, Verdict.FAIL), environment={})))
    return writer.finish()


@pytest.fixture
def seen(conductor: Conductor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Options]:
    options_seen: list[Options] = []

    def run(plan: RunPlan, options: Options, *_: object) -> tuple[RunResult, Path]:
        options_seen.append(options)
        return result(plan), Path("new")

    conductor(run)
    monkeypatch.setattr(rerun, "REGISTRY", dict.fromkeys(PLAN.scenario.checks))
    monkeypatch.setattr(rerun, "substitute", lambda *_: made(tmp_path / "cache", tmp_path / "bzImage"))
    return options_seen


def look(monkeypatch: pytest.MonkeyPatch, outlook: rerun.Outlook) -> None:
    monkeypatch.setattr(rerun, "examine", lambda *_: outlook)


def test_the_same_run(
    seen: list[Options], evidence: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    look(monkeypatch, SAME)
    assert cli.main(words(f"rerun {evidence} --results new")) == 0
    (options,) = seen
    assert (options.accel, options.seed, options.results) == ("tcg", 7, Path("new"))
    assert isinstance(options.repeat, Repeat)
    assert options.repeat.told["of"] == str(evidence)
    lines = capsys.readouterr().out.splitlines()
    assert "note: rig 0.0.1 ran it" in lines
    assert "  pgd-survives  fail -> pass" in lines


def test_another_run_is_refused_unless_asked_for(
    seen: list[Options], evidence: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    look(monkeypatch, OTHER)
    assert cli.main(words(f"rerun {evidence}")) == 3
    assert seen == []
    assert "  - bzImage is gone\n" in capsys.readouterr().err
    assert cli.main(words(f"rerun {evidence} --anyway --json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rerun"]["differences"][0] == "bzImage is gone"
    assert {"name": "the run", "before": "fail", "after": "pass"} in document["rerun"]["changes"]
    assert document["runs"][0]["result"]["verdict"] == "pass"
