"""`rig compare`: which runs are held against each other, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rig import cli
from rig.evidence.writer import to_json
from rig.judge import judge
from tests import forged_trace
from tests.forge import scenario


def run(results: Path, name: str = "panic", *, started: str = "", broken: bool = False) -> Path:
    """A run's evidence, with a hand-over, of the machine of tests/forged_trace.py. broken: the pgd has changed."""
    machine = forged_trace.machine(forged_trace.way())
    checks = ("pgd-survives", "crash-kernel-boots")
    machine.learn(plan=replace(machine.facts.plan, scenario=scenario(name=name, checks=checks)), started=started)
    if broken:
        machine.dumped_pgd = bytes(4096)
    evidence = machine.write(results)
    (evidence.path / "result.json").write_bytes(to_json(judge(evidence)))
    return evidence.path


def compare(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    code = cli.main(["compare", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def ids(document: Any) -> list[tuple[str, str]]:
    return [(one["before"]["id"], one["after"]["verdict"]) for one in document["comparisons"]]


def test_two_runs_whatever_they_are_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = run(tmp_path), run(tmp_path, "other")
    code, document = compare(capsys, before, after)
    assert (code, ids(document)) == (0, [("panic@i386/forged", "pass")])
    assert document["comparisons"][0]["way"]["steps"] == [6, 6]
    assert document["comparisons"][0]["way"]["hunks"] == []
    assert cli.main(["compare", str(before), str(after)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("✓ PASS -> ✓ PASS  panic@i386/forged -> other@i386/forged\n")
    assert "hand-over: 6 -> 6 instructions, the same but for addresses" in out


def test_directories_by_id_the_last_of_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    run(old, broken=True)
    run(old, "gone")
    run(new, broken=True, started="2026-11-23T02:00:00+00:00")
    run(new, started="2026-11-23T03:00:00+00:00")
    run(new, broken=True, started="2026-11-23T01:00:00+00:00")
    (old / ".unfinished").mkdir()
    code, document = compare(capsys, old, new)
    assert (code, ids(document)) == (0, [("panic@i386/forged", "pass")])
    assert (document["only_before"], document["only_after"]) == (["gone@i386/forged"], [])
    assert cli.main(["compare", str(new), str(old)]) == 1  # the other way round it got worse
    out = capsys.readouterr().out
    assert "1 run on both sides: 1 worse" in out
    assert "1 only after: gone@i386/forged" in out


def test_a_run_against_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run(tmp_path / "old")
    run(tmp_path / "new", broken=True)
    run(tmp_path / "new", "other")
    code, document = compare(capsys, one, tmp_path / "new")
    assert (code, ids(document), document["only_after"]) == (1, [("panic@i386/forged", "fail")], [])


def test_without_a_recording_the_rest_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = run(tmp_path), run(tmp_path)
    (after / "trace.log.zst").unlink()
    assert cli.main(["compare", str(before), str(after), "--html", str(tmp_path / "new/page.html")]) == 0
    said = capsys.readouterr().out
    assert "hand-over: not compared: after: " in said
    assert "trace.log.zst" in said
    assert "Not compared: after: " in (tmp_path / "new/page.html").read_text()


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = run(tmp_path / "old"), run(tmp_path / "new", "other")
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, said in (
        ((one, empty), f"{empty} holds no runs"),
        ((one, tmp_path / "nowhere"), "nowhere can't be read: No such file"),
        (
            (one.parent, other.parent),
            "have no run in common\n  hint: there are: panic@i386/forged; and other@i386/forged",
        ),
        ((one, other, "--html", "/dev/null/page"), "/dev/null/page can't be written: "),
    ):
        assert cli.main(["compare", *map(str, words)]) == 2
        assert said in capsys.readouterr().err
    (one / "result.json").write_text('{"schema": 1}')
    assert cli.main(["compare", str(one), str(other)]) == 3
    assert f"{one}/result.json: Object missing required field `id`" in capsys.readouterr().err
