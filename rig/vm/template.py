"""Templates: guests that were booted and armed once and then kept, to be gone on with by any number of runs.

A template is a directory named by its key, which is made of everything that went into it. It holds the guest's RAM,
what QEMU knows of it besides, what its serial lines said, and what the run that made it learned (`told`). Whoever uses
it takes a copy of the RAM into memory, holds that against its digest - a damaged template is dropped, not used - and
seals it (memfd_create(2)): nobody can change it any more, and all runs of a process go on from one copy.

Every reader holds a shared flock(2) on the directory, whoever makes or drops one an exclusive one, so that what a
killed rig leaves is known by having no lock and no seal.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import xxhash

from rig.errors import EvidenceError
from rig.memory.holes import CHUNK, next_data
from rig.reading import read_file, write_anew
from rig.vm.qemu import Standing, Vm

LIMIT = 4 << 30  # bytes of disk that all templates together may take
# A template is one boot: its kernel lies where KASLR put it then. Each day gets others.
MAX_AGE = 24 * 3600.0  # seconds
RAM, STATE, HASHES, TOLD = "ram", "state", "hashes", "told.json"
_LIMIT = 256 << 20  # bytes of a file but RAM: devices' state is a MiB or two, with the VGA's 16 MiB of memory
_SEALED = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


@dataclass(frozen=True)
class Seal:
    """What of a template was written last, and makes it one. size: of its RAM. ram, state, hashes: digests of
    the files. line: its shell's serial line. logs: what the serial lines said, by file name. told: of whoever made it,
    JSON."""

    size: int
    ram: str
    state: str
    hashes: str
    line: str
    logs: Mapping[str, bytes]
    told: bytes


@dataclass(frozen=True)
class Template:
    """A template in memory. made: seconds since the epoch."""

    key: str
    made: float
    standing: Standing
    logs: Mapping[str, bytes]
    told: bytes


@functools.cache
def hindrance(proc: Path = Path("/proc")) -> str:
    """Why this machine does not let the memory of a clone be read (Yama, another security module, a container), found
    out on another child of this process; empty when it does."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:  # ends with the rig
        try:
            for name in ("mem", "pagemap"):
                with (proc / str(child.pid) / name).open("rb"):
                    pass
        except OSError as problem:
            return f"no process may read another's memory on this machine ({name}: {problem.strerror})"
    return ""


def key_of(parts: Mapping[str, object]) -> str:
    """One name for everything that goes into a template; the rig's own code is part of it."""
    return hashlib.sha256(msgspec.json.encode({"code": _code(), **parts}, order="deterministic")).hexdigest()[:32]


@functools.cache
def _code() -> str:
    """SHA-256 of the rig's own modules."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for folder, _, names in sorted(os.walk(package)):  # not rglob(), which takes three times as long
        for name in sorted(names):
            if name.endswith(".py"):
                with open(os.path.join(folder, name), "rb") as module:
                    digest.update(module.read())
    return digest.hexdigest()


class _InUse:
    """The templates that this process has in memory, each once for all of its runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._templates: dict[Path, tuple[Template, int]] = {}  # and how many use it

    @contextlib.contextmanager
    def taken(self, directory: Path, load: Callable[[], Template | None]) -> Iterator[Template | None]:
        """load: called when nobody else uses it."""
        with self._lock:  # also while it is loaded: whoever wants the same waits, and then has it
            template, users = self._templates.get(directory) or (load(), 0)
            if template is not None:
                self._templates[directory] = template, users + 1
        try:
            yield template
        finally:
            if template is not None:
                self._give_back(directory)

    def _give_back(self, directory: Path) -> None:
        with self._lock:
            template, users = self._templates.pop(directory)
            if users > 1:
                self._templates[directory] = template, users - 1
            else:
                os.close(template.standing.ram)
                os.close(template.standing.state)


_IN_USE = _InUse()


class Templates:
    """All templates below a directory. limit: bytes of disk."""

    def __init__(self, root: Path, limit: int = LIMIT, max_age: float = MAX_AGE) -> None:
        self._root = root
        self._limit = limit
        self._max_age = max_age

    @contextlib.contextmanager
    def find(self, key: str, tell: Callable[[str], None]) -> Iterator[Template | None]:
        """The template in memory, verified; None when there is none that can be used. tell: why it was dropped."""
        directory = self._root / key
        with _IN_USE.taken(directory, lambda: self._found(directory, tell)) as template:
            if template is not None and 0 <= time.time() - template.made < self._max_age:
                yield template
            else:
                self.drop(key)
                yield None

    def _found(self, directory: Path, tell: Callable[[str], None]) -> Template | None:
        with _locked(directory, fcntl.LOCK_SH) as lock:
            if lock is None:
                return None
            try:
                template = self._load(directory)
                os.utime(directory)  # by which the least recently used one is known
            except (msgspec.DecodeError, EvidenceError) as problem:
                tell(f"the template {directory.name} is damaged ({problem}): it is made anew")
            except FileNotFoundError:
                pass  # never completed, or dropped by another rig
            except OSError as problem:
                tell(f"the template {directory.name} can't be read ({problem.strerror}): it is made anew")
            else:
                return template
            return None

    def _load(self, directory: Path) -> Template:
        seal = msgspec.json.decode((directory / TOLD).read_bytes(), type=Seal)
        made = (directory / TOLD).stat().st_mtime
        with contextlib.ExitStack() as stack:
            ram, state = (_memory(stack, f"rig-{name}") for name in (RAM, STATE))
            with (directory / RAM).open("rb") as source:
                digest = _copy(source.fileno(), ram, seal.size)
            if digest != seal.ram:
                raise EvidenceError("its RAM is not what was written")
            os.write(state, _whole(directory, STATE, seal.state))
            for descriptor in (ram, state):
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALED)
            standing = Standing(ram, state, _whole(directory, HASHES, seal.hashes), seal.line)
            stack.pop_all()  # they are closed by whoever is the last to use the template
        return Template(directory.name, made, standing, seal.logs, seal.told)

    @contextlib.contextmanager
    def making(self, key: str) -> Iterator[Making | None]:
        """To be asked before the guest boots. None when another run is making it."""
        directory = self._root / key
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(directory, fcntl.LOCK_EX) as lock:
            if lock is None or (directory / TOLD).exists():
                yield None
                return
            making = Making(directory, lock)
            try:
                yield making
            finally:
                if not making.complete:
                    shutil.rmtree(directory, ignore_errors=True)
        self.evict()

    def evict(self) -> None:
        """Drop what nobody will complete, what is too old, and the least recently used beyond the limit."""
        room, now = self._limit, time.time()
        for used, directory in sorted(_directories(self._root), reverse=True):
            size = sum(path.stat().st_blocks * 512 for path in _files(directory))
            room -= size
            if room < 0 or now - used >= self._max_age or not (directory / TOLD).exists():
                self.drop(directory.name)

    def drop(self, key: str) -> None:
        """Remove a template, unless somebody reads or makes it."""
        with _locked(self._root / key, fcntl.LOCK_EX) as lock:
            if lock is not None:
                shutil.rmtree(self._root / key, ignore_errors=True)


class Making:
    """The making of one template, of which this run has the lock."""

    def __init__(self, directory: Path, lock: int) -> None:
        self._directory = directory
        self._lock = lock
        self.complete = False

    def keep(self, vm: Vm, told: bytes) -> None:
        """Write down the held guest, as it stands. OSError: there is no room, for example."""
        (self._directory / TOLD).unlink(missing_ok=True)
        with (self._directory / RAM).open("wb") as file:
            ram = _copy(vm.ram_fd, file.fileno(), vm.spec.ram_size)
        with (self._directory / STATE).open("w+b") as file:
            vm.write_state(file.fileno())
            file.seek(0)
            state = xxhash.xxh3_128_hexdigest(file.read())
        with contextlib.closing(vm.ram.capture()) as captured:
            content = captured.hashes().tobytes()
        (self._directory / HASHES).write_bytes(content)
        hashes = xxhash.xxh3_128_hexdigest(content)
        logs = {path.name: path.read_bytes() for path in vm.line_logs}
        seal = Seal(vm.spec.ram_size, ram, state, hashes, vm.shell.line.name, logs, told)
        write_anew(self._directory / TOLD, msgspec.json.encode(seal))
        self.complete = True
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # from now on others may read it


@contextlib.contextmanager
def _locked(directory: Path, how: int) -> Iterator[int | None]:
    """The descriptor by which the directory is locked; None when it isn't there, or somebody else has it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            # It may have been dropped, and made anew, between the two calls.
            ours = os.fstat(descriptor).st_ino == directory.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            ours = False
        yield descriptor if ours else None
    finally:
        os.close(descriptor)


def _copy(source: int, target: int, size: int) -> str:
    """Copy `size` bytes between files, chunk by chunk; what is all zero stays a hole. Returns a digest of the rest.

    Not rig.memory.image: numpy would have to be imported before the guest can start.
    """
    os.ftruncate(target, size)
    digest, chunk, zero = xxhash.xxh3_128(), bytearray(CHUNK), bytes(CHUNK)
    start = 0
    while (start := next_data(source, start, size) // CHUNK * CHUNK) < size:
        length = os.preadv(source, [memoryview(chunk)[: size - start]], start)
        if length < min(CHUNK, size - start):
            raise EvidenceError(f"its RAM ends at {start + length:#x}")
        if chunk != zero:
            digest.update(start.to_bytes(8, "little"))
            digest.update(memoryview(chunk)[:length])
            os.pwrite(target, memoryview(chunk)[:length], start)
        start += CHUNK
    return digest.hexdigest()


def _whole(directory: Path, name: str, digest: str) -> bytes:
    content = read_file(directory, name, _LIMIT)
    if xxhash.xxh3_128_hexdigest(content) != digest:
        raise EvidenceError(f"its {name} is not what was written")
    return content


def _memory(stack: contextlib.ExitStack, name: str) -> int:
    """A file in memory, which can be sealed."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, descriptor)
    return descriptor


def _directories(root: Path) -> Iterator[tuple[float, Path]]:
    """(last used, path). Others may be dropping them meanwhile."""
    for path in root.glob("*/"):
        with contextlib.suppress(FileNotFoundError):
            yield path.stat().st_mtime, path


def _files(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from list(directory.iterdir())
