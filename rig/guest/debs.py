"""Unpacking Debian packages: whole, or of a kernel only what boots and the modules asked for."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import zstandard
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from rig.errors import MachineError, PackageError

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
    """A .ko as it is loaded, from .ko.xz, .ko.zst, .ko.gz, .ko.bz2 (suffix: `.xz`..., empty: as it is)."""
    match suffix:
        case "":
            return data
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".bz2":
            return bz2.decompress(data)
        case ".zst":
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    raise ValueError(f"modules aren't compressed as {suffix!r}")


def module_depends(module: bytes) -> tuple[str, ...]:
    """The modules that must be loaded before this one: `depends=` of its .modinfo section."""
    try:
        section = ELFFile(io.BytesIO(module)).get_section_by_name(".modinfo")
    except ELFError as error:
        raise PackageError(f"not a kernel module: {error}") from error
    strings = section.data().split(b"\0") if section else []
    depends = [item.removeprefix(b"depends=").decode() for item in strings if item.startswith(b"depends=")]
    return tuple(name for value in depends for name in value.split(",") if name)


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
            with tarfile.open(fileobj=process.stdout, mode="r|", bufsize=1 << 20) as archive:
                for member in archive:
                    if match := _MODULE.match(member.name):
                        if _plain(match["name"]) in modules and (stream := archive.extractfile(member)):
                            module = decompress_module(stream.read(), match["suffix"] or "")
                            depends |= set(module_depends(module))
                            _write(into / member.name.removesuffix(match["suffix"] or ""), module)
                    elif boot and _BOOT.match(member.name) and member.isfile():
                        stream = archive.extractfile(member)
                        assert stream is not None
                        _write(into / member.name, stream.read())
        except (tarfile.TarError, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
            words = process.stderr.read().decode(errors="replace").strip()
            raise PackageError(f"{deb.name} can't be unpacked: {words or error}") from error
        words = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise PackageError(f"{deb.name} can't be unpacked: {words}")
    return depends


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
