"""`rig report`, `rig history`, and what `rig run` leaves beside its runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rig import cli
from rig.commands.common import keep_history
from rig.errors import EvidenceError
from rig.history import FILE
from rig.model import Verdict
from tests.cli.pretended import Conductor, pretend, words
from tests.forge import Machine
from tests.report.nights import leave, night

CELL = "panic@pae/debian-6.1"


def test_report_renews_the_pages_where_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = Machine().write(tmp_path).path
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/report.html\n"
    assert not (tmp_path / "index.html").exists()
    (run / "result.json").write_text(json.dumps({"id": "torn"}))
    leave(tmp_path, "other", night(CELL, "01"))  # it has no run.json: it can't be judged again
    assert cli.main(["report", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["written"] == [f"{run}/report.html", f"{tmp_path}/index.html", f"{tmp_path}/history.html"]
    assert f"left out: {run}/result.json" in err
    assert "no new page for other: " in err
    assert "1 cell judged" in (tmp_path / "index.html").read_text()
    assert cli.main(["report", str(tmp_path / "other")]) == 2


def test_report_writes_a_site(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = leave(tmp_path / "results", "run", night(CELL, "01"))
    for _ in range(2):  # the second time over the first
        assert cli.main(["report", str(run), "--html", str(tmp_path / "site")]) == 0
    assert capsys.readouterr().out == 2 * f"{tmp_path}/site/index.html\n{tmp_path}/site/history.html\n"
    assert cli.main(["report", str(run), "--html", str(tmp_path / "results")]) == 2
    assert "lies in" in capsys.readouterr().err


def test_history_of_a_cell_fits_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number, verdict in enumerate((Verdict.PASS, Verdict.FAIL, Verdict.PASS), 1):
        leave(tmp_path, f"run.{number}", night(CELL, f"{number:02}", verdict))
    leave(tmp_path, "other", night("panic@i386/debian-6.1", "01"))
    assert cli.main(["history", "*@pae/*", "--results", str(tmp_path), "--last", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        CELL,
        "  3 runs: 2 PASS, 1 FAIL (the last 2 shown)",
        "  2026-11-02 01:02  ✗ FAIL     8.8 s  pgd 1",
        "      pgd-survives: said on 02",
        "  2026-11-03 01:02  ✓ PASS     8.8 s  pgd 0",
    ]
    assert not (tmp_path / FILE).exists()  # whoever only asks writes nothing
    assert cli.main(["history", "panic", "--results", str(tmp_path), "--last", "1", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["id"], run["verdict"], run["directory"][-5:]) for run in runs] == [
        ("panic@i386/debian-6.1", "pass", "other"),
        (CELL, "pass", "run.3"),
    ]


@pytest.mark.parametrize(("pattern", "said"), [("nothing", CELL), ("*", "hint:")])
def test_history_of_what_is_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pattern: str, said: str
) -> None:
    if pattern != "*":
        leave(tmp_path, "run", night(CELL, "01"))
    assert cli.main(["history", pattern, "--results", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_trouble_with_the_index_costs_no_verdict(
    conductor: Conductor, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(*_: object) -> None:
        raise EvidenceError("the history is damaged", hint="move it away")

    pretend(monkeypatch, "rig.report.site", update=update)
    assert cli.main(words("run panic --guest pae")) == 0
    out, err = capsys.readouterr()
    assert "panic@pae/debian-6.1: pass" in out
    assert "rig: the index of results is not up to date: the history is damaged" in err


def test_a_run_is_in_the_history_and_the_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = night(CELL, "01")
    keep_history(tmp_path, [(result, leave(tmp_path, "run", result))])
    assert "1 cell judged" in (tmp_path / "index.html").read_text()
    assert "run/report.html" in (tmp_path / "history.html").read_text()
    assert capsys.readouterr() == ("", "")
    (tmp_path / "index.html").unlink()
    (tmp_path / "index.html").mkdir()
    keep_history(tmp_path, [(result, tmp_path / "run")])
    assert (
        f"the index of {tmp_path} is not up to date: {tmp_path}/index.html can't be written" in capsys.readouterr().err
    )


def test_nothing_printed_steers_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    steers = "\x1b]0;owned\x07\x9b31m\u202e"
    run = Machine().write(tmp_path).path.rename(tmp_path / f"run{steers}")
    for words_ in (["check"], ["check", "--json"], ["report"]):
        assert cli.main([*words_, str(run)]) in (0, 1, 3)
        out, err = capsys.readouterr()
        assert "owned" in out
        assert not set(steers) & set(out + err) - set("0;owned]31m")
    assert cli.main(["check", f"nowhere{steers}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(r"rig: nowhere\x1b]0;owned\x07\x9b31m\u202e is not an evidence directory")
