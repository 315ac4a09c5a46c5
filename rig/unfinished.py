"""The hidden directories in which runs gather their evidence, and temporary ones: each is its rig's own, and goes when
that is killed.

A directory belongs to the process that holds its lock (flock(2) on the directory itself): the kernel lets go of it when
that process ends, however it ends. So what nobody holds was left by a rig that was killed, and the next one that begins
a run in the same results directory, or with the same TMPDIR, removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = ".rig."  # of the name: nothing else of a user's is called so
MOMENT = 60.0  # seconds, of which microseconds pass between making a directory and locking it


@dataclass
class Unfinished:
    """A directory and the descriptor that holds its lock, -1 once it is let go of."""

    path: Path
    descriptor: int

    def let_go(self) -> None:
        """It is finished, or removed. May be called again."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def begin(results: Path, slug: str) -> Unfinished:
    """A new directory of this process's, after those of killed rigs were removed: in `results`, and temporary ones.

    :raise OSError: it can't be made
    """
    results.mkdir(parents=True, exist_ok=True)
    _sweep(results)
    with contextlib.suppress(OSError):  # a run does without a temporary directory, as long as it needs none
        _sweep(Path(tempfile.gettempdir()))
    return _make(results, slug)


@contextlib.contextmanager
def temporary(slug: str) -> Iterator[Path]:
    """A new directory in TMPDIR that only the user can enter, gone at the end, or when the next rig begins a run.

    :raise OSError: it can't be made
    """
    made = _make(Path(tempfile.gettempdir()), slug)
    try:
        yield made.path
    finally:
        shutil.rmtree(made.path, ignore_errors=True)
        made.let_go()


def _make(parent: Path, slug: str) -> Unfinished:
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{slug}.", dir=parent))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    _locked(descriptor, wait=True)  # a sweep may be looking at it just now
    return Unfinished(path, descriptor)


def _sweep(parent: Path) -> None:
    """Remove what nobody holds. Somebody else's stays, whether or not it could be removed.

    Where directories have no locks (NFS) nothing is removed.
    """
    for path in parent.glob(f"{PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            ours = os.fstat(descriptor).st_uid == os.geteuid()
            if ours and _locked(descriptor) and not _just_made(descriptor):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def _just_made(descriptor: int) -> bool:
    """Whether its process may not have come to lock it yet: nothing is in it before."""
    return not os.listdir(descriptor) and time.time() - os.fstat(descriptor).st_mtime < MOMENT


def _locked(descriptor: int, *, wait: bool = False) -> bool:
    """Whether the lock could be taken. wait: until whoever has it lets go of it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another rig, or the file system has no such locks
        return False
    return True
