"""What a run is made of, kept with its evidence by path and hash, and found again for a run to be repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rig import catalog
from rig.facts import Manifest, files
from rig.guest.apt import file_sha256
from rig.guest.provenance import package_of
from rig.model import Brought, Ingredients, KernelFiles, PackageId

CACHE, OWN = Path("cache"), Path("rig")  # what portable paths begin with
ABSOLUTE = "absolute"  # in a directory that files were brought to: the user's own, by their paths


@dataclass(frozen=True)
class Lost:
    """A file that is not what it was. path: as in the manifest. today: where that leads. now: its SHA-256, empty when
    it is gone."""

    path: Path
    today: Path
    now: str


def record(made_of: Ingredients, root: Path, initramfs: str, brought: Brought | None = None) -> Manifest:
    """root: of the cache. initramfs: SHA-256 of the one without keys. brought: by which machine they were chosen, if it
    was another: the manifest is as that one would have it."""

    portable = {
        path: _portable(path, root) if brought is None else carried(path, brought.root) for path in files(made_of)
    }
    if brought is None:
        packages = {str(portable[path]): package for path, package in _origins(made_of, root).items() if package}
    else:
        packages = dict(brought.packages)
    return Manifest(
        ingredients=_moved(made_of, portable.__getitem__),
        sha256={str(there): file_sha256(path) for path, there in portable.items()},
        packages=packages,
        initramfs=initramfs,
    )


def _origins(made_of: Ingredients, root: Path) -> dict[Path, PackageId | None]:
    """The package of each file; None where it came in none."""
    origins: dict[Path, PackageId | None] = {path: package_of(root, path) for path in files(made_of)}
    for kernel in (made_of.kernel, made_of.crash_kernel):
        origins |= dict.fromkeys((kernel.bzimage, *kernel.modules, *kernel.disk_modules), kernel.package)
    return origins


def carry(path: Path, root: Path) -> Path:
    """Where a file of a manifest lies below a directory that all its files were brought to."""
    return root / ABSOLUTE / path.relative_to("/") if path.is_absolute() else root / path


def carried(path: Path, root: Path) -> Path:
    """The manifest's path of a file that was brought to such a directory."""
    inside = path.relative_to(root)
    return Path("/", *inside.parts[1:]) if inside.parts[0] == ABSOLUTE else inside


def find_brought(manifest: Manifest, root: Path) -> Ingredients:
    """The ingredients in the directory that they were brought to."""
    return _moved(manifest.ingredients, lambda path: carry(path, root))


def find(manifest: Manifest, root: Path) -> Ingredients:
    """The ingredients where they lie today, or would. root: of the cache."""
    return _moved(manifest.ingredients, lambda path: today(path, root))


def lost(manifest: Manifest, root: Path) -> list[Lost]:
    """What is gone or has other bytes, in the manifest's order."""
    found = []
    for path, sha256 in manifest.sha256.items():
        there = today(Path(path), root)
        now = file_sha256(there) if there.is_file() else ""
        if now != sha256:
            found.append(Lost(Path(path), there, now))
    return found


def merged(old: Ingredients, fresh: Ingredients, gone: set[Path]) -> Ingredients:
    """The old ones as far as they are there, part by part. gone: files of `old` that aren't what they were.

    A module goes with its kernel, and the word on the crash kernel with that.
    """

    def whole(*parts: object) -> bool:
        return not gone.intersection(files(parts))

    modules = old if whole(old.kernel, old.control, old.trigger) else fresh
    crash = old if whole(old.crash_kernel) else fresh
    first, second = (one if whole(one) else other for one, other in zip(old.userlands, fresh.userlands, strict=True))
    return Ingredients(
        kernel=old.kernel if whole(old.kernel) else fresh.kernel,
        crash_kernel=crash.crash_kernel,
        userlands=(first, second),
        init=fresh.init,
        control=modules.control,
        trigger=modules.trigger,
        program=old.program if whole(old.program) else fresh.program,
        hypervisor=old.hypervisor if whole(old.hypervisor) else fresh.hypervisor,
        second_hypervisor=old.second_hypervisor if whole(old.second_hypervisor) else fresh.second_hypervisor,
        firmware=old.firmware if whole(old.firmware) else fresh.firmware,
        crash_kernel_note=crash.crash_kernel_note,
    )


def described(kernel: KernelFiles) -> str:
    """A kernel for people."""
    return f"{kernel.release} of {kernel.package}" if kernel.package else f"{kernel.release}, {kernel.bzimage}"


def _portable(path: Path, root: Path) -> Path:
    """A path that means the same on another machine, unless it is the user's own."""
    for mark, place in ((CACHE, root), (OWN, catalog.roots()[0])):
        if path.is_relative_to(place) and (mark is CACHE or path.is_relative_to(place / "guests")):
            return mark / path.relative_to(place)
    return path.absolute()


def today(path: Path, root: Path) -> Path:
    """Where such a path leads here. An absolute one stays as it is."""
    places = {CACHE.name: root, OWN.name: catalog.roots()[0]}
    first, *rest = path.parts
    return places[first].joinpath(*rest) if first in places else path


def _moved(made_of: Ingredients, move: Callable[[Path], Path]) -> Ingredients:
    """The same with every path moved."""

    def moved(value: Any) -> Any:
        if isinstance(value, Path):
            return move(value)
        if isinstance(value, tuple):
            return tuple(moved(item) for item in value)
        if isinstance(value, Mapping):
            return {key: moved(item) for key, item in value.items()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(
                value, **{field.name: moved(getattr(value, field.name)) for field in dataclasses.fields(value)}
            )
        return value

    return cast(Ingredients, moved(made_of))
