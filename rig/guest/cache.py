"""A directory that several rigs share: made once, under a lock, renamed into place when complete."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from rig.errors import MachineError, UnsuitableKernel
from rig.guest.apt import Progress


class Record(Protocol):
    """What a record must be able to tell: the artefacts it stands on, relative to the cache root."""

    def paths(self) -> list[str]: ...


R = TypeVar("R", bound=Record)


def default_root() -> Path:
    """RIG_CACHE, else the user's cache directory (XDG Base Directory Specification)."""
    if chosen := os.environ.get("RIG_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "rig"


class Cache:
    """Artefacts (files or directories) and records (JSON) below `root`.

    Readers take no lock: what is there is complete, and is never changed or removed.

    refresh: make every record anew, once in this object's life.
    """

    def __init__(self, root: Path, progress: Progress, *, refresh: bool = False) -> None:
        self.root = root.absolute()
        self.progress = progress
        self.refresh = refresh
        self._made: set[str] = set()
        self._threads = threading.RLock()
        self._depth = 0

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes and threads on this cache. May be nested.

        :raise MachineError: the directory can't be written, no disk space
        """
        with self._threads, self._file_lock() if not self._depth else contextlib.nullcontext():
            self._depth += 1
            try:
                yield
            except OSError as error:
                raise self._unusable(error) from error
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary directory on the cache's file system. Only while locked."""
        with tempfile.TemporaryDirectory(dir=self.root / "tmp", ignore_cleanup_errors=True) as directory:
            yield Path(directory)

    def once(self, relative: str, make: Callable[[Path], None]) -> Path:
        """The artefact; where it isn't there yet, make(path) makes it at the path it is given."""
        final = self.root / relative
        if final.exists():
            return final
        with self.locked():
            if not final.exists():  # another rig may have been faster
                with self.scratch() as directory:
                    make(directory / "made")
                    final.parent.mkdir(parents=True, exist_ok=True)
                    (directory / "made").rename(final)
        return final

    def keep(self, relative: str, data: bytes) -> None:
        """A file whose content is at hand already. No lock: several rigs may write the same, the last one stays."""
        final = self.root / relative
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            part = final.with_name(f".{final.name}.{os.getpid()}.{threading.get_ident()}")
            part.write_bytes(data)
            part.replace(final)
        except OSError as error:
            raise self._unusable(error) from error

    def recorded(self, relative: str, kind: type[R], make: Callable[[], R]) -> R:
        """The record; made (while locked) where it is missing, unreadable, or stands on missing artefacts."""
        if (record := self._read(relative, kind)) is not None:
            return record
        with self.locked():
            if (record := self._read(relative, kind)) is None:
                record = make()
                final = self.root / relative
                with self.scratch() as directory:
                    (directory / "made").write_bytes(msgspec.json.encode(record))
                    final.parent.mkdir(parents=True, exist_ok=True)
                    (directory / "made").replace(final)
                self._made.add(relative)
        return record

    def relative(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def _read(self, relative: str, kind: type[R]) -> R | None:
        if self.refresh and relative not in self._made:
            return None
        try:
            record = msgspec.json.decode((self.root / relative).read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError):
            return None
        return record if all((self.root / path).exists() for path in record.paths()) else None

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.progress("waiting for another rig that is filling the cache")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._start_afresh()
            yield
        finally:
            os.close(descriptor)  # and so the lock

    def _start_afresh(self) -> None:
        """What lies in tmp while the lock is ours was left by a rig that was killed."""
        try:
            shutil.rmtree(self.root / "tmp", ignore_errors=True)
            (self.root / "tmp").mkdir(exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> MachineError:
        return MachineError(
            f"the cache {self.root} can't be used: {error.strerror or error}",
            hint="it takes 700 MB in a directory that can be written; RIG_CACHE=DIR puts it elsewhere",
        )


@contextlib.contextmanager
def blaming(root: Path) -> Iterator[None]:
    """What is read meanwhile may be the cache's own: trouble with such a file is no wrong request of the user's.

    :raise MachineError: instead of UnsuitableKernel or OSError about a file below root
    """
    try:
        yield
    except UnsuitableKernel as problem:
        if str(root) not in problem.message:
            raise
        raise _damaged(root, problem.message) from problem
    except OSError as problem:
        if str(root) not in str(problem.filename or ""):
            raise
        raise _damaged(root, f"{problem.filename}: {problem.strerror}") from problem


def _damaged(root: Path, what: str) -> MachineError:
    return MachineError(
        f"the cache is damaged, or was changed under a running rig: {what}",
        hint=f"remove the directory that the file is in, or all of {root}: it is made anew",
    )
