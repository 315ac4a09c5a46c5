"""What a run leaves behind, gathered in a hidden directory until it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from rig import unfinished
from rig.errors import EvidenceError, RequestError
from rig.evidence import BACK, BEFORE, DUMP_HASHES, DUMP_PAGES, IMAGE, MEMORY, REGISTERS, SYMBOLS, TRACE, Copied
from rig.late import late
from rig.model import PAGE_SIZE, Checkpoint, CpuState, Symbol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import zstandard

    from rig.memory.packed import pack_hashes, pack_pages
    from rig.memory.ram import Ram
else:  # nothing of it is needed to begin a directory
    np, zstandard = late("numpy"), late("zstandard")
    pack_hashes, pack_pages = late("rig.memory.packed:pack_hashes"), late("rig.memory.packed:pack_pages")


def _encode_hook(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"no JSON for {type(value)}")


def to_json(value: object) -> bytes:
    """Any of the model's objects as indented UTF-8 JSON, ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=_encode_hook), indent=1) + b"\n"


class EvidenceWriter:
    """Gathers one run's evidence under a temporary name beside its final one, until finish() or discard().

    Raises RequestError when the results directory can't be written.
    """

    def __init__(self, results: Path, slug: str) -> None:
        self._results = results
        self._slug = slug
        self._written: set[Path] = set()  # relative to the directory
        try:
            self._unfinished = unfinished.begin(results, slug)
            self.path = self._unfinished.path
            self._make_folders()
        except OSError as problem:
            raise RequestError(
                f"the results directory {results} can't be written: {problem.strerror}",
                hint="name another one with --results DIR",
            ) from problem

    def _make_folders(self) -> None:
        try:
            for folder in (REGISTERS, MEMORY):
                (self.path / folder).mkdir()
        except OSError:
            self.discard()
            raise

    def write(self, name: str, blob: bytes) -> None:
        """One file; its folder is made."""
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(blob)
        self._written.add(Path(name))

    def create(self, name: str) -> IO[bytes]:
        """One file to be written and read in parts; its folder is made."""
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        return target.open("w+b")

    def size(self, name: str) -> int:
        """Bytes of a file as it is now, 0 when it is not there yet."""
        target = self.path / name
        return target.stat().st_size if target.exists() else 0

    def write_registers(self, checkpoint: str, cpus: Iterable[CpuState]) -> None:
        self.write(f"{REGISTERS}/{checkpoint}.json", to_json(tuple(cpus)))

    def write_pages(self, checkpoint: str, pages: Mapping[int, bytes]) -> None:
        self.write(f"{MEMORY}/{checkpoint}.pages.zst", pack_pages(pages))

    def write_hashes(self, hashes: npt.NDArray[np.uint64], checkpoint: Checkpoint = Checkpoint.PANIC) -> None:
        self.write(f"{MEMORY}/{checkpoint}.hashes.zst", pack_hashes(hashes))

    def write_image(self, copied: Copied) -> None:
        self.write(IMAGE, pack_hashes(np.concatenate([copied.destinations, copied.sources, copied.hashes])))

    def write_dump(self, hashes: npt.NDArray[np.uint64], kept: Mapping[int, bytes]) -> None:
        """hashes: of the pieces of the dump that arrived. kept: pieces of it, by number."""
        self.write(DUMP_HASHES, pack_hashes(hashes))
        self.write(DUMP_PAGES, pack_pages({number: piece.ljust(PAGE_SIZE, b"\0") for number, piece in kept.items()}))

    def write_ram(self, checkpoint: Checkpoint, ram: Ram) -> None:
        """All of RAM, streamed through zstd."""
        target = self.path / MEMORY / f"{checkpoint}.ram.zst"
        with target.open("wb") as out, zstandard.ZstdCompressor(1).stream_writer(out) as packed:
            done = 0
            while part := ram.read(1 << 22, done):
                packed.write(part)
                done += len(part)

    def write_symbols(self, symbols: Iterable[Symbol]) -> None:
        """Symbols of the first kernel: those that matter to the evidence."""
        self.write(SYMBOLS, zstandard.compress(to_json(tuple(symbols)), 3))

    def write_before(self, text: str) -> None:
        """The recording of what led to the hand-over."""
        self.write(BEFORE, zstandard.compress(text.encode(), 3))

    def write_back(self, text: str) -> None:
        """The recording of the way back from a kexec jump."""
        self.write(BACK, zstandard.compress(text.encode(), 3))

    def write_trace(self, text: str) -> None:
        """The recording of the hand-over, as it came."""
        self.write(TRACE, zstandard.compress(text.encode(), 3))

    def finish(self) -> Path:
        """Give the directory its name: SLUG, or SLUG.2, SLUG.3... when earlier runs are there.

        Raises EvidenceError when what was written is not there any more: a verdict must not outlive what it stands on.
        """
        for name in sorted(self._written):
            if not (self.path / name).is_file():
                raise EvidenceError(f"{self.path / name} is gone")
        self.path.chmod(0o755)
        for number in range(1, 1_000_000):
            target = self._results / (self._slug if number == 1 else f"{self._slug}.{number}")
            if target.exists():
                continue
            try:
                self.path.rename(target)
            except OSError:  # somebody else took the name in between
                if target.exists():
                    continue
                raise
            self.path = target
            self._unfinished.let_go()
            return target
        raise RequestError(f"{self._results} is full of runs of {self._slug}")

    def discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._unfinished.let_go()
