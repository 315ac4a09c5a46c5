"""Unpacking Debian packages: whole, or of a kernel only what boots and the modules asked for."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, cast

from rig import elf
from rig.elf import ElfError
from rig.errors import MachineError, PackageError
from rig.kernel.payload import MOST, Undecodable, decompress

# boot/ in Debian up to 13; later vmlinuz lies beside the modules.
_BOOT = re.compile(r"\./(boot/|(usr/)?lib/modules/[^/]+/(vmlinuz|System\.map|config)$)")
_MODULE = re.compile(r"\./(?:usr/)?lib/modules/.*/(?P<name>[^/]+)\.ko(?P<suffix>\.xz|\.zst|\.gz|\.bz2)?$")


def _dpkg_deb() -> str:
    found = shutil.which("dpkg-deb")
    if found is None:
        raise MachineError("dpkg-deb is not on this machine", hint="install the package dpkg")
    return found


def unpack(deb: Path, into: Path) -> None:
    """Unpack all files of a package. Links and modes as in the package, owner: the user.

    :raise PackageError: dpkg-deb's own words
    :raise OSError: no disk space
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}  # its words are read
    argv = [_dpkg_deb(), "-x", str(deb), str(into)]
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", env=environment)
    if not done.returncode:
        return
    if os.strerror(errno.ENOSPC) in done.stderr:  # told for each of a package's files
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    words = "; ".join(done.stderr.strip().splitlines()[-3:])
    raise PackageError(f"{deb.name} can't be unpacked: {words}")


def decompress_module(data: bytes, suffix: str) -> bytes:
    """A .ko as it is loaded, from .ko.xz, .ko.zst, .ko.gz, .ko.bz2 (suffix: `.xz`..., empty: as it is).

    :raise Undecodable: broken, or too large when unpacked
    """
    return decompress(data) if suffix else data


def module_depends(module: bytes) -> tuple[str, ...]:
    """The modules that must be loaded before this one: `depends=` of its .modinfo section.

    :raise PackageError: not a module that can be read
    """
    try:
        file = elf.of_bytes(module)
        section = file.section(".modinfo")
        strings = file.data(section).split(b"\0") if section else []
    except ElfError as error:
        raise PackageError(f"not a kernel module: {error}") from error
    depends = [item.removeprefix(b"depends=") for item in strings if item.startswith(b"depends=")]
    return tuple(name for value in depends for name in value.decode(errors="backslashreplace").split(",") if name)


def unpack_kernel(deb: Path, into: Path, modules: Sequence[str]) -> None:
    """Unpack the boot files, and those of the named modules that the package has, with all they depend on.

    Modules arrive decompressed. A kernel's other modules (some 400 MB) are passed over in the stream.
    """
    wanted = {_plain(name) for name in modules}
    missing = {_plain(name) for name in _extract(deb, into, wanted, boot=True)} - wanted
    while missing:  # another pass only where a module depends on another
        wanted |= missing
        missing = {_plain(name) for name in _extract(deb, into, missing, boot=False)} - wanted


def load_order(tree: Path, modules: Sequence[str]) -> list[Path]:
    """Files of the named modules below tree, each after those it depends on; missing ones are left out.

    A module that isn't there is built into the kernel, or the kernel hasn't got it: the guest will tell.
    """
    files = {_plain(path.stem): path for path in sorted(tree.rglob("*.ko"))}
    order: dict[Path, None] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        path = files.get(_plain(name))
        if path is None or path in order or name in above:
            return
        for needed in module_depends(path.read_bytes()):
            visit(needed, (*above, name))
        order[path] = None

    for name in modules:
        visit(name, ())
    return list(order)


def _plain(name: str) -> str:
    """Module names use - and _ alike (modprobe(8))."""
    return name.replace("-", "_")


def _extract(deb: Path, into: Path, modules: set[str], *, boot: bool) -> set[str]:
    """One pass over the package; returns what the extracted modules depend on."""
    depends: set[str] = set()
    argv = [_dpkg_deb(), "--fsys-tarfile", str(deb)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for path, data, is_module in kernel_files(process.stdout, modules, boot=boot):
                if is_module:
                    depends |= set(module_depends(data))
                _write(into / path, data)
        except PackageError as error:
            words = process.stderr.read().decode(errors="replace").strip()
            raise PackageError(f"{deb.name} can't be unpacked: {words or error.message}") from error
        words = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise PackageError(f"{deb.name} can't be unpacked: {words}")
    return depends


def kernel_files(stream: IO[bytes], modules: set[str], *, boot: bool) -> Iterator[tuple[PurePosixPath, bytes, bool]]:
    """(relative path, content, whether it is a module) of what is wanted of the tar archive of a kernel's package.

    Modules come unpacked, by their plain names; boot: the boot files, too.

    :raise PackageError: not a tar archive, a path that leads out of it, a file that is too large or can't be unpacked
    """
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Finite(stream)), mode="r|", bufsize=1 << 20) as archive:
            for member in archive:
                match = _MODULE.match(member.name)
                wanted = _plain(match["name"]) in modules if match else boot and _BOOT.match(member.name)
                if not wanted or not member.isfile():
                    continue
                suffix = (match["suffix"] or "") if match else ""
                path = PurePosixPath(member.name.removesuffix(suffix))
                if ".." in path.parts:
                    raise PackageError(f"it has a file at {member.name!r}, which leads out of the package")
                data = _content(archive, member)
                yield path, decompress_module(data, suffix) if match else data, match is not None
    except Undecodable as error:
        raise PackageError(f"a module in it: {error}") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise PackageError(f"its archive is broken: {error}") from error


class _Finite:
    """A stream that ends but once: to skip a member said to have 2^60 bytes, tarfile would read on behind the end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._patience = 3  # a good archive is asked for more once or twice

    def read(self, size: int) -> bytes:
        blob = self._stream.read(size)
        self._patience -= not blob
        if not self._patience:
            raise EOFError("it ends before what its headers promise")
        return blob


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MOST:
        raise PackageError(f"{member.name!r} in it is said to have {member.size} bytes")
    stream = archive.extractfile(member)
    assert stream is not None  # a file
    return stream.read()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
