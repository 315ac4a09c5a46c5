"""The userland of kernels that the distribution's own programs don't run on: busybox and kexec, static, with musl.

Both are built with this machine's gcc from the upstream part of the distribution's source packages, once. What they are
compiled with besides (musl, the kernel's headers, libgcc of i386) is unpacked from binary packages, not installed.

    source-packages/SHA256/NAME.orig.tar.*      as downloaded
    legacy/ARCH-KEY/{busybox,kexec}             what came of it. KEY: a hash of all that the outcome depends on
    legacy/ARCH-SOURCE.log                      what the tools said in the last build
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rig.errors import MachineError, PackageError
from rig.guest.packages import Package, PackageCache
from rig.guest.repository import digest
from rig.kernel import ages, make
from rig.kernel.build import Ticker
from rig.kernel.payload import Undecodable, decompress
from rig.model import Arch, Userland

SOURCES = ("busybox", "kexec-tools")
PROGRAMS: Mapping[str, str] = {"/bin/busybox": "busybox", "/sbin/kexec": "kexec"}  # in the guest -> built
# Commands and headers of this machine that the build takes, and the Debian packages that have them. musl needs none of
# libc6-dev; the programs that run while busybox and kexec are built do.
_TOOLS = {tool: make.TOOLS[tool] for tool in ("make", "gcc", "ld", "tar", "setpriv")}
_HEADER, _HEADER_PACKAGE = Path("/usr/include/stdio.h"), "libc6-dev"
# The tc applet of busybox 1.35 uses what linux-libc-dev of Debian 13 no longer has (CBQ, removed in 6.8).
_WITHOUT = ("CONFIG_TC",)


@dataclass(frozen=True)
class _Target:
    """What names this architecture. musl, gnu: the directories of Debian's packages; host: configure's triplet."""

    flag: str
    musl: str
    gnu: str
    host: str
    emulation: str  # ld's


_TARGETS: Mapping[Arch, _Target] = {
    Arch.I386: _Target("-m32", "i386-linux-musl", "i386-linux-gnu", "i386-pc-linux", "elf_i386"),
    Arch.AMD64: _Target("-m64", "x86_64-linux-musl", "x86_64-linux-gnu", "x86_64-pc-linux", "elf_x86_64"),
}


class _Record(msgspec.Struct):
    directory: str

    def paths(self) -> list[str]:
        return [f"{self.directory}/{name}" for name in PROGRAMS.values()]


def userland(cache: PackageCache, arch: Arch, cancel: threading.Event) -> Userland:
    """busybox and kexec for kernels older than rig.kernel.ages.GLIBC. Built where the cache hasn't got them: a minute.

    :raise PackageError: the sources, or the packages that they are compiled with, can't be had
    :raise MachineError: a tool is missing on this machine, or they don't compile: the last lines
    :raise Cancelled: `cancel` was set
    """

    def resolve() -> _Record:
        return _Record(cache.cache.relative(_built(cache, arch, cancel)))

    key = f"{cache.origin()}/records/{arch}/legacy-userland-{digest(*SOURCES)}.json"
    directory = cache.cache.root / cache.cache.recorded(key, _Record, resolve).directory
    files = {path: directory / name for path, name in PROGRAMS.items()}
    return Userland(arch=arch, files=files, loads=dict.fromkeys(files, ()))


# ---------------------------------------------------------------- below: only while the cache is locked


def _built(cache: PackageCache, arch: Arch, cancel: threading.Event) -> Path:
    """The directory with the programs."""
    if lacking := _lacking():
        raise MachineError(
            f"the userland for kernels before {_version(ages.GLIBC)} is built with what this machine lacks: "
            f"{', '.join(lacking)}",
            hint=f"apt-get install {' '.join(lacking)}",
        )
    if re.search(r"[\s:]", str(cache.cache.root)):
        raise MachineError(
            f"nothing can be built below {cache.cache.root}: make takes no space or colon",
            hint="put the cache elsewhere with RIG_CACHE=DIR",
        )
    sources = {name: cache.source(name, arch) for name in SOURCES}
    packages = [cache.package(name, arch) for name in ("musl-dev", "linux-libc-dev", _libgcc_package(cache, arch))]
    specs = compiler_specs(_TARGETS[arch], packages)
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    key = digest(compiler, specs, *(archive.parent.name for archive in sources.values()), *_WITHOUT)

    def build(path: Path) -> None:
        _Build(cache, arch, cancel, path.parent, specs).run(sources, path)

    return cache.cache.once(f"legacy/{arch}-{key}", build)


def _lacking() -> list[str]:
    lacking = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    return lacking + ([] if _HEADER.exists() else [_HEADER_PACKAGE])


def _version(bound: ages.Release) -> str:
    return ".".join(map(str, bound)).removesuffix(".0")


def _libgcc_package(cache: PackageCache, arch: Arch) -> str:
    """The package with libgcc.a: an older or newer one than this machine's gcc does, what is called there is stable."""
    found = cache.matching(r"libgcc-\d+-dev", arch)
    if not found:
        raise PackageError(f"no package libgcc-N-dev for {arch} in the package sources")
    return found[0]


def compiler_specs(target: _Target, packages: Sequence[Package]) -> str:
    """What makes gcc compile and link with musl alone: as musl's own musl-gcc.specs, but with the packages' paths.

    packages: musl-dev, linux-libc-dev, libgcc-N-dev. GCC manual, "Spec Files"; `include%s` is gcc's own directory.
    """
    musl, headers, gcc = (package.tree for package in packages)
    libgcc = _file(gcc, "usr/lib/gcc/*/*/libgcc.a")
    crt = _file(musl, f"usr/lib/{target.musl}/crt1.o").parent
    kernel = _file(headers, f"usr/include/{target.gnu}/asm/unistd.h").parents[1]
    include = (
        f"-nostdinc -isystem {musl}/usr/include/{target.musl} -isystem include%s "
        f"-isystem {kernel} -isystem {kernel.parent}"
    )
    return f"""\
%rename cpp_options old_cpp_options

*cpp_options:
{include} %(old_cpp_options)

*cc1:
%(cc1_cpu) {include}

*link_libgcc:
-L{crt}

*libgcc:
{libgcc} {libgcc.with_name("libgcc_eh.a")}

*startfile:
{crt}/crt1.o {crt}/crti.o

*endfile:
{crt}/crtn.o

*link:
-m {target.emulation} -nostdlib -static

"""


def _file(tree: Path, pattern: str) -> Path:
    found = sorted(tree.glob(pattern))
    if not found:
        raise PackageError(f"{tree.name} has no {pattern}", hint="`rig fetch --refresh` looks for a newer package")
    return found[0]


class _Build:
    """One build, in a scratch directory."""

    def __init__(self, cache: PackageCache, arch: Arch, cancel: threading.Event, work: Path, specs: str) -> None:
        self._target = _TARGETS[arch]
        self._what = f"the userland for old kernels ({arch})"
        self._say = cache.progress
        self._cancel = cancel
        self._work = work
        self._logs = cache.cache.root / "legacy"
        self._logs.mkdir(exist_ok=True)
        self._arch = arch
        specs_file = work / "musl.specs"
        specs_file.write_text(specs)
        self._cc = f"gcc {self._target.flag} -specs={specs_file} -fno-pie"

    def run(self, sources: Mapping[str, Path], into: Path) -> None:
        """Build both into `into`."""
        self._say(f"building {self._what}, once: a minute or two")
        trees = {name: self._unpack(name, archive) for name, archive in sources.items()}
        built = (self._busybox(trees["busybox"]), self._kexec(trees["kexec-tools"]))
        into.mkdir()
        for program in built:
            subprocess.run(["strip", "-o", into / program.name, program], check=True)

    def _unpack(self, name: str, archive: Path) -> Path:
        tree = self._work / name
        tree.mkdir()
        self._log(tree).unlink(missing_ok=True)
        argv = ["tar", "-x", "--strip-components=1", "--no-same-owner", "-C", str(tree)]
        try:
            unpacked = decompress(archive.read_bytes())
        except Undecodable as problem:
            raise PackageError(f"{archive.name} can't be unpacked: {problem}") from problem
        done = subprocess.run(argv, input=unpacked, capture_output=True)
        if done.returncode:
            raise PackageError(f"{archive.name} can't be unpacked: {done.stderr.decode(errors='replace')[-500:]}")
        return tree

    def _busybox(self, tree: Path) -> Path:
        self._make(["make", "defconfig"], tree)
        config = tree / ".config"
        text = config.read_text().replace("# CONFIG_STATIC is not set\n", "CONFIG_STATIC=y\n")
        for option in _WITHOUT:
            text = text.replace(f"{option}=y\n", f"# {option} is not set\n")
        config.write_text(text)
        self._make(["make", "-j2", f"CC={self._cc} -static -no-pie", "SKIP_STRIP=y", "busybox"], tree)
        return tree / "busybox"

    def _kexec(self, tree: Path) -> Path:
        """Purgatory, which it carries inside, is compiled by TARGET_CC and linked by its own rules."""
        without = [f"--without-{library}" for library in ("zlib", "lzma", "xen")]
        compilers = [f"CC={self._cc} -static -no-pie", f"TARGET_CC={self._cc}", "BUILD_CC=gcc"]
        build = _TARGETS[Arch.AMD64].host
        self._make(["./configure", f"--build={build}", f"--host={self._target.host}", *compilers, *without], tree)
        self._make(["make", "-j2", "build/sbin/kexec"], tree)
        return tree / "build/sbin/kexec"

    def _make(self, argv: Sequence[str], tree: Path) -> None:
        try:
            make.run(argv, tree, self._log(tree), self._cancel, Ticker(self._say, tree.name, 0))
        except MachineError as error:
            error.message = f"building {self._what}, {tree.name}: {error.message}"
            raise

    def _log(self, tree: Path) -> Path:
        return self._logs / f"{self._arch}-{tree.name}.log"
