"""What killed rigs leave in a results directory, and in TMPDIR, is removed by the next one, and nothing else is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import unfinished
from rig.errors import EvidenceError
from rig.evidence.writer import EvidenceWriter

HOLDER = """
import sys
from pathlib import Path
from rig import unfinished
with unfinished.temporary("held") as folder:
    print(unfinished.begin(Path(sys.argv[1]), "run").path, folder, sep="\\n", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR, here and in other processes."""
    folder = tmp_path_factory.mktemp("tmp")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def other(tmp_path: Path, temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another rig in the middle of a run that is held, and its directory; it has one in TMPDIR, too."""
    argv = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs, held = (Path(process.stdout.readline().strip()) for _ in range(2))
        assert held.parent == temporary
        yield process, theirs
        process.kill()


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def hidden(results: Path) -> set[Path]:
    return set(results.glob(".*"))


def test_a_running_rig_s_directory_stays_and_a_killed_one_s_goes(
    other: tuple[subprocess.Popen[str], Path], tmp_path: Path, temporary: Path
) -> None:
    process, theirs = other
    [held] = hidden(temporary)
    (held / "qmp").touch()
    (theirs / "console.log").write_text("Linux version")
    mine = EvidenceWriter(tmp_path, "run")
    assert hidden(tmp_path) == {theirs, mine.path}
    assert hidden(temporary) == {held}
    process.kill()
    process.wait()
    another = EvidenceWriter(tmp_path, "run")
    assert hidden(tmp_path) == {mine.path, another.path}  # mine: held by this very process
    assert hidden(temporary) == set()


def test_what_is_finished_or_discarded_is_let_go(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    EvidenceWriter(tmp_path, "run").discard()
    EvidenceWriter(tmp_path, "run").finish()
    assert len(os.listdir("/proc/self/fd")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_somebody_removed_is_not_finished(tmp_path: Path) -> None:
    writer = EvidenceWriter(tmp_path, "run")
    writer.write("run.json", b"{}")
    (writer.path / "run.json").unlink()
    with pytest.raises(EvidenceError, match=r"run.json is gone"):
        writer.finish()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_one_is_private_and_goes_when_it_is_left(temporary: Path) -> None:
    with unfinished.temporary("shell") as folder:
        assert hidden(temporary) == {folder}
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not hidden(temporary)


def test_a_run_needs_no_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    unfinished.begin(tmp_path, "run").let_go()
    assert len(hidden(tmp_path)) == 1


def test_another_user_s_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / ".rig.run.x"
    (theirs / "memory").mkdir(parents=True)
    monkeypatch.setattr("os.geteuid", lambda: theirs.stat().st_uid + 1)
    unfinished.begin(tmp_path, "run").let_go()
    assert theirs.exists()


def test_one_that_is_made_but_not_locked_yet_stays(tmp_path: Path) -> None:
    """Nobody waits for a lock of TMPDIR, which anybody may hold for ever. An empty one of long ago goes."""
    made, left = tmp_path / ".rig.run.x", tmp_path / ".rig.run.y"
    for path in (made, left):
        path.mkdir()
    os.utime(left, (1, 1))
    with open_directory(tmp_path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        unfinished.begin(tmp_path, "next").let_go()
    assert made.exists()
    assert not left.exists()


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
