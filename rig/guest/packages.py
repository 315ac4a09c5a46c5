"""Debian packages for the guests: kernels, programs, kernel headers, fetched once and kept.

What has been resolved is recorded below the cache root, so a later call touches neither apt nor the network
until it is asked to (refresh).

    debs/SHA256/NAME.deb                as downloaded
    trees/...                           unpacked
    ORIGIN/apt/ARCH/                    apt's private state
    ORIGIN/records/ARCH/WHAT.json       what was resolved. ORIGIN: `system`, or a hash of RIG_MIRROR's lines; and
                                        the suite, where a kernel names one
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rig.errors import PackageError, UnsuitableKernel
from rig.guest import makedumpfile
from rig.guest.apt import Candidate, Progress, host_arch, source_lines
from rig.guest.cache import Cache, default_root
from rig.guest.provenance import package_named, tree_of
from rig.guest.repository import Found, Repository, digest
from rig.kernel.image import WISHED, inspect, missing_options, wished_options
from rig.late import late
from rig.model import Arch, Dump, Guest, Kernel, KernelFiles, PackageId, Userland

if TYPE_CHECKING:
    from rig.guest import debs
    from rig.guest.userland import closure, inside
else:  # what only a cache without the package needs
    debs, closure, inside = (late(f"rig.guest.{what}") for what in ("debs", "userland:closure", "userland:inside"))

# Program in the guest -> package. Libraries are found from there.
PROGRAMS: Mapping[str, str] = {
    "/bin/busybox": "busybox-static",
    "/sbin/kexec": "kexec-tools",
    "/usr/sbin/dropbear": "dropbear-bin",
}
FIRMWARE = "ovmf"

_LOADED_BY_LIBC = ("libnss_files.so.2",)  # glibc before 2.34, to look up a user; nothing names it as DT_NEEDED
_NETWORK = ("8139cp",)  # the guests' network card (rtl8139): the quickest to have a link
_DISK = ("virtio_pci", "virtio_blk")  # the disk that a dump may be written to; few and small
_MODULES = (*_NETWORK, *_DISK)
_DOM0_MODULES = ("xen-privcmd", "xen-evtchn", "xenfs")  # what kexec-tools takes to reach a Xen hypervisor
_IMAGES = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz")
_ANY_IMAGE = r"linux-image-[0-9].*(?<!-dbg)"
_EXAMPLES = 4  # of what there is instead, in an error
# Kernel image packages of another kind than asked for, unless the pattern itself names the kind.
_OTHER_KINDS = ("dbg", "unsigned", "rt", "cloud")
# From Debian 14 on linux-image-* is empty, and depends on packages with the image and the modules.
_KERNEL_PARTS = re.compile(r"linux-(binary|modules)-.*")
_HEADER_PARTS = re.compile(r"linux-headers-.*")
_HOST_TOOLS = re.compile(r"linux-kbuild-.*")


@dataclass(frozen=True)
class Package:
    """A downloaded and unpacked package. arch: the one asked for. tree: all of its files."""

    name: str
    version: str
    arch: Arch
    sha256: str
    deb: Path
    tree: Path


class _PackageRecord(msgspec.Struct):
    """In records all paths are relative to the cache root."""

    version: str
    sha256: str
    deb: str
    tree: str

    def paths(self) -> list[str]:
        return [self.deb, self.tree]


class _KernelRecord(msgspec.Struct):
    package: str
    version: str
    release: str
    sha256: str
    bzimage: str
    modules: list[str]
    disk_modules: list[str]
    dom0_modules: list[str] = []

    def paths(self) -> list[str]:
        return [self.bzimage, *self.modules, *self.disk_modules, *self.dom0_modules]


class _UserlandRecord(msgspec.Struct):
    files: dict[str, str]
    loads: dict[str, tuple[str, ...]]

    def paths(self) -> list[str]:
        return list(self.files.values())


class _HeadersRecord(msgspec.Struct):
    directory: str

    def paths(self) -> list[str]:
        return [self.directory]


def _silent(_: str) -> None:
    """Progress for callers that want none."""


class PackageCache:
    """Packages for amd64 and i386 from the machine's own apt sources, below one directory.

    root: default RIG_CACHE, else the user's cache directory. refresh: ask the network even for what is
    recorded (once per object). sources: sources.list text, default RIG_MIRROR's or the machine's own.

    Every method may raise PackageError (not to be had: apt's own words) and MachineError (no apt, no disk
    space, a cache that can't be written).
    """

    def __init__(
        self,
        root: Path | None = None,
        progress: Progress = _silent,
        *,
        refresh: bool = False,
        sources: str | None = None,
    ) -> None:
        self.progress = progress
        self.cache = Cache(root or default_root(), progress, refresh=refresh)
        self._sources = source_lines(os.environ) if sources is None else sources
        self._repositories: dict[str, Repository] = {}

    def _repository(self, suite: str = "") -> Repository:
        """The machine's package sources or, of their mirrors, another suite."""
        if suite not in self._repositories:
            self._repositories[suite] = Repository(self.cache, self.progress, self._sources, suite)
        return self._repositories[suite]

    def package(self, name: str, arch: Arch, suite: str = "") -> Package:
        """A package, unpacked. suite: instead of those that the machine's own sources carry."""
        repository = self._repository(suite)

        def make() -> _PackageRecord:
            [(candidate, deb)] = repository.obtain(arch, [name])
            tree = self._tree(candidate, deb)
            return _PackageRecord(
                candidate.version, candidate.sha256, self.cache.relative(deb), self.cache.relative(tree)
            )

        record = self.cache.recorded(self._record(repository, arch, "package", name), _PackageRecord, make)
        deb, tree = self.cache.root / record.deb, self.cache.root / record.tree
        return Package(name, record.version, arch, record.sha256, deb, tree)

    def restore(self, package: PackageId) -> None:
        """Unpack that very package where it was, from its .deb in the cache or from the package sources.

        :raise PackageError: these have other versions of it only
        """
        with self.cache.locked():
            deb = next(self.cache.root.glob(f"debs/{package.sha256}/*.deb"), None)
            if deb is None:
                arch = host_arch() if package.arch == "all" else Arch(package.arch)
                [(candidate, deb)] = self._repository().obtain(arch, [package.name], package.version)
                if candidate.sha256 != package.sha256:
                    raise PackageError(f"{package} is offered no more, {candidate.version} is")
            found = deb
            self.cache.once(tree_of(package.name, package.sha256), lambda path: debs.unpack(found, path))

    def firmware(self) -> Path:
        """OVMF, UEFI for a 64-bit machine: one image for QEMU's -bios."""
        path = self.package(FIRMWARE, host_arch()).tree / "usr/share/ovmf/OVMF.fd"
        if not path.is_file():
            raise PackageError(f"the package {FIRMWARE} has no {path.name} (looked for {path})")
        return path

    def source(self, name: str, arch: Arch) -> Path:
        """The upstream tarball of a source package, below a directory named by its SHA256. Asks the network."""
        with self.cache.locked():
            return self._repository().source(arch, name)

    def origin(self) -> str:
        """Whose packages these are: the directory of their records."""
        return self._repository().origin

    def matching(self, pattern: str, arch: Arch) -> list[str]:
        """Names of packages that the regular expression matches in full, newest version first. Asks apt."""
        with self.cache.locked():
            return [candidate.name for candidate in self._repository().matching(arch, pattern)]

    def kernel(self, kernel: Kernel, guest: Guest) -> KernelFiles:
        """A kernel ready to boot: the user's image, or the newest package that really downloads.

        :raise UnsuitableKernel: the user's image is not one, or is for another guest, or lacks an option
        """
        if kernel.image is not None:
            return users_kernel(kernel, kernel.image, guest, self.progress)
        pattern = kernel.package.replace("{flavour}", re.escape(guest.flavour))
        repository = self._repository(kernel.suite)
        dom0 = _DOM0_MODULES if guest.hypervisor else ()
        key = self._record(repository, guest.arch, f"kernel-{guest.flavour}", pattern, *_MODULES, *dom0)
        record = self.cache.recorded(
            key, _KernelRecord, lambda: self._packaged_kernel(repository, guest.arch, pattern, dom0)
        )
        if not record.modules:
            self.progress(f"{record.package} has no module {', '.join(_NETWORK)}: no SSH into it as the crash kernel")
        return KernelFiles(
            name=kernel.name,
            release=record.release,
            arch=guest.arch,
            bzimage=self.cache.root / record.bzimage,
            sha256=record.sha256,
            modules=tuple(self.cache.root / module for module in record.modules),
            disk_modules=tuple(self.cache.root / module for module in record.disk_modules),
            vmlinux=kernel.vmlinux,
            suite=kernel.suite,
            dom0_modules=tuple(self.cache.root / module for module in record.dom0_modules),
            package=package_named(self.cache.root, record.package, record.version, guest.arch),
        )

    def userland(self, arch: Arch, dump: Dump = Dump.HEADERS) -> Userland:
        """PROGRAMS, makedumpfile when the dump is taken with it, and all the libraries they load."""
        filtered = dump is Dump.MAKEDUMPFILE
        return self.programs(arch, {**PROGRAMS, makedumpfile.PROGRAM: "makedumpfile"} if filtered else PROGRAMS)

    def programs(self, arch: Arch, wanted: Mapping[str, str]) -> Userland:
        """Programs (path -> package), and all the libraries they load."""
        repository = self._repository()

        def make() -> _UserlandRecord:
            names = repository.with_libraries(arch, list(wanted.values()))
            obtained = repository.obtain(arch, names)
            trees = {candidate.name: self._tree(candidate, deb) for candidate, deb in obtained}
            programs = {path: _program(trees[package], path) for path, package in wanted.items()}
            found = closure(arch, programs, trees.values(), _LOADED_BY_LIBC)
            files = {path: self.cache.relative(file) for path, file in found.files.items()}
            return _UserlandRecord(files, dict(found.loads))

        key = self._record(repository, arch, "userland", *wanted.values())
        record = self.cache.recorded(key, _UserlandRecord, make)
        files = {path: self.cache.root / file for path, file in record.files.items()}
        return Userland(arch=arch, files=files, loads=record.loads)

    def headers(self, kernel: KernelFiles, package: str = "linux-headers-{release}") -> Path:
        """The directory in which modules for a packaged kernel are built (`make -C` it).

        package: the headers package's name, {release} is replaced. The build tools among it are for this
        machine's own architecture, whatever the kernel's.
        """
        name = package.replace("{release}", kernel.release)
        repository = self._repository(kernel.suite)

        def make() -> _HeadersRecord:
            [main] = repository.obtain(kernel.arch, [name])
            common = _obtain_parts(repository, kernel.arch, main[0], _HEADER_PARTS)
            tools = _obtain_parts(repository, host_arch(), main[0], _HOST_TOOLS)
            found = [main, *common, *tools]
            unpack = functools.partial(self._unpack_headers, [deb for _, deb in found])
            tree = self.cache.once(f"trees/headers-{_identity(found)}", unpack)
            return _HeadersRecord(self.cache.relative(tree / "usr/src" / name))

        key = self._record(repository, kernel.arch, "headers", name)
        return self.cache.root / self.cache.recorded(key, _HeadersRecord, make).directory

    @staticmethod
    def _record(repository: Repository, arch: Arch, what: str, *parts: str) -> str:
        return f"{repository.origin}/records/{arch}/{what}-{digest(*parts)}.json"

    # ---- below: only while the cache is locked

    def _tree(self, candidate: Candidate, deb: Path) -> Path:
        return self.cache.once(tree_of(candidate.name, candidate.sha256), lambda path: debs.unpack(deb, path))

    def _packaged_kernel(
        self, repository: Repository, arch: Arch, pattern: str, dom0: tuple[str, ...]
    ) -> _KernelRecord:
        """dom0: names of modules to take along for the first kernel."""
        others = [kind for kind in _OTHER_KINDS if kind not in pattern]
        candidates = [
            candidate
            for candidate in repository.matching(arch, pattern)
            if not any(kind in candidate.name.split("-") for kind in others)
        ]
        if not candidates:
            raise self._no_such_kernel(repository, arch, pattern)
        for main in repository.first_available(arch, candidates):
            found = [main, *_obtain_parts(repository, arch, main[0], _KERNEL_PARTS)]
            unpack = functools.partial(self._unpack_kernel, [deb for _, deb in found], (*_MODULES, *dom0))
            tree = self.cache.once(f"trees/kernel-{_identity(found, *_MODULES, *dom0)}", unpack)
            if images := [image for glob in _IMAGES for image in sorted(tree.glob(glob))]:
                return self._kernel_record(arch, main[0], tree, images[0], dom0)
            self.progress(f"{main[0].name} has no kernel image, trying the next")
        raise PackageError(
            f"no kernel package {pattern} could be had for {arch}: {repository.troubles(arch)}",
            hint="is the network up, and do the package sources carry it? `--kernel BZIMAGE` does without",
        )

    @staticmethod
    def _no_such_kernel(repository: Repository, arch: Arch, pattern: str) -> PackageError:
        """The indexes were read, and none of them names such a package. It may not exist, or not any more."""
        there = [candidate.name for candidate in repository.matching(arch, _ANY_IMAGE)]
        examples = f"{', '.join(there[:_EXAMPLES])}{', ...' if len(there) > _EXAMPLES else ''}"
        return PackageError(
            f"no kernel package {pattern} for {arch} in {repository.described}",
            hint=f"kernels for {arch} there: {examples or 'none'}. What apt said: {repository.troubles(arch)}",
        )

    def _kernel_record(
        self, arch: Arch, candidate: Candidate, tree: Path, bzimage: Path, dom0: tuple[str, ...]
    ) -> _KernelRecord:
        image = inspect(bzimage, read_config=False)
        if image.arch is not arch:
            raise PackageError(f"{candidate.filename} has a kernel for {image.arch}")
        modules = debs.load_order(tree, _NETWORK)
        disk_modules = [module for module in debs.load_order(tree, _DISK) if module not in modules]
        return _KernelRecord(
            package=candidate.name,
            version=candidate.version,
            release=image.release,
            sha256=image.sha256,
            bzimage=self.cache.relative(bzimage),
            modules=[self.cache.relative(module) for module in modules],
            disk_modules=[self.cache.relative(module) for module in disk_modules],
            dom0_modules=[self.cache.relative(module) for module in debs.load_order(tree, dom0)],
        )

    def _unpack_kernel(self, packages: Sequence[Path], modules: Sequence[str], path: Path) -> None:
        self.progress(f"unpacking {packages[0].name}")
        path.mkdir()
        for deb in packages:
            debs.unpack_kernel(deb, path, modules)

    def _unpack_headers(self, packages: Sequence[Path], path: Path) -> None:
        """All of them into one tree, as they would be installed. The Makefiles that lead from one to another
        by /usr/src get relative paths: the tree isn't /, and make is started where they lie."""
        self.progress(f"unpacking {packages[0].name}")
        for deb in packages:
            debs.unpack(deb, path)
        for makefile in path.glob("usr/src/linux-headers-*/Makefile"):
            text = makefile.read_text()
            makefile.write_text(re.sub(r"^(include |KBUILD_OUTPUT=)/usr/src/", r"\1../", text, flags=re.M))


def users_kernel(kernel: Kernel, path: Path, guest: Guest, progress: Progress) -> KernelFiles:
    """A user's own bzImage for this guest. What it lacks is told where it has its configuration in it.

    :raise UnsuitableKernel: not a bzImage, another architecture, lacks an option that the rig needs
    """
    image = inspect(path)
    if image.arch is not guest.arch:
        raise UnsuitableKernel(
            f"{path} is a kernel for {image.arch}, the guest {guest.name} is {guest.arch}",
            hint=f"build it for {guest.arch}, or choose another --guest",
        )
    if image.config is None:
        progress(f"{path.name}: {image.config_note}; what the kernel lacks will show when it runs")
    elif missing := missing_options(
        image.config, guest.arch, guest.paging, image.release, relocatable=image.relocatable
    ):
        raise UnsuitableKernel(
            f"{path} lacks what the rig needs: {', '.join(missing)}",
            hint="set these to y (those with =n: off) and build it again",
        )
    elif image.crashes_into_itself and (wished := wished_options(image.config)):
        losses = ", ".join(f"{name} ({WISHED[name]})" for name in wished)
        progress(f"{path.name}: going on without {losses}")
    return KernelFiles(
        kernel.name,
        image.release,
        image.arch,
        path,
        image.sha256,
        vmlinux=kernel.vmlinux,
        relocatable=image.relocatable,
    )


def _obtain_parts(repository: Repository, arch: Arch, candidate: Candidate, pattern: re.Pattern[str]) -> list[Found]:
    """Those of its dependencies whose names match, in its own version where there is that version."""
    names = [name for name in candidate.depends if pattern.fullmatch(name)]
    return repository.obtain(arch, names, candidate.version)


def _identity(found: Iterable[Found], *more: str) -> str:
    """A name for what these packages unpack to."""
    return digest(*(candidate.sha256 for candidate, _ in found), *more)


def _program(tree: Path, guest_path: str) -> Path:
    """The program in its package; since Debian 13 everything lies below usr/."""
    for path in (tree / guest_path.lstrip("/"), tree / "usr" / guest_path.lstrip("/")):
        if file := inside(tree, path):
            return file
    raise PackageError(f"the package of {guest_path} has no such program (looked below {tree})")
