"""A wheel, unpacked where there is no checkout, has the whole catalogue."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 100.0  # seconds


def sh(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        stdin=subprocess.DEVNULL,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git knows or would add, so that nothing is left in the checkout."""
    work = tmp_path_factory.mktemp("wheel")
    listed = sh("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = work / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    (work / "source" / "README.md").touch()
    # What pip calls (PEP 517), of the setuptools that is here: nothing is asked of an index.
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    sh(sys.executable, "-c", build, work, cwd=work / "source")
    (built,) = work.glob("*.whl")
    return built


def test_wheel_holds_every_catalogue_file_and_every_module(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for part in ("guests", "kernels", "scenarios"):
        for path in sh("git", "ls-files", part, cwd=ROOT).splitlines():
            assert f"rig/data/{path}" in names
    for path in sh("git", "ls-files", "rig", cwd=ROOT).splitlines():
        assert path in names
    assert not [name for name in names if name.startswith(("tests/", "guests/", "results/"))]


def test_unpacked_wheel_finds_its_catalogue(wheel: Path, tmp_path: Path) -> None:
    """Installing a wheel is unpacking it into site-packages, and a script for each entry point."""
    site = tmp_path / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
import rig
from importlib.metadata import distributions
from pathlib import Path
from rig import catalog
assert Path(rig.__file__).is_relative_to({str(site)!r}), rig.__file__
found = catalog.load()
assert all(path.is_relative_to({str(site)!r}) for path in found.files.values())
print(*found.guests, *found.kernels)
[installed] = distributions(path=[{str(site)!r}])
[script] = installed.entry_points.select(group="console_scripts")
assert script.name == "rig"
sys.argv = ["rig", "--help"]
script.load()()
"""
    # What rig stands on comes from the environment that runs this test; rig itself must not.
    said = sh(sys.executable, "-c", code, cwd=tmp_path)
    # not an exact list: a new guest is one TOML file, and no test
    assert {"i386", "pae", "x86_64", "debian-6.1"} <= set(said.split())
    assert "exit codes:" in said
