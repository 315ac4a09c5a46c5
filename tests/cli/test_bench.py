"""`rig bench`, with families that measure nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rig import cli
from rig.bench.figures import Bound, Figure
from rig.bench.setting import Bench
from rig.errors import MachineError
from tests.cli.pretended import words

HOLDS = Figure("memory", "comparison", 0.5, "x", bound=Bound(1.3), noise=0.1)
BROKEN = Figure("memory", "comparison", 1.5, "x", bound=Bound(1.3), noise=0.1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Bench]]:
    """What families were asked to measure; `walk` can't be, all others hold."""
    seen: list[tuple[str, Bench]] = []

    def measure(family: str, bench: Bench) -> list[Figure]:
        seen.append((family, bench))
        bench.say(f"{family}: measuring")
        if family == "walk":
            raise MachineError("volatility3 is not installed", hint="install it")
        return [HOLDS]

    monkeypatch.setattr("rig.commands.bench.measure", measure)
    return seen


def test_everything_by_default(asked: list[tuple[str, Bench]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words("bench --guest pae --accel tcg --deadline 99 --catalogue .")) == 3
    assert [family for family, _ in asked] == ["memory", "trace", "walk", "run", "matrix"]
    assert [plan.id for plan in asked[0][1].plans] == ["panic@pae/debian-6.1"]
    assert asked[0][1].words == ["--accel", "tcg", "--deadline", "99", "--catalogue", "."]
    out, err = capsys.readouterr()
    assert "not measured: volatility3 is not installed" in " ".join(out.split())
    assert out.endswith("4 of 4 bounds hold, 1 not measured\n")
    assert "rig: matrix: measuring\n" in err


def test_exit_code_and_json(
    asked: list[tuple[str, Bench]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words("bench run memory --json")) == 0
    assert [family for family, _ in asked] == ["run", "memory"]
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert [(one["value"], one["holds"]) for one in document["figures"]] == [(0.5, True)] * 2
    assert document["machine"]["cpus"] > 0
    monkeypatch.setattr("rig.commands.bench.measure", lambda _family, _bench: [BROKEN])
    assert cli.main(words("bench memory")) == 1
    assert "BROKEN" in capsys.readouterr().out


@pytest.mark.usefixtures("asked")
def test_a_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words("bench memory --json")) == 0
    before = tmp_path / "before.json"
    before.write_text(capsys.readouterr().out)
    assert cli.main(words(f"bench memory --baseline {before}")) == 0
    assert "nothing got worse by more than the noise, of 1 figures" in capsys.readouterr().out
    monkeypatch.setattr("rig.commands.bench.measure", lambda _family, _bench: [BROKEN])
    assert cli.main(words(f"bench memory --baseline {before} --json")) == 1
    (worse,) = json.loads(capsys.readouterr().out)["worse"]
    assert (worse["name"], worse["before"], worse["now"]) == ("comparison", 0.5, 1.5)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("bench walks", "no family of figures is called 'walks'"),
        ("bench --baseline nosuch.json", "nosuch.json can't be read: No such file"),
        ("bench --baseline /dev/null", "/dev/null holds no figures of rig bench"),
        ("bench --guest nosuch", "nosuch"),
    ],
)
def test_what_is_asked_wrongly(
    asked: list[tuple[str, Bench]], line: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(line)) == 2
    assert told in capsys.readouterr().err
    assert not asked


def test_cancelled_shows_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(_family: str, bench: Bench) -> list[Any]:
        bench.cancel.set()
        bench.check()
        return []

    monkeypatch.setattr("rig.commands.bench.measure", measure)
    assert cli.main(words("bench")) == cli.CANCELLED
    assert capsys.readouterr().out == ""
