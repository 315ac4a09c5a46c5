"""Whole runs, each as a user starts it: `rig ...` in a process of its own. What can be shared is run once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from rig.catalog import load
from rig.evidence.reader import Evidence
from rig.guest.packages import PackageCache
from rig.model import Checkpoint, PagingMode
from tests.report.published import VALIDATOR

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ("i386", "pae", "x86_64")


def rig_command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "rig", *map(str, words)]


@dataclass(frozen=True)
class Done:
    """A finished rig: exit status, stdout, stderr."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """stdout of a --json run."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The results of a --json run, by guest; each as the published schema has it."""
        found = {run["result"]["guest"]: run["result"] for run in self.document["runs"]}
        for result in found.values():
            VALIDATOR.validate(result)
        return found

    @property
    def directories(self) -> dict[str, Path]:
        return {run["result"]["guest"]: Path(run["directory"]) for run in self.document["runs"]}


def rig(*words: str | Path, environment: Mapping[str, str] = os.environ) -> Done:
    done = subprocess.run(
        rig_command(*words), cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    return Done(done.returncode, done.stdout, done.stderr)


def checks(result: Mapping[str, Any]) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in result["checks"]}


def figures(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(check["figures"] for check in result["checks"] if check["name"] == name)
    return found


@pytest.fixture(scope="session")
def panic_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """`rig run panic` on all of its guests, each booted, whole memory kept."""
    results = tmp_path_factory.mktemp("panic")
    yield rig("run", "panic", "--json", "--no-template", "--keep-memory", "--results", results)
    shutil.rmtree(results)


@dataclass(frozen=True)
class CapturedImage:
    """All of RAM at `panic`, unpacked, and how to walk it."""

    path: Path
    mode: PagingMode
    cr3: int


@pytest.fixture(scope="session", params=GUESTS)
def captured_image(
    request: pytest.FixtureRequest, panic_runs: Done, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CapturedImage]:
    evidence = Evidence(panic_runs.directories[request.param])
    path = tmp_path_factory.mktemp("image") / "ram"
    packed = evidence.path / "memory" / f"{Checkpoint.PANIC}.ram.zst"
    with packed.open("rb") as source, path.open("wb") as target:
        zstandard.ZstdDecompressor().copy_stream(source, target)
    facts = evidence.facts
    assert facts.mode is not None
    assert facts.cr3 is not None
    yield CapturedImage(path, facts.mode, facts.cr3)
    path.unlink()


@pytest.fixture(scope="session")
def own_bzimage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bzImage as a developer has it: a file, without packages and modules."""
    catalogue = load(())
    guest = catalogue.guests["x86_64"]
    files = PackageCache().kernel(catalogue.kernels[guest.kernel], guest)
    return Path(shutil.copy(files.bzimage, tmp_path_factory.mktemp("own") / "bzImage"))
