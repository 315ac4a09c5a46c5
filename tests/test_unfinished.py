"""What killed rigs leave in a results directory is removed by the next one, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import unfinished
from rig.evidence import EvidenceWriter

HOLDER = "import sys; from pathlib import Path; from rig import unfinished; print(unfinished.begin(Path(sys.argv[1]), "
HOLDER += "'run').path, flush=True); sys.stdin.read()"


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another rig in the middle of a run, and its directory."""
    argv = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def hidden(results: Path) -> set[Path]:
    return set(results.glob(".*"))


def test_a_running_rig_s_directory_stays_and_a_killed_one_s_goes(
    other: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, theirs = other
    (theirs / "console.log").write_text("Linux version")
    mine = EvidenceWriter(tmp_path, "run")
    assert hidden(tmp_path) == {theirs, mine.path}
    process.kill()
    process.wait()
    another = EvidenceWriter(tmp_path, "run")
    assert hidden(tmp_path) == {mine.path, another.path}  # mine: held by this very process


def test_what_is_finished_or_discarded_is_let_go(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    EvidenceWriter(tmp_path, "run").discard()
    EvidenceWriter(tmp_path, "run").finish()
    assert len(os.listdir("/proc/self/fd")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_not_the_rig_s_own_stays(tmp_path: Path) -> None:
    """A user may have named any directory, their home too: other hidden ones, files, links to elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    results = tmp_path / "results"
    (results / ".config").mkdir(parents=True)
    (results / ".rig.note").write_text("mine")
    (results / ".rig.link").symlink_to(elsewhere)
    unfinished.begin(results, "run").let_go()
    assert {".config", ".rig.note", ".rig.link"} < {path.name for path in results.iterdir()}
    assert elsewhere.is_dir()
