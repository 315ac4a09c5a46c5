"""A guest's programs and the shared libraries they load: an ELF closure over unpacked packages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rig import elf
from rig.elf import ElfError
from rig.errors import PackageError
from rig.model import Arch, Userland


@dataclass(frozen=True)
class Needs:
    """What one ELF file asks the loader for. interpreter: a guest path; libraries: DT_NEEDED names."""

    interpreter: str | None
    libraries: tuple[str, ...]


def elf_needs(path: Path) -> Needs:
    """Read PT_INTERP and DT_NEEDED. A static program has neither.

    :raise PackageError: not an ELF file, or a broken one
    """
    try:
        with path.open("rb") as stream:
            file = elf.of_file(stream)
            return Needs(file.interpreter(), file.needed())
    except ElfError as error:
        raise PackageError(f"{path} is not an ELF file: {error}") from error


def inside(tree: Path, path: Path) -> Path | None:
    """The regular file that `path` below `tree` leads to, links read as if tree were /; None: none in it."""
    for _ in range(40):  # as many links as the kernel follows (MAXSYMLINKS)
        if not path.is_symlink():
            break
        target = path.readlink()
        path = tree / target.relative_to("/") if target.is_absolute() else path.parent / target
    return path if path.is_file() and path.resolve().is_relative_to(tree.resolve()) else None


def closure(arch: Arch, programs: Mapping[str, Path], trees: Iterable[Path], extra: Sequence[str] = ()) -> Userland:
    """The programs (guest path -> host file) with every library they load, found by name in the trees.

    Libraries go to /lib, which the loader searches by default (ld.so(8)), the interpreter to the path that
    the program names. extra: names loaded at run time by a library (dlopen), taken along where they exist.

    :raise PackageError: a library that none of the trees has
    """
    libraries = _libraries(trees)
    interpreters = {needs.interpreter for needs in map(elf_needs, programs.values()) if needs.interpreter}
    by_path = {path: PurePosixPath(path).name for path in interpreters}
    files: dict[str, Path] = {}
    loads: dict[str, tuple[str, ...]] = {}
    todo = dict(programs)
    while todo:
        guest, host = todo.popitem()
        needs = elf_needs(host)
        # A library that names the loader gets the one that runs already, under its own path.
        wanted = {f"/lib/{name}": name for name in needs.libraries if name not in by_path.values()}
        if guest in programs and needs.interpreter:
            wanted |= {f"/lib/{name}": name for name in extra if name in libraries}
            wanted[needs.interpreter] = by_path[needs.interpreter]
        if missing := [name for name in wanted.values() if name not in libraries]:
            raise PackageError(
                f"{guest} ({arch}) needs {', '.join(missing)}, which no package it depends on has",
                hint="the package sources are inconsistent: try `rig fetch` again later",
            )
        files[guest], loads[guest] = host, tuple(wanted)
        todo |= {path: libraries[name] for path, name in wanted.items() if path not in files}
    return Userland(arch=arch, files=dict(sorted(files.items())), loads=dict(sorted(loads.items())))


def _libraries(trees: Iterable[Path]) -> dict[str, Path]:
    """File name -> file. Of several, that nearest to the top: not those for special CPUs (glibc-hwcaps)."""
    found: dict[str, Path] = {}
    for tree in trees:
        for path in sorted(tree.rglob("*.so*"), key=lambda path: (len(path.parts), path)):
            file = inside(tree, path)
            if file is not None:
                found.setdefault(path.name, file)
    return found
