"""Files by their SHA-256, each written once: what travels from the client over the scheduler to the workers.

A directory `blobs` with a file for each hash, and `made-of` with directories of hard links to them, one for each set of
files that a cell is made of, in which they have the paths of its manifest (rig/ingredients.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from rig import ingredients
from rig.errors import EvidenceError

PIECE = 4 << 20  # bytes that travel at a time
Fetch = Callable[[str, int], bytes]  # hash, offset -> up to a PIECE of that file; empty at its end


class Blobs:
    """root: made when it is not there. Several processes may work on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = root / "blobs"
        self._files.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the file is, or would be. EvidenceError for what is no hash."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise EvidenceError(f"{sha256!r} is no SHA-256")
        return self._files / sha256

    def lacks(self, sha256: list[str]) -> list[str]:
        return [one for one in sha256 if not self.path(one).exists()]

    def read(self, sha256: str, offset: int) -> bytes:
        """A piece of the file. FileNotFoundError when it is not there."""
        with self.path(sha256).open("rb") as file:
            return os.pread(file.fileno(), PIECE, offset)

    def add_piece(self, sha256: str, sender: str, offset: int, piece: bytes, size: int) -> None:
        """A piece that a sender has; each sends its pieces in order. The file is there with the last one.

        :raise EvidenceError: its bytes have another hash; nothing of it is kept
        """
        final = self.path(sha256)
        draft = final.with_name(f".{sha256}.{hashlib.sha256(sender.encode()).hexdigest()[:16]}")
        with draft.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(piece)
        if offset + len(piece) >= size:
            self._keep(draft, sha256)

    def fetch(self, sha256: str, fetch: Fetch) -> None:
        """Have it, once for all processes on this directory.

        :raise EvidenceError: what came has another hash
        """
        with self._locked():
            if self.path(sha256).exists():
                return
            draft = self.path(sha256).with_name(f".{sha256}.{os.getpid()}")
            with draft.open("wb") as file:
                _fill(file, sha256, fetch)
            self._keep(draft, sha256)

    def lay_out(self, files: Mapping[str, str]) -> Path:
        """The directory in which the files (path of a manifest -> hash) are; each must be here.

        :raise EvidenceError: a path leads out of it
        """
        digest = hashlib.sha256("".join(f"{path}\0{files[path]}\n" for path in sorted(files)).encode()).hexdigest()
        root = self.root / "made-of" / digest
        for path, sha256 in files.items():
            if ".." in Path(path).parts:
                raise EvidenceError(f"{path!r} is no path of a manifest")
            target = ingredients.carry(Path(path), root)
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another cell is made of the same
                target.hardlink_to(self.path(sha256))
        return root

    def _keep(self, draft: Path, sha256: str) -> None:
        with draft.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            draft.unlink()
            raise EvidenceError(f"what came for {sha256} has the SHA-256 {found}")
        draft.chmod(0o444)
        draft.rename(self.path(sha256))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _fill(file: IO[bytes], sha256: str, fetch: Fetch) -> None:
    while piece := fetch(sha256, file.tell()):
        file.write(piece)
