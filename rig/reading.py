"""Files in directories that a stranger may have made: read whole, but neither out of their directory nor without bound,
and written without following what lies there."""

from __future__ import annotations

import contextlib
import gzip
import os
import stat
import struct
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rig.errors import EvidenceError, RigError
from rig.late import late

if TYPE_CHECKING:
    import zstandard
else:
    zstandard = late("zstandard")

# What the readers of words and bytes raise for what nobody foresaw; anything else is a bug of the rig's.
_NONSENSE = (LookupError, ValueError, EOFError, struct.error, zlib.error, gzip.BadGzipFile)
_STRANGER = "the rig leaves no such thing: take the directory for damaged, or forged"


@contextlib.contextmanager
def stumbling(told: Callable[[Exception], Exception], *, bugs: bool = False) -> Iterator[None]:
    """What nobody foresaw that a guest or a file could say is its trouble, and told as such.

    told: the error to raise instead. bugs: also of what looks like a bug of the rig's, where the input is a stranger's
    and whoever reads it is not. The rig's own errors and those of files that can't be read stay what they are.
    """
    try:
        yield
    except _NONSENSE as problem:
        raise told(problem) from problem
    except (RigError, OSError):
        raise
    except Exception as problem:
        if not bugs:
            raise
        raise told(problem) from problem


def over_evidence(directory: Path) -> contextlib.AbstractContextManager[None]:
    """stumbling() over somebody's evidence: an EvidenceError that names the place in the rig that it was."""

    def told(bug: Exception) -> EvidenceError:
        frame = traceback.extract_tb(bug.__traceback__)[-1]
        last = " ".join(traceback.format_exception_only(bug)[-1].split())
        return EvidenceError(
            f"{directory}: the rig can make no sense of it: {last[:200]} in {frame.name} "
            f"({Path(frame.filename).name}:{frame.lineno})",
            hint="if it is as a rig of this version wrote it, this is a bug of the rig: report it with the directory",
        )

    return stumbling(told, bugs=True)


def require_regular(path: Path) -> None:
    """Whether what is there, if anything is, is a file of its own.

    :raise EvidenceError: it is a symbolic link, a FIFO, a device
    """
    if path.is_symlink():
        raise EvidenceError(f"{path} is a symbolic link, which is not followed", hint=_STRANGER)
    if path.exists() and not path.is_file():
        raise EvidenceError(f"{path} is not a regular file", hint=_STRANGER)


def read_file(root: Path, name: str, most: int) -> bytes:
    """The file ROOT/NAME. most: bytes. `root` itself may be a symbolic link, it is the user who names it.

    :raise FileNotFoundError: it isn't there
    :raise EvidenceError: it can't be read; it is larger; it is no regular file; a symbolic link leads to it
    """
    path = root
    try:
        for part in Path(name).parts:
            path = path / part
            if path.is_symlink():
                raise EvidenceError(f"{path} is a symbolic link, which is not followed", hint=_STRANGER)
        # Not blocking: a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise EvidenceError(f"{path} is not a regular file", hint=_STRANGER)
            if found.st_size > most:
                raise EvidenceError(f"{path} has {found.st_size} bytes, more than the {most} that it may have")
            return file.read(found.st_size)  # not `most`: memory for all of that would be asked for
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise EvidenceError(f"{path}: {getattr(problem, 'strerror', problem)}") from problem


def write_anew(target: Path, blob: bytes, *, durable: bool = False) -> None:
    """Write a file all at once, and as a new one: what lies under its name, and is perhaps a link, is replaced.

    durable: it is there whole or not at all also when the power goes.

    :raise OSError: it can't be written
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        draft.unlink(missing_ok=True)  # of a rig that was killed, or a link that waits for us
        with draft.open("xb") as stream:
            stream.write(blob)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        draft.rename(target)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def require_small(packed: bytes, most: int, source: Path) -> None:
    """Whether a zstd frame says of itself that it unpacks to `most` bytes or fewer. What says so can't unpack to more
    (RFC 8878, 3.1.1.1.4).

    :raise EvidenceError: it doesn't, or it is no such frame
    """
    try:
        size = zstandard.frame_content_size(packed)
    except zstandard.ZstdError as problem:
        raise EvidenceError(f"{source}: {problem}") from problem
    if size < 0:
        raise EvidenceError(f"{source} does not say how many bytes it unpacks to")
    if size > most:
        raise EvidenceError(f"{source} unpacks to {size} bytes, more than the {most} that it may have")


def unpack(packed: bytes, most: int, source: Path) -> bytes:
    """A zstd frame unpacked.

    :raise EvidenceError: it is none, it is torn, or it is larger than `most` bytes
    """
    require_small(packed, most, source)
    try:
        return zstandard.decompress(packed)
    except zstandard.ZstdError as problem:
        raise EvidenceError(f"{source}: {problem}") from problem
