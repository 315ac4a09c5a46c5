"""`rig report` with machine-readable formats: what goes where."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rig import cli
from rig.errors import RequestError
from rig.evidence.writer import to_json
from rig.model import Arch, Verdict
from tests.cli.pretended import pretend
from tests.report import forge


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The words for two runs, of which there is no more than the result. No page can be written."""
    facts = SimpleNamespace(plan=SimpleNamespace(guest=SimpleNamespace(arch=Arch.AMD64)))
    monkeypatch.setattr("rig.evidence.reader.Evidence.facts", facts)

    def no_page(*_: object) -> str:
        raise AssertionError("a page was made")

    pretend(monkeypatch, "rig.report.html", render_run=no_page)
    for name, result in (("good", forge.PASSED), ("sabotage", forge.SABOTAGED)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_bytes(to_json(result))
    return [str(tmp_path / "good"), str(tmp_path / "sabotage")]


def test_files_and_no_page(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"--junit": "<?xml", "--ktap": "KTAP version 1\n", "--kcidb": "{", "--markdown": "## rig: 2 runs\n"}
    words = [word for name in names for word in (name, str(tmp_path / f"new/{name[2:]}"))]
    assert cli.main(["report", *runs, *words]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == words[1::2]
    for path, start in zip(out.splitlines(), names.values(), strict=True):
        assert Path(path).read_text().startswith(start)
    assert "left out: 1 run: expects a failure" in err
    paths = {test["path"] for test in json.loads((tmp_path / "new/kcidb").read_text())["tests"]}
    assert "kexec.panic" in paths
    assert cli.main(["report", *runs, *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == words[1::2]


def test_of_each_cell_the_latest_run_counts(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = tmp_path / "later"
    later.mkdir()
    again = replace(
        forge.PASSED, started="2030-01-01T00:00:00+00:00", verdict=Verdict.ERROR, surprise="could not judge"
    )
    (later / "result.json").write_bytes(to_json(again))
    assert cli.main(["report", str(later), *runs, "--ktap", "-"]) == 0
    out = capsys.readouterr().out
    assert "1..2\n" in out
    assert f"not ok 1 {again.id} # ERROR" in out


def test_stdout_has_the_document_alone(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", *runs, "--ktap", "-"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("KTAP version 1\n1..2\n")
    assert out.splitlines()[-1].startswith(f"ok 2 {forge.SABOTAGED.id} # XFAIL ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ktap", "-", "--junit", "-"], "--junit and --ktap can't both go to stdout"),
        (["--ktap", "-", "--json"], "--ktap and --json can't both go to stdout"),
        (["--ktap", "same", "--junit", "same"], "--junit and --ktap can't both go to same"),
        (["--kcidb", "x", "--kcidb-origin", "No"], "'No' is no KCIDB origin"),
        (["--markdown", "/dev/null/x"], "/dev/null/x can't be written: "),
    ],
)
def test_refused(runs: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", *runs, *words]) == RequestError.exit_code
    assert f"rig: {said}" in capsys.readouterr().err


def test_without_kcidb_io_it_is_written_and_said(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kcidb_io.schema", None)
    assert cli.main(["report", runs[0], "--kcidb", "-", "--kcidb-origin", "lab_7"]) == 0
    out, err = capsys.readouterr()
    assert {build["origin"] for build in json.loads(out)["builds"]} == {"lab_7"}
    assert "not validated: kcidb-io is not installed" in err


def test_what_kcidb_refuses_is_told(
    runs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"version": {"major": 5, "minor": 0}, "builds": [{"id": 7}]}
    monkeypatch.setattr("rig.report.kcidb.kcidb", lambda *_: made)
    assert cli.main(["report", runs[0], "--kcidb", "-"]) == 3
    err = capsys.readouterr().err
    assert "KCIDB refuses these results: " in err
    assert "$.builds[0]" in err
