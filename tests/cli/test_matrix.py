from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rig import cli
from rig.model import Options, Phase, RunPlan, RunResult
from tests.cli.pretended import Conductor, result


def test_a_matrix_is_planned_run_and_timed(
    conductor: Conductor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RIG_CACHE", str(tmp_path / "cache"))
    asked = []

    def run(plan: RunPlan, options: Options, _listener: object, _cancel: object) -> tuple[RunResult, Path]:
        asked.append((plan.id, options.refused_is_error))
        return replace(result(plan), phases=(Phase("boot", 7.0),)), tmp_path

    conductor(run)
    assert cli.main(["matrix", "quick", "--plan"]) == 0
    assert "is not known" in capsys.readouterr().out
    assert cli.main(["matrix", "quick", "--jobs", "1"]) == 0
    assert asked[:3] == [(f"panic@{guest}/debian-6.1", True) for guest in ("i386", "pae", "x86_64")]
    assert f"{len(asked)} cells: {len(asked)} pass" in capsys.readouterr().out
    assert cli.main(["matrix", "quick", "--plan", "--json"]) == 0
    assert {cell["seconds"] for cell in json.loads(capsys.readouterr().out)["cells"]} == {7.0}
