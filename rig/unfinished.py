"""The hidden directories in which runs gather their evidence: each is its rig's own, and goes when that is killed.

A directory belongs to the process that holds its lock (flock(2) on the directory itself): the kernel lets go of it when
that process ends, however it ends. So what nobody holds was left by a rig that was killed, and the next one that begins
a run in the same results directory removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

PREFIX = ".rig."  # of the name: nothing else of a user's is called so


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
    """A new directory of this process's, after those of killed rigs were removed. OSError when it can't be made.

    The lock of `results` itself is held meanwhile, so that nobody finds one that is made but not locked yet. Where
    directories have no locks (NFS) nothing is removed.
    """
    results.mkdir(parents=True, exist_ok=True)
    lock = os.open(results, os.O_RDONLY | os.O_DIRECTORY)
    try:
        locks = _locked(lock, wait=True)
        if locks:
            _sweep(results)
        path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{slug}.", dir=results))
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        if locks:
            _locked(descriptor)
        return Unfinished(path, descriptor)
    finally:
        os.close(lock)


def _sweep(results: Path) -> None:
    """Remove what nobody holds. What can't be entered or removed is somebody else's."""
    for path in results.glob(f"{PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if _locked(descriptor):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(descriptor)


def _locked(descriptor: int, *, wait: bool = False) -> bool:
    """Whether the lock could be taken. wait: until whoever has it lets go of it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another rig, or the file system has no such locks
        return False
    return True
