"""What is imported while a guest boots: all that is needed afterwards, and nothing that holds up the end of a run."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rig import warmup
from rig.catalog import load
from rig.evidence.reader import Evidence
from rig.plan import plan
from tests.forge import Machine

# Judges and reports a run in a process that has only been warmed up, and prints what had to be imported nevertheless.
SCRIPT = """
import sys, threading
from pathlib import Path
from rig import conductor, warmup
from rig.evidence.reader import Evidence
from rig.report import text
with warmup.warmed_up(sys.argv[2:]):
    for thread in threading.enumerate():
        if thread.name == "warm-up":
            thread.join()
before = set(sys.modules)
evidence = Evidence(Path(sys.argv[1]))
result = conductor.judge(evidence)
page = conductor.render_run(result, evidence, conductor.hand_over_listing(evidence))
text.verdict_text(result, evidence.path)
assert result.verdict == "pass" and "pgd-survives" in page
print(*(set(sys.modules) - before))
"""


def imported_afterwards(evidence: Evidence) -> list[str]:
    names = [*warmup.driving(evidence.facts.plan), *warmup.judging(evidence.facts.plan)]
    command = [sys.executable, "-c", SCRIPT, str(evidence.path), *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()


def test_after_it_a_run_is_judged_and_reported_without_further_imports(tmp_path: Path) -> None:
    assert imported_afterwards(Machine().write(tmp_path)) == []


@pytest.mark.parametrize("scenario", ["panic", "plain-kexec", "kexec-jump", "flipped-bit"])
def test_what_it_names_is_there(scenario: str) -> None:
    """It fails silently: whoever needs a module is told, but nobody would hear of a name that has gone."""
    asked = plan(load(), [scenario])[0]
    for name in (*warmup.driving(asked), *warmup.judging(asked)):
        module, _, function = name.partition(":")
        found = importlib.import_module(module)
        assert not function or callable(getattr(found, function))


def test_when_the_run_ends_it_is_left_at_the_next_module(monkeypatch: pytest.MonkeyPatch) -> None:
    over, imported = threading.Event(), list[str]()

    def import_module(name: str) -> None:
        imported.append(name)
        over.set()

    monkeypatch.setattr(importlib, "import_module", import_module)
    warmup._import_all(["one", "two"], over)
    assert imported == ["one"]


def test_what_can_not_be_imported_is_left_to_whoever_needs_it() -> None:
    with warmup.warmed_up(["rig.nosuch", "rig.model"]):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "warm-up"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("rig.nosuch")
