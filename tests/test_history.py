"""The history: what is kept of a run, once, whatever happens to its directory; and a file that is no history."""

from __future__ import annotations

import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from rig.errors import EvidenceError, MachineError, RequestError
from rig.evidence.reader import from_json
from rig.evidence.writer import to_json
from rig.history import FILE, History, key_of, record_of
from rig.model import CheckResult, RunResult, Verdict
from tests.report import forge
from tests.report.nights import leave, night

CELL = "panic@pae/debian-6.1"


def test_what_is_kept_of_a_run() -> None:
    figures = {"fidelity": 0.999, "kexec_cost_bytes": 630, "unaccounted": True, "transfer": {"bytes": 1}}
    checks = [*forge.FAILED.checks, CheckResult("vmcore-faithful", Verdict.PASS, "", figures)]
    kept = record_of(replace(forge.FAILED, checks=tuple(checks), started="2026-11-23T01:02:03+00:00"), "there")
    assert kept.figures == {
        "pgd-survives.bytes_changed": 2048,
        "crash-kernel-boots.seconds": 6.3,
        "memory-accounted.bytes_changed": 642,
        "memory-accounted.unaccounted": 0,
        "vmcore-faithful.fidelity": 0.999,
        "vmcore-faithful.kexec_cost_bytes": 630,
    }
    assert (kept.verdict, kept.as_expected, kept.directory) == (Verdict.FAIL, False, "there")
    assert kept.why.startswith("pgd-survives: pgd at 0x1fef0000: 2048 of 4096 bytes changed")
    assert kept.seconds == pytest.approx(sum(phase.seconds for phase in forge.FAILED.phases))


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (forge.BROKEN_OFF, "In phase boot: "),
        (forge.UNNOTICED, "pgd-survives passed, but had to fail"),
        (
            forge.result(Verdict.SKIP, [CheckResult("x", Verdict.SKIP, "no \x1b[2J flavour")]),
            r"Skipped: no \x1b[2J fla",
        ),
        (forge.PASSED, "The page directory survived"),
    ],
    ids=["error", "unnoticed", "skip", "pass"],
)
def test_why_is_one_printable_sentence(result: RunResult, why: str) -> None:
    assert record_of(result, "").why.startswith(why)


def test_a_run_is_the_same_however_its_file_is_written() -> None:
    blob = to_json(forge.FAILED)
    document = json.loads(blob)
    turned = dict(reversed(document.items()))
    del turned["started"]  # as an older rig wrote it
    for text in (blob, json.dumps(turned).encode()):
        assert key_of(from_json(text, RunResult, Path("x"))) == key_of(forge.FAILED)
    document["checks"][0]["figures"]["bytes_changed"] += 1
    assert key_of(from_json(json.dumps(document).encode(), RunResult, Path("x"))) != key_of(forge.FAILED)


def test_a_run_added_twice_is_there_once_and_outlives_its_directory(tmp_path: Path) -> None:
    later, earlier = night(CELL, "23"), night(CELL, "22", Verdict.FAIL)
    with History(tmp_path / FILE) as history:
        assert history.add(later, leave(tmp_path, "one", later))
        assert history.add(earlier, leave(tmp_path, "two", earlier))
        assert not history.add(later, tmp_path / "one")
    shutil.rmtree(tmp_path / "two")
    with History(tmp_path / FILE) as history:
        assert [(run.verdict, run.directory) for run in history.of(CELL)] == [("fail", "two"), ("pass", "one")]
        assert history.of("panic@pae") == []


def test_records_by_pattern(tmp_path: Path) -> None:
    with History(None) as history:
        for id in (CELL, "panic-key@pae/debian-6.1", "panic@i386/debian-6.1"):
            history.add(night(id, "23"), tmp_path / id)
        found = {pattern: len(history.records(pattern)) for pattern in ("*", "panic", "panic*@pae/*", "pae")}
    assert found == {"*": 3, "panic": 2, "panic*@pae/*": 2, "pae": 0}


def test_a_name_used_again_is_the_new_run_s(tmp_path: Path) -> None:
    with History(tmp_path / FILE) as history:
        history.add(night(CELL, "22"), tmp_path / "same")
        history.add(night(CELL, "23"), tmp_path / "same")
        assert [run.directory for run in history.of(CELL)] == ["", "same"]


def test_a_result_without_a_start_has_that_of_its_file(tmp_path: Path) -> None:
    result = replace(night(CELL, "23"), started="")
    with History(tmp_path / FILE) as history:
        history.add(result, leave(tmp_path, "one", result))
        assert history.of(CELL)[0].started.startswith("20")


def test_many_rigs_at_once(tmp_path: Path) -> None:
    def one(number: int) -> int:
        with History(tmp_path / FILE) as history:
            return sum(
                history.add(night(CELL, f"{day:02}", sha256=f"{number % 4}" * 64), tmp_path / f"{number}.{day}")
                for day in range(1, 11)
            )

    with ThreadPoolExecutor(8) as pool:
        added = sum(pool.map(one, range(8)))  # four different rigs, and four that add the same again
    with History(tmp_path / FILE) as history:
        assert len(history.records()) == added == 40
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(FILE)] == []


def other_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE runs (key TEXT)")
    database.close()


def with_a_trigger(path: Path) -> None:
    """What it does comes with the file, not with the rig."""
    with History(path):
        pass
    with sqlite3.connect(path) as database:
        database.execute("CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM runs; END")
    database.close()


def newer(path: Path) -> None:
    with History(path):
        pass
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda path: path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000), EvidenceError, "is damaged"),
        (lambda path: path.write_text("notes"), EvidenceError, "is damaged"),
        (lambda path: path.touch(), EvidenceError, "not a history of runs"),
        (other_database, EvidenceError, "not a history of runs"),
        (with_a_trigger, EvidenceError, "its tables are not those of a history"),
        (lambda path: path.symlink_to("/etc/hostname"), EvidenceError, "is a symbolic link"),
        (newer, RequestError, "was written by a newer rig: its schema is 99"),
        (lambda path: path.mkdir(), EvidenceError, "is not a regular file"),
    ],
    ids=["torn", "text", "empty", "other", "trigger", "link", "newer", "directory"],
)
def test_what_is_no_history_is_named_and_left_alone(
    tmp_path: Path, make: object, kind: type[MachineError], said: str
) -> None:
    path = tmp_path / FILE
    make(path)  # type: ignore[operator]
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(kind, match=said) as raised:
        History(path)
    assert str(path) in raised.value.message
    assert raised.value.hint
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_damage_inside_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / FILE
    with History(path) as history:
        for day in range(1, 29):
            history.add(night(CELL, f"{day:02}"), tmp_path / str(day))
    blob = bytearray(path.read_bytes())
    blob[5 * 4096 :] = b"\xa5" * (len(blob) - 5 * 4096)
    path.write_bytes(blob)
    with pytest.raises(EvidenceError, match="is damaged"), History(path) as history:
        history.records()
