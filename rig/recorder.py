"""Captures of a held VM's memory, kept small: the first one whole, every later one as what differs from it.

The first is `panic`, in a plain kexec `machine-kexec`.

While the VM is held, reading its RAM (rig/memory/ram.py) is reading the machine.
What isn't RAM but may change, the VGA text window, is fetched over QMP. At every checkpoint the pgd's page is fetched
over QMP as well and must equal RAM's: a capture that looks at the wrong memory would find nothing changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rig.errors import ProtocolError
from rig.evidence import DIED
from rig.evidence.writer import EvidenceWriter
from rig.memory.image import FileRange, PagesMemory, RangesMemory
from rig.memory.physical import VGA_TEXT, Memory
from rig.memory.ram import Capture, Ram
from rig.memory.snapshot import Pages
from rig.model import PAGE_SIZE, Checkpoint, Range

RamRange = tuple[int, int, int]  # physical start, size, offset in the file
PhysicalRead = Callable[[int, int], bytes]  # address, size; over QMP


class Recorder:
    """One run's captures. The VM must be held during `capture`. A context manager: it owns a copy of RAM in memory."""

    def __init__(self, ram: Ram, ranges: Sequence[RamRange], read_physical: PhysicalRead) -> None:
        self._ram = ram
        self._ranges = [FileRange(*r) for r in ranges]
        self._read_physical = read_physical
        self._base: Capture | None = None
        self._vga: dict[int, bytes] = {}
        self._deltas: dict[str, dict[int, bytes]] = {}
        self._hashes: NDArray[np.uint64] | None = None
        self.captured: list[Checkpoint] = []

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._base is not None:
            self._base.close()

    @property
    def live(self) -> RangesMemory:
        """The machine's RAM as it is now."""
        return RangesMemory(self._ram.read, self._ranges)

    @property
    def at_panic(self) -> RangesMemory:
        """RAM as it was at the first capture. Readable as long as this is entered."""
        return self._first.memory(self._ranges)

    @property
    def _first(self) -> Capture:
        assert self._base is not None, "nothing was captured yet"
        return self._base

    def at(self, checkpoint: str) -> Memory:
        """RAM as it was at a checkpoint (or DIED) that was captured, in full (but for what `leave_out` left out)."""
        return PagesMemory(self._deltas.get(checkpoint, {}), fallback=self.at_panic)

    def capture(self, checkpoint: Checkpoint, leave_out: Collection[int] | Range = ()) -> None:
        """Take memory as it is. The first capture is the one that all others are compared with.

        leave_out: physical addresses of pages of which nothing is kept (the crash region, once the crash kernel runs
        in it).
        """
        window = self._read_physical(VGA_TEXT[0], VGA_TEXT[1] - VGA_TEXT[0])
        vga = {(VGA_TEXT[0] + at) // PAGE_SIZE: window[at : at + PAGE_SIZE] for at in range(0, len(window), PAGE_SIZE)}
        if not self.captured:
            self._base = self._ram.capture()
            self._vga = vga
        else:
            self._deltas[checkpoint] = self._differing(vga, leave_out)
        self.captured.append(checkpoint)

    def capture_death(self) -> None:
        """Take memory as it is, of a guest that died in the hand-over. `panic` must have been captured."""
        self._deltas[DIED] = self._differing({}, ())

    def _differing(self, vga: Mapping[int, bytes], leave_out: Collection[int] | Range) -> dict[int, bytes]:
        """What differs from the first capture now, by pfn."""
        pages = {pfn: page for pfn, page in vga.items() if page != self._vga[pfn]}
        changed = self._first.changed(self._pages(leave_out))
        for held in self._ranges:
            inside = changed[(changed * PAGE_SIZE >= held.offset) & (changed * PAGE_SIZE < held.offset + held.size)]
            for index in inside.tolist():
                address = index * PAGE_SIZE - held.offset + held.start
                pages[address // PAGE_SIZE] = self._ram.read(PAGE_SIZE, index * PAGE_SIZE)
        return pages

    def _pages(self, wanted: Collection[int] | Range) -> Pages:
        """Physical addresses as pages of RAM as a file."""
        pages = np.zeros(self._ram.size // PAGE_SIZE, np.bool_)
        if isinstance(wanted, Range):
            addresses = np.arange(
                -(-wanted.start // PAGE_SIZE) * PAGE_SIZE, wanted.last + 1, PAGE_SIZE, dtype=np.uint64
            )
        else:
            addresses = np.fromiter(wanted, np.uint64, len(wanted))
        for held in self._ranges:
            inside = addresses[(addresses >= held.start) & (addresses < held.start + held.size)]
            pages[(inside - held.start + held.offset) // PAGE_SIZE] = True
        return pages

    def differing(self, addresses: Iterable[int]) -> dict[int, bytes]:
        """Of these pages (physical addresses), those that differ from the first capture now, by pfn."""
        live, base = self.live, self.at_panic
        pages = ((at // PAGE_SIZE, live.read(at, PAGE_SIZE), base.read(at, PAGE_SIZE)) for at in addresses)
        return {pfn: now for pfn, now, before in pages if now != before}

    def add(self, checkpoint: Checkpoint, pages: Mapping[int, bytes]) -> None:
        """Keep these pages (by pfn) with a checkpoint that was captured without them."""
        self._deltas[checkpoint] |= pages

    def cross_check(self, address: int) -> None:
        """The page at a physical address must be the same over QMP and in what captures read. ProtocolError if not."""
        address &= ~(PAGE_SIZE - 1)
        if self._read_physical(address, PAGE_SIZE) != self.live.read(address, PAGE_SIZE):
            raise ProtocolError(f"QMP's pmemsave and RAM disagree about the page at {address:#x}")

    def changed_pages(self, checkpoint: Checkpoint) -> list[int]:
        """Pfns of the pages that differ from the first capture."""
        return sorted(self._deltas[checkpoint])

    def all_changed_pages(self) -> list[int]:
        """Pfns of the pages that differ from the first capture at any later checkpoint."""
        return sorted(set().union(*self._deltas.values()))

    def hash_pages(self) -> NDArray[np.uint64]:
        """xxh3_64 of every page at the first capture, in the RAM file's order. Computed once."""
        if self._hashes is None:
            self._hashes = self._first.hashes()
        return self._hashes

    def save(self, writer: EvidenceWriter, wanted: Iterable[int]) -> None:
        """Write what was captured. wanted: physical addresses whose pages are kept of the first capture in any case."""
        if not self.captured:
            return
        first = self.captured[0]
        writer.write_hashes(self.hash_pages(), first)
        memory = self.at_panic
        pfns = {address // PAGE_SIZE for address in wanted}
        for checkpoint, pages in self._deltas.items():
            writer.write_pages(checkpoint, pages)
            pfns |= set(pages)
        base = dict(self._vga)
        base |= {pfn: memory.read(pfn * PAGE_SIZE, PAGE_SIZE) for pfn in pfns - set(self._vga)}
        writer.write_pages(first, base)

    def find(self, token: bytes, page: int) -> tuple[int, int] | None:
        """Where `token` is repeated in a page at `panic`: (offset in the page, bytes); None when it is not there."""
        blob = self.at_panic.read(page, PAGE_SIZE)
        at = end = blob.find(token)
        while at >= 0 and blob.startswith(token, end):
            end += len(token)
        return (at, end - at) if end - at >= 2 * len(token) else None
