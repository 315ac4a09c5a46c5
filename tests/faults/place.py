"""Where one fault is injected: a directory with everything that the rig may write to, and nothing else.

The cache is the rig's own, copied as far as two guests with a small kernel need it, so that it can be damaged; once for
all faults, and from there by hard links: whoever damages a file of it puts another one in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rig import catalog, ingredients, plan, prepare
from rig.guest.packages import PackageCache

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ("i386", "x86_64")
KERNEL = "built-6.1"  # boots in a third of the time that a distribution's takes
LARGE = 32 << 20  # bytes from which on a file is linked instead of copied: never damaged, see damage()


@dataclass(frozen=True)
class Place:
    """root: the directory. What the rig may write to is below it: see `environment`."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def cache(self) -> Path:
        return self.root / "cache" / "rig"

    @property
    def templates(self) -> Path:
        return self.cache / "templates"

    @property
    def environment(self) -> dict[str, str]:
        return {"XDG_CACHE_HOME": str(self.cache.parent), "TMPDIR": str(self.temporary), "RIG_CATALOGUE": ""}


def make_master(target: Path) -> None:
    """A cache with what runs of GUESTS with KERNEL take, from the rig's own; built there when that lacks it."""
    known, source = catalog.load(), PackageCache()
    root = source.cache.root
    wanted: set[Path] = {root / "kvm.json"}
    for one in plan.plan(known, ["panic"], list(GUESTS), KERNEL, None, None):
        made = prepare.gather(one, source, threading.Event())
        manifest = ingredients.record(made, root, "")
        wanted |= {root / name.removeprefix("cache/") for name in manifest.sha256 if name.startswith("cache/")}
        wanted |= set(made.kernel.bzimage.parent.iterdir())
    for record in (root / "system" / "records").glob("*/*.json"):
        said = json.loads(record.read_bytes())
        if record.name.startswith("package-") and said["tree"].startswith("trees/linux-source-6.1-"):
            wanted |= {record, root / said["deb"], *(p for p in (root / said["tree"]).rglob("*") if p.is_file())}
        elif record.name.startswith("userland-") and all((root / p) in wanted for p in said["files"].values()):
            wanted.add(record)
    for path in wanted:
        if path.is_file() and not path.is_symlink():
            _copy(path, target / path.relative_to(root))
    _make_templates(target)


def _make_templates(master: Path) -> None:
    """By a run of each guest."""
    with tempfile.TemporaryDirectory(dir=master.parent) as folder:
        place = Place(Path(folder))
        place.cache.parent.mkdir()
        place.cache.symlink_to(master)
        place.temporary.mkdir()
        words = (*(word for guest in GUESTS for word in ("--guest", guest)), "--kernel", KERNEL)
        subprocess.run(
            [
                sys.executable,
                "-m",
                "rig",
                "run",
                "panic",
                *words,
                "--jobs",
                "1",
                "--until",
                "handover",
                "--results",
                str(place.results),
            ],
            cwd=ROOT,
            env={**os.environ, **place.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
        )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size < LARGE:
        shutil.copy2(source, target)
    else:
        os.link(source, target)


@contextlib.contextmanager
def open_place(root: Path, master: Path, *, room: int = 0) -> Iterator[Place]:
    """room: MiB of a file system of its own for the results; 0: none."""
    place = Place(root)
    for folder in (place.results, place.temporary):
        folder.mkdir(parents=True)
    shutil.copytree(master, place.cache, copy_function=os.link)
    if room:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}m", "none", str(place.results)], check=True)
    try:
        yield place
    finally:
        for mounted in _mounts(root):
            subprocess.run(["umount", "-l", mounted], check=True)


def _mounts(root: Path) -> list[str]:
    """What is mounted below a directory."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return [where for line in lines if (where := line.split()[1]).startswith(f"{root}/")]


def damage(path: Path, content: bytes) -> None:
    """Put other content in a file's place. Its other links, which are others', keep theirs."""
    part = path.with_name(f"{path.name}.damaged")
    part.write_bytes(content)
    part.replace(path)
