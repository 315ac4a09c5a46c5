"""The pages over many runs, on disk: kept up to date, merged, complete; and what they refuse."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rig.errors import EvidenceError, RequestError
from rig.evidence.writer import to_json
from rig.history import FILE, History
from rig.model import Verdict
from rig.report import site
from rig.report.directories import MARK, runs_in
from tests.forge import Machine
from tests.report.nights import leave, night
from tests.report.test_html import outline

P, F = Verdict.PASS, Verdict.FAIL
CELL, OTHER = "panic@pae/debian-6.1", "panic@i386/debian-6.1"


def silent(text: str) -> None:
    raise AssertionError(f"nothing to say, but: {text}")


def links(page: Path) -> list[str]:
    return outline(page.read_text()).links


def test_after_a_run_the_index_has_it_and_what_lay_there_before(tmp_path: Path) -> None:
    leave(tmp_path, "before", night(OTHER, "01"))
    result = night(CELL, "02", F)
    site.update(tmp_path, [(result, leave(tmp_path, "new", result))], silent)
    assert {"before/report.html", "new/report.html", "history.html"} <= set(links(tmp_path / site.INDEX))
    assert {"before/report.html", "new/report.html", "index.html"} <= set(links(tmp_path / site.HISTORY))
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_what_the_history_has_is_not_read_again(tmp_path: Path) -> None:
    """Otherwise each run would take longer than the one before it."""
    old, result = leave(tmp_path, "old", night(OTHER, "01")), night(CELL, "02")
    site.renew(tmp_path, silent)
    (old / "result.json").write_text("torn meanwhile")
    site.update(tmp_path, [(result, leave(tmp_path, "new", result))], silent)
    assert {"old/report.html", "new/report.html"} <= set(links(tmp_path / site.INDEX))
    assert runs_in(tmp_path, {"old"}) == [tmp_path / "new"]


def test_a_deleted_run_stays_in_the_index_without_a_link(tmp_path: Path) -> None:
    result = night(CELL, "02")
    site.update(tmp_path, [(result, tmp_path / "gone")], silent)
    assert "gone/report.html" not in links(tmp_path / site.INDEX)
    assert "2026-11-02 01:02" in outline((tmp_path / site.INDEX).read_text()).text


def test_a_torn_result_is_said_and_skipped(tmp_path: Path) -> None:
    leave(tmp_path, "whole", night(CELL, "01"))
    (leave(tmp_path, "torn", night(OTHER, "01")) / "result.json").write_text('{"id": 7')
    (tmp_path / "empty").mkdir()
    said: list[str] = []
    assert site.renew(tmp_path, said.append) == [tmp_path / site.INDEX, tmp_path / site.HISTORY]
    assert len(said) == 1
    assert "torn/result.json" in said[0]
    text = outline((tmp_path / site.INDEX).read_text()).text
    assert "torn/result.json" in text
    assert "1 cell judged" in text


def test_rigs_that_write_one_index_at_the_same_time(tmp_path: Path) -> None:
    def one(number: int) -> None:
        result = night(f"panic@guest{number}/debian-6.1", "01")
        site.update(tmp_path, [(result, leave(tmp_path, f"run{number}", result))], silent)

    for number in range(6):  # whole runs, that each of the rigs may find before their own rig reports them
        leave(tmp_path, f"older{number}", night(f"older@guest{number}/debian-6.1", "01"))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))
    with History(tmp_path / FILE) as history:
        assert len(history.records()) == 12
    assert outline((tmp_path / site.INDEX).read_text()).open == []
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_shards_are_merged_into_a_site_whose_links_resolve(tmp_path: Path) -> None:
    leave(tmp_path / "one", "panic_pae", night(CELL, "01", F))
    leave(tmp_path / "two", "panic_pae", night(CELL, "02"))
    alone = leave(tmp_path / "three", "odd #name%20", night(OTHER, "02"))
    target = tmp_path / "public/site"
    given = [tmp_path / "one", tmp_path / "two", tmp_path / "two/panic_pae", alone]
    assert site.build(target, given, silent) == [target / site.INDEX, target / site.HISTORY]
    names = {"panic_pae", "panic_pae.2", "odd #name%20"}
    assert {path.name for path in (target / "runs").iterdir()} == names
    assert all((target / "runs" / name / "console.log").is_file() for name in names)
    assert {link for link in links(target / site.INDEX) if link.startswith("runs/")} == {
        "runs/panic_pae.2/report.html",
        "runs/odd%20%23name%2520/report.html",
    }
    assert "runs/panic_pae/report.html" in links(target / site.HISTORY)


def test_a_site_goes_on_from_an_earlier_one_and_from_the_results_own_history(tmp_path: Path) -> None:
    target, results = tmp_path / "site", tmp_path / "results"
    site.build(target, [leave(tmp_path, "a", night(CELL, "01"))], silent)
    (target / "CNAME").write_text("kept")
    with History(results / FILE) as history:
        history.add(night(CELL, "02", F), results / "deleted")
    leave(results, "b", night(CELL, "03"))
    site.build(target, [results], silent)
    with History(target / FILE) as history:
        assert [(run.started[8:10], run.directory) for run in history.of(CELL)] == [
            ("01", ""),
            ("02", ""),
            ("03", "runs/b"),
        ]
    assert [path.name for path in (target / "runs").iterdir()] == ["b"]
    assert sorted(path.name for path in target.iterdir()) == [
        *("CNAME", "history.html", "history.sqlite", "index.html", "runs", "site.txt")
    ]
    assert (target / "CNAME").read_text() == "kept"
    kept = tmp_path / "kept"  # as a CI system would: of the earlier nights only their history
    kept.mkdir()
    (target / FILE).rename(kept / FILE)
    site.build(tmp_path / "tonight", [leave(tmp_path, "c", night(CELL, "04")), kept], silent)
    with History(tmp_path / "tonight" / FILE) as history:
        assert len(history.of(CELL)) == 4
    site.build(tmp_path / "again", [target], silent)  # a site is as good a source as a results directory
    assert (tmp_path / "again/runs/b/report.html").is_file()


def test_whole_images_and_links_stay_out_and_it_is_said(tmp_path: Path) -> None:
    evidence = Machine().write(tmp_path)
    run = evidence.path.rename(tmp_path / "run")
    (run / "result.json").write_bytes(to_json(night(CELL, "01")))
    (run / "report.html").write_text("page of run")
    (run / "memory/panic.ram.zst").write_bytes(bytes(2048))
    (run / "vmcore/vmcore").write_bytes(bytes(1024))
    os.symlink("/etc/hostname", run / "secret")
    target, said = tmp_path / "site", list[str]()
    site.build(target, [run], said.append)
    copied = {path.relative_to(target / "runs/run").as_posix() for path in (target / "runs/run").rglob("*")}
    assert {"memory/panic.pages.zst", "vmcore/headers.bin"} <= copied
    assert not {"memory/panic.ram.zst", "vmcore/vmcore", "secret"} & copied
    assert said == ["Whole memory images and whole dumps, 3072 B of 1 run, are left out here."]
    assert said[0] in outline((target / site.INDEX).read_text()).text
    page = target / "runs/run/report.html"
    assert "page of run" not in page.read_text()  # rendered anew: the run's own links to what is not here
    assert all((page.parent / link).is_file() for link in links(page) if not link.startswith("#"))


@pytest.mark.parametrize("what", ["not empty", "a file", "holds the runs", "is the results directory"])
def test_places_that_a_site_must_not_take(tmp_path: Path, what: str) -> None:
    results = tmp_path / "results"
    given = leave(results, "run", night(CELL, "01"))
    target = tmp_path / "target"
    if what == "not empty":
        target.mkdir()
        (target / "thesis.tex").write_text("mine")
    elif what == "a file":
        target.write_text("mine")
    elif what == "holds the runs":
        target = results
        (results / MARK).touch()
    else:
        site.renew(results, silent)
        target, given = results, results
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RequestError) as raised:
        site.build(target, [given], silent)
    assert str(target) in raised.value.message
    assert sorted(tmp_path.rglob("*")) == before


def test_what_holds_no_runs(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RequestError, match=str(place)):
            runs_in(place)


def test_a_damaged_history_ends_the_update_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("torn")
    with pytest.raises(EvidenceError, match="is damaged"):
        site.update(tmp_path, [(night(CELL, "01"), tmp_path / "run")], silent)
    assert (tmp_path / FILE).read_text() == "torn"
    said: list[str] = []
    leave(tmp_path, "run", night(CELL, "01"))
    site.build(tmp_path / "site", [tmp_path], said.append)  # a report of what can be read is still had
    assert len(said) == 1
    assert "is damaged" in said[0]
