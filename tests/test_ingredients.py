"""What a run is made of: kept by path and hash, found again, told when it is not what it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rig import catalog, ingredients
from rig.evidence.reader import from_json
from rig.evidence.writer import to_json
from rig.facts import Manifest, files
from rig.model import Arch, Brought, Ingredients, KernelFiles, PackageId, Userland
from rig.reading import write_anew

PACKAGE = PackageId("linux-image-6.1", "6.1.0-1", "amd64", "ab")


def made(root: Path, mine: Path) -> Ingredients:
    """A packaged kernel in the cache `root`, the user's own crash kernel at `mine`; each file holds its name."""

    def file(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_anew(path, path.name.encode())  # another thread may be reading it
        return path

    tree = root / "trees/kernel-0123456789ab"
    kernel = KernelFiles(
        "debian-6.1", "6.1", Arch.AMD64, file(tree / "boot/vmlinuz"), "", (file(tree / "a.ko"),), package=PACKAGE
    )
    busybox = Userland(Arch.AMD64, {"/bin/busybox": file(root / "trees/busybox-x/busybox")}, {"/bin/busybox": ()})
    return Ingredients(
        kernel=kernel,
        crash_kernel=KernelFiles("bzImage", "6.2", Arch.AMD64, file(mine), ""),
        userlands=(busybox, busybox),
        init=catalog.roots()[0] / "guests/init/init",
        control=file(root / "modules/damage.ko"),
    )


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "linux/bzImage"


@pytest.fixture
def made_of(tmp_path: Path, mine: Path) -> Ingredients:
    return made(tmp_path / "cache", mine)


@pytest.fixture
def manifest(tmp_path: Path, made_of: Ingredients) -> Manifest:
    return ingredients.record(made_of, tmp_path / "cache", "1f")


def test_a_manifest_names_no_cache_and_is_found_in_another(tmp_path: Path, manifest: Manifest, mine: Path) -> None:
    told = to_json(manifest)
    assert str(tmp_path / "cache").encode() not in told
    assert str(mine).encode() in told
    again = from_json(told, Manifest, Path("run.json"))
    elsewhere = tmp_path / "elsewhere"
    assert ingredients.find(again, elsewhere) == made(elsewhere, mine)
    assert ingredients.lost(again, elsewhere) == []
    assert again.packages == dict.fromkeys(
        ("cache/trees/kernel-0123456789ab/boot/vmlinuz", "cache/trees/kernel-0123456789ab/a.ko"), PACKAGE
    )


def test_every_file_is_hashed_once(manifest: Manifest, mine: Path) -> None:
    tree = "cache/trees/kernel-0123456789ab"
    assert set(manifest.sha256) == {
        *(f"{tree}/boot/vmlinuz", f"{tree}/a.ko", "cache/trees/busybox-x/busybox", "cache/modules/damage.ko"),
        *("rig/guests/init/init", str(mine)),
    }


def test_what_another_machine_chose_is_recorded_as_that_one_has_it(tmp_path: Path, manifest: Manifest) -> None:
    brought = Brought(tmp_path / "brought", manifest.packages)
    for path in manifest.sha256:
        target = ingredients.carry(Path(path), brought.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(ingredients.today(Path(path), tmp_path / "cache").read_bytes())
    made_of = ingredients.find_brought(manifest, brought.root)
    assert all(path.is_relative_to(brought.root) for path in files(made_of))
    assert ingredients.record(made_of, tmp_path / "worker", "1f", brought) == manifest


def test_what_is_gone_or_changed_is_told(tmp_path: Path, manifest: Manifest, mine: Path) -> None:
    root = tmp_path / "cache"
    (root / "trees/kernel-0123456789ab/a.ko").unlink()
    mine.write_text("built again")
    gone, changed = ingredients.lost(manifest, root)
    assert (gone.path, gone.now) == (Path("cache/trees/kernel-0123456789ab/a.ko"), "")
    assert (changed.path, changed.today, len(changed.now)) == (mine, mine, 64)


@pytest.mark.parametrize(
    ("gone", "from_fresh"),
    [
        ("modules/damage.ko", {"control"}),
        ("trees/kernel-0123456789ab/a.ko", {"kernel", "control"}),  # a module is for its kernel
        ("trees/busybox-x/busybox", {"userlands"}),
    ],
)
def test_parts_that_are_there_stay(tmp_path: Path, made_of: Ingredients, gone: str, from_fresh: set[str]) -> None:
    fresh = made(tmp_path / "fresh", tmp_path / "fresh/linux/bzImage")
    merged = ingredients.merged(made_of, fresh, {tmp_path / "cache" / gone})
    assert merged == replace(made_of, **{name: getattr(fresh, name) for name in from_fresh})
