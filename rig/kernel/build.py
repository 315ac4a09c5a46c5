"""Kernels built from a distribution's source: plain, or with one control patch that makes them misbehave.

Below the cache root:

    sources/PACKAGE-ID/             the source, unpacked once, never written to again
    builds/WHAT-KEY/tree/           where make works: files of the source are hard links, what make made is its own
    builds/WHAT-KEY/{lock,log}
    kernels/WHAT-KEY/               what came of it: bzImage, vmlinux, config, build.json; renamed into place complete

WHAT is source and flavour, KEY a hash of all that the outcome depends on. A patched kernel is built in a copy of the
plain one's tree, so that only what the patch touches is made anew. make and patch replace a file of the source rather
than write into it; what make made may be written into, so a copy of a tree copies that and links the rest (see
_link_or_copy).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from rig import catalog
from rig.errors import Cancelled, MachineError, PackageError, RequestError
from rig.guest.apt import host_arch
from rig.guest.packages import PackageCache
from rig.guest.repository import digest
from rig.kernel import config, make
from rig.kernel.image import inspect, parse_config
from rig.model import Arch, Guest, Kernel, KernelFiles

MAKE_ARCH = {Arch.I386: "i386", Arch.AMD64: "x86_64"}

# Objects with debug information, by their names without suffix: the variables and types that drgn and crash need of a
# dump. All objects with it would cost a minute and 60 MiB. Flags given here replace those of a Makefile: of these names
# only sched's core has any, to keep frame pointers, and these kernels keep them everywhere.
TYPED = (
    *("fork", "exit", "signal", "pid", "cpu", "panic", "printk", "init_task", "crash_core", "kexec_core"),
    *("process", "process_32", "process_64", "machine_kexec_32", "machine_kexec_64", "setup_percpu"),
    *("mmap", "page_alloc", "slub", "core"),
)
_DEBUG_FLAGS = "-g -gdwarf-4"  # crash 8.0.2 of Debian 12 doesn't read DWARF 5

_TELL_EVERY = 15.0  # seconds between two words on a build's progress
_POLL = 0.2  # seconds: the longest that a cancellation goes unnoticed while waiting for another rig


@dataclass(frozen=True)
class Recipe:
    """All that the outcome of a build depends on. patch: None for a plain one.

    source_id: of the package's content, so that the suite it comes from doesn't matter any more.
    """

    source: str
    suite: str
    source_id: str
    arch: Arch
    flavour: str
    options: tuple[config.Option, ...]
    compiler: str
    patch: Path | None = None

    @property
    def name(self) -> str:
        """WHAT-KEY: a directory's name."""
        parts = [self.source_id, self.compiler, config.to_config(self.options), *self.make_arguments()]
        if self.patch:
            parts.append(self.patch.read_text())
        what = [self.source, self.flavour, *([self.patch.stem] if self.patch else [])]
        return f"{'-'.join(what)}-{digest(*parts)}"

    @property
    def plain(self) -> Recipe:
        return replace(self, patch=None)

    def make_arguments(self) -> list[str]:
        return [f"ARCH={MAKE_ARCH[self.arch]}", *(f"CFLAGS_{name}.o={_DEBUG_FLAGS}" for name in TYPED)]


class _Built(msgspec.Struct):
    """build.json. steps: files that make made, which tells the next build of this kind how far it is."""

    steps: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """seconds: what the build took at the time it was done. cached: it wasn't done now."""

    files: KernelFiles
    seconds: float
    cached: bool


def build(kernel: Kernel, guest: Guest, cache: PackageCache, cancel: threading.Event, jobs: int) -> Outcome:
    """The kernel for the guest's flavour, built where the cache hasn't got it.

    jobs: of make.

    :raise RequestError: a fragment or patch is missing or wrong, or Kconfig did not take an option
    :raise MachineError: tools, headers or disk space are missing, or the kernel doesn't compile: the last lines
    :raise PackageError: the source can't be had
    :raise Cancelled: `cancel` was set. What was built until then is kept; the next build goes on from there
    """
    builder = _Builder(cache, cancel, jobs)
    try:
        recipe = read_recipe(kernel, guest, cache)
        cached = builder.result(recipe).exists()
        where = builder.build(recipe)
    except OSError as error:
        raise MachineError(
            f"building {kernel.name} failed: {error.filename or cache.cache.root}: {error.strerror}",
            hint="the source and what is built from it take about 3 GB; RIG_CACHE=DIR puts them elsewhere",
        ) from error
    image = inspect(where / "bzImage", read_config=False)
    files = KernelFiles(
        name=kernel.name,
        release=image.release,
        arch=image.arch,
        bzimage=where / "bzImage",
        sha256=image.sha256,
        vmlinux=kernel.vmlinux or where / "vmlinux",
        relocatable=image.relocatable,
    )
    return Outcome(files, _built(where).seconds, cached)


def read_recipe(kernel: Kernel, guest: Guest, cache: PackageCache) -> Recipe:
    """What is to be built, with the source's package at hand."""
    if lacking := make.lacking_packages():
        raise MachineError(
            f"building {kernel.name} takes what this machine lacks: {', '.join(lacking)}",
            hint=f"apt-get install {' '.join(lacking)}",
        )
    fragments = [catalog.build_file(f"config/{name}.config", kernel.home) for name in fragment_names(kernel, guest)]
    return Recipe(
        source=kernel.source,
        suite=kernel.suite,
        source_id=cache.package(kernel.source, host_arch(), kernel.suite).sha256,
        arch=guest.arch,
        flavour=guest.flavour,
        options=config.merge(config.read_fragment(path) for path in fragments),
        compiler=_compiler(),
        patch=catalog.build_file(f"controls/{kernel.patch}.patch", kernel.home) if kernel.patch else None,
    )


def fragment_names(kernel: Kernel, guest: Guest) -> list[str]:
    return [name.replace("{flavour}", guest.flavour) for name in kernel.config]


def _compiler() -> str:
    """What builds: the first lines of gcc's and ld's --version."""
    tools = (subprocess.run([tool, "--version"], capture_output=True, text=True, check=True) for tool in ("gcc", "ld"))
    return ", ".join(done.stdout.splitlines()[0] for done in tools)


def _built(where: Path) -> _Built:
    return msgspec.json.decode((where / "build.json").read_bytes(), type=_Built)


class _Builder:
    """One build, and for a patched kernel the plain one before it."""

    def __init__(self, cache: PackageCache, cancel: threading.Event, jobs: int) -> None:
        self._cache = cache
        self._root = cache.cache.root
        self._say = cache.progress
        self._cancel = cancel
        self._jobs = jobs

    def result(self, recipe: Recipe) -> Path:
        return self._root / "kernels" / recipe.name

    def build(self, recipe: Recipe) -> Path:
        """The directory with the finished kernel."""
        result = self.result(recipe)
        if not result.exists():
            work = self._root / "builds" / recipe.name
            work.mkdir(parents=True, exist_ok=True)
            with self._alone(work / "lock"):
                if not result.exists():  # another rig may have built it meanwhile
                    self._build(recipe, work)
        return result

    def _build(self, recipe: Recipe, work: Path) -> None:
        tree = work / "tree"
        if recipe.patch:
            self._patched_tree(recipe, recipe.patch, tree)
        elif tree.exists():
            self._say(f"going on with {recipe.name} where it was stopped")
        else:
            _copy_tree(self._source(recipe), tree, os.link)
        seconds = time.monotonic()
        self._configure(recipe, tree, work / "log")
        made = self._make(recipe, tree, work / "log")
        built = _Built(made.steps, round(time.monotonic() - seconds, 1))
        self._keep(recipe, tree, work, built)
        self._say(f"built {recipe.name} in {_duration(built.seconds)}")
        if recipe.patch:  # a plain tree is kept: the next patched one starts from it
            shutil.rmtree(work)

    def _source(self, recipe: Recipe) -> Path:
        package = self._cache.package(recipe.source, host_arch(), recipe.suite)

        def unpack(path: Path) -> None:
            self._say(f"unpacking {recipe.source} {package.version}")
            [archive] = package.tree.glob(f"usr/src/{recipe.source}.tar.*")
            path.mkdir()
            argv = ["tar", "-x", "--strip-components=1", "--no-same-owner", "-f", str(archive), "-C", str(path)]
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
            self._check_cancelled()  # Ctrl-C on the terminal ends tar, too
            if done.returncode:
                raise PackageError(f"{archive.name} can't be unpacked: {done.stderr.strip()[-500:]}")

        return self._cache.cache.once(f"sources/{recipe.source}-{recipe.source_id[:16]}", unpack)

    def _patched_tree(self, recipe: Recipe, patch: Path, tree: Path) -> None:
        """Always from the start: in a copy of a finished tree, a file half written would look finished to make."""
        self.build(recipe.plain)
        plain = self._root / "builds" / recipe.plain.name / "tree"
        with self._alone(plain.parent / "lock"):
            _copy_tree(plain, tree, _link_or_copy)
            _move_tools(plain, tree)
        _apply(patch, tree)
        (tree.parent / "log").unlink(missing_ok=True)

    def _configure(self, recipe: Recipe, tree: Path, log: Path) -> None:
        wanted = tree.parent / "wanted.config"
        wanted.write_text(config.to_config(recipe.options))
        argv = ["make", *recipe.make_arguments(), f"KCONFIG_ALLCONFIG={wanted}", "allnoconfig"]
        make.run(argv, tree, log, self._cancel, lambda _: None)
        outcome = parse_config((tree / ".config").read_text())
        if lost := config.unmet(recipe.options, outcome, config.declared(tree)):
            raise RequestError(
                f"{recipe.source} for {recipe.flavour}: Kconfig did not take what was asked for: {'; '.join(lost)}",
                hint=f"it lacks something that it depends on, or was renamed or dropped by this version: see {tree}",
            )

    def _make(self, recipe: Recipe, tree: Path, log: Path) -> make.Progress:
        self._say(f"building {recipe.name} with {self._jobs} jobs")
        ticker = Ticker(self._say, recipe.name, self._known_steps(recipe))
        argv = ["make", *recipe.make_arguments(), f"-j{self._jobs}", "bzImage"]
        try:
            return make.run(argv, tree, log, self._cancel, ticker)
        except MachineError as error:
            error.message = f"building {recipe.name}: {error.message}"
            raise

    def _known_steps(self, recipe: Recipe) -> int:
        """How many files the newest build of this kind made; 0 when there was none."""
        prefix = recipe.name.rpartition("-")[0]
        found = [
            path
            for path in self._root.glob(f"kernels/{prefix}-*/build.json")
            if path.parent.name.rpartition("-")[0] == prefix
        ]
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        return _built(newest.parent).steps if newest else 0

    def _keep(self, recipe: Recipe, tree: Path, work: Path, built: _Built) -> None:
        result, part = self.result(recipe), work / "result"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        shutil.copy2(tree / "arch/x86/boot/bzImage", part / "bzImage")
        shutil.copy2(tree / "vmlinux", part / "vmlinux")
        shutil.copy2(tree / ".config", part / "config")
        (part / "build.json").write_bytes(msgspec.json.encode(built))
        result.parent.mkdir(exist_ok=True)
        part.rename(result)

    @contextlib.contextmanager
    def _alone(self, lock: Path) -> Iterator[None]:
        """No other process or thread works on what the lock stands for."""
        with lock.open("w") as stream:
            waiting = False
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not waiting:
                        self._say(f"waiting for another build of {lock.parent.name}")
                    waiting = True
                self._cancel.wait(_POLL)
                self._check_cancelled()
            yield

    def _check_cancelled(self) -> None:
        if self._cancel.is_set():
            raise Cancelled("stopped on request")


class Ticker:
    """Tells how far a build is, every now and then. known: how many files it makes, 0 when nobody knows."""

    def __init__(self, say: Callable[[str], None], name: str, known: int) -> None:
        self._say = say
        self._name = name
        self._known = known
        self._next = _TELL_EVERY

    def __call__(self, progress: make.Progress) -> None:
        if progress.seconds < self._next:
            return
        self._next = progress.seconds + _TELL_EVERY
        share = f" of about {self._known}" if progress.steps < self._known else ""
        self._say(f"building {self._name}: {progress.steps}{share} files, {_duration(progress.seconds)}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


# ---------------------------------------------------------------- trees


def _copy_tree(source: Path, tree: Path, copy: Callable[[str, str], object]) -> None:
    """A copy in place of what is there. It appears complete or not at all."""
    part = tree.with_name("part")
    for path in (part, tree):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source, part, symlinks=True, copy_function=copy)
    part.rename(tree)


def _link_or_copy(source: str, target: str) -> None:
    """For a tree in which make has worked. What has other links is the source's, and becomes one more. What make made
    has one, and is copied: make writes into some of it (.*.cmd, System.map, vmlinux.bin.gz)."""
    if os.stat(source).st_nlink > 1:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _move_tools(plain: Path, tree: Path) -> None:
    """Makes what make notes of its tools true in a copy. Unlike the rest of the kernel, tools/ is built by full paths:
    with those of another tree objtool would be built anew, and since all objects depend on it, the whole kernel."""
    for note in (tree / "tools").rglob(".*.cmd"):
        note.write_text(note.read_text().replace(str(plain), str(tree)))


def _apply(patch: Path, tree: Path) -> None:
    """GNU patch writes a new file and renames it: the other links of a patched file keep the old content.

    :raise RequestError: it doesn't apply; patch's own words
    """
    argv = ["patch", "-p1", "--batch", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "-i", str(patch)]
    done = subprocess.run(argv, cwd=tree, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RequestError(
            f"{patch} does not apply:\n{done.stdout.strip()}", hint="it has to be made anew for this source's version"
        )
