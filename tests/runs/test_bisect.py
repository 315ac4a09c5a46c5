"""`git bisect run` with rig as the judge, on a repository whose commits select one of two kernels built before."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rig.catalog import load
from rig.guest.packages import PackageCache
from rig.kernel.build import build
from tests.runs.conftest import ROOT, Done, figures, rig

pytestmark = pytest.mark.vm

# As a kernel's: bzImage and vmlinux appear where a build puts them. `make` fails on the commit that breaks the build.
MAKEFILE = """\
bzImage: choice
\tmkdir -p arch/x86/boot
\tcp `cat choice`/bzImage arch/x86/boot/bzImage
\tcp `cat choice`/vmlinux vmlinux
"""
SCRIPT = """\
#!/bin/sh
make bzImage || exit 125   # this commit does not build: skip it
{python} -m rig run panic --guest x86_64 --kernel-tree . --bisect --results {results}
"""
CULPRIT = "machine_kexec: take the live pgd"


@pytest.fixture(scope="module")
def kernels() -> tuple[Path, Path]:
    """Directories with bzImage and vmlinux: of the plain kernel, and of the one that overwrites the pgd."""
    catalogue, cache = load(()), PackageCache()

    def built(name: str) -> Path:
        outcome = build(catalogue.kernels[name], catalogue.guests["x86_64"], cache, threading.Event(), 2)
        return outcome.files.bzimage.parent

    return built("built-6.1"), built("built-6.1-overwrite-pgd")


def git(where: Path, *words: str) -> str:
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    return subprocess.run(
        ["git", *identity, *words], cwd=where, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    ).stdout


@pytest.fixture
def repository(tmp_path: Path, kernels: tuple[Path, Path]) -> Path:
    """Six commits after a good one: the third, which is tried first, breaks the build, the fifth is the culprit."""
    plain, overwriting = kernels
    where = tmp_path / "linux"
    where.mkdir()
    git(where, "init", "-q")
    (where / "Makefile").write_text(MAKEFILE)
    (where / ".gitignore").write_text("arch\nvmlinux\n")
    history = [
        ("v1", plain),
        ("comment", plain),
        ("documentation", plain),
        ("half a change", tmp_path / "nowhere"),
        ("the other half", plain),
        (CULPRIT, overwriting),
        ("v2", overwriting),
    ]
    for subject, kernel in history:
        (where / "choice").write_text(f"{kernel}\n")
        (where / "subject").write_text(subject)
        git(where, "add", ".")
        git(where, "commit", "-q", "-m", subject)
    return where


def bisect(repository: Path, script: str) -> Done:
    """From the first commit, good, to the last one, bad."""
    path = repository.parent / "judge"
    path.write_text(script)
    path.chmod(0o755)
    git(repository, "bisect", "start", "HEAD", "HEAD~6")
    done = subprocess.run(
        ["git", "bisect", "run", str(path)],
        cwd=repository,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(Path.home()), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def told(repository: Path) -> set[str]:
    """What was said of commits: good, bad, skip."""
    log = git(repository, "bisect", "log").splitlines()
    return {line.split()[2] for line in log if line.startswith("git bisect")}


def test_the_commit_that_overwrites_the_pgd_is_found(repository: Path, tmp_path: Path) -> None:
    culprit = git(repository, "rev-parse", "HEAD~1").strip()
    done = bisect(repository, SCRIPT.format(python=sys.executable, results=tmp_path / "results"))
    assert f"{culprit} is the first bad commit" in done.out, done.out + done.err
    assert told(repository) == {"start", "good", "bad", "skip"}


def test_a_wrong_request_ends_it_and_blames_nobody(repository: Path, tmp_path: Path) -> None:
    script = SCRIPT.format(python=sys.executable, results=tmp_path / "results").replace("x86_64", "pae")
    done = bisect(repository, script)
    assert done.status != 0
    assert "not for the guest pae" in done.err
    assert told(repository) == {"start", "skip"}  # skipped is the commit that does not build


def test_the_vmlinux_of_the_tree_names_the_writer(repository: Path, tmp_path: Path) -> None:
    subprocess.run(["make", "-s", "bzImage"], cwd=repository, check=True)
    line = ("run", "panic", "--guest", "x86_64", "--kernel-tree", repository, "--results", tmp_path / "results")
    done = rig(*line, "--json")
    assert done.status == 1, done.err
    pgd = figures(done.results["x86_64"], "pgd-survives")
    assert pgd["entries_changed"]
    assert pgd["writer"].startswith("machine_kexec+")
