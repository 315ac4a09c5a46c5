"""Evidence directories from strangers, through the command line: no hang, no traceback, nothing outside is read or
written, nothing printed steers a terminal."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rig import cli, reading
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from tests.forge import Machine
from tests.fuzz.strangers import DAMAGE, SECRET, commands, damaged, make, refuse

MOST = 1536  # MiB of memory that the whole suite has taken when this is over
TELLING = ("page-is-a-link", "words-that-steer", "console-of-10-gb")  # with all commands; the others in campaigns


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_strangers_send(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = damaged(make(tmp_path), [kind])
    of_run = commands(run)
    for words in of_run if kind in TELLING else of_run[:1]:
        refuse(words, capsys.readouterr, tmp_path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    assert peak < MOST, f"{peak} MiB"


@pytest.mark.parametrize("name", ["result-is-a-link", "run-is-a-fifo", "bomb-in-pages", "ram-without-end"])
def test_trouble_names_the_file_and_what_is_wrong(tmp_path: Path, name: str) -> None:
    run = damaged(make(tmp_path), [name])
    evidence = Evidence(run)
    words: dict[str, tuple[str, Callable[[], object]]] = {
        "result-is-a-link": ("result.json is a symbolic link", lambda: evidence.result),
        "run-is-a-fifo": ("run.json is not a regular file", lambda: evidence.facts),
        "bomb-in-pages": ("panic.pages.zst unpacks to 10737418240 bytes, more than", lambda: evidence.pages("panic")),
        "ram-without-end": (r"run.json: can't be true: ram\[0\]", lambda: evidence.facts),
    }
    said, read = words[name]
    with pytest.raises(EvidenceError, match=said):
        read()


def test_a_run_that_a_link_leads_to_is_not_among_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Else its page would be written where the link leads."""
    elsewhere = Machine().write(tmp_path / "elsewhere").path
    own = Machine().write(tmp_path / "results").path
    (tmp_path / "results" / "other").symlink_to(elsewhere)
    assert cli.main(["report", str(tmp_path / "results")]) == 0
    assert (own / "report.html").exists()
    assert not (elsewhere / "report.html").exists()


def test_a_draft_that_waits_as_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(threading, "get_ident", lambda: 8)
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / ".page.html.7.8").symlink_to("secret")
    reading.write_anew(tmp_path / "page.html", b"new")
    assert (tmp_path / "page.html").read_bytes() == b"new"
    assert (tmp_path / "secret").read_text() == SECRET
