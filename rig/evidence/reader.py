"""Evidence as it is read: by whoever judges a run, from anybody, and nothing in it believed."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from rig.errors import EvidenceError
from rig.evidence import (
    BACK,
    BEFORE,
    CONSOLE,
    DIED,
    DOM0,
    DUMP_HASHES,
    DUMP_PAGES,
    FILTERED_HEADERS,
    HEADERS,
    IMAGE,
    MEMORY,
    PGD,
    REGISTERS,
    SYMBOLS,
    TRACE,
    Copied,
)
from rig.facts import Facts
from rig.late import late
from rig.model import (
    MACHINE_KEXEC,
    PAGE_SIZE,
    RECORDING_LIMIT,
    Checkpoint,
    CpuState,
    Dump,
    Range,
    RunResult,
    Symbol,
)
from rig.reading import read_file, require_small, unpack
from rig.rules import numbers

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import xxhash
    import zstandard

    from rig.memory import kdump
    from rig.memory.dump import hashes_at
    from rig.memory.image import PagesMemory
    from rig.memory.packed import unpack_hashes, unpack_pages
    from rig.memory.vmcore import VmcoreHeaders, parse_headers
    from rig.trace import Trace
    from rig.trace import parse as parse_trace
    from rig.trace import parsed as parsed_trace
else:  # commands that only look for evidence begin sooner
    np, xxhash, zstandard = late("numpy"), late("xxhash"), late("zstandard")
    kdump, hashes_at = late("rig.memory.kdump"), late("rig.memory.dump:hashes_at")
    PagesMemory = late("rig.memory.image:PagesMemory")
    unpack_hashes, unpack_pages = late("rig.memory.packed:unpack_hashes"), late("rig.memory.packed:unpack_pages")
    parse_headers = late("rig.memory.vmcore:parse_headers")
    parse_trace, parsed_trace = late("rig.trace:parse"), late("rig.trace:parsed")

T = TypeVar("T")

# Bytes that files may have, packed or not, when they are read: far more than runs leave, and what a machine can hold.
MOST = 16 << 20  # JSON, and what is short
MOST_PAGES = 512 << 20  # of one checkpoint; as hashes the same is enough for a guest of 256 GiB
MOST_CONSOLE = 256 << 20
MOST_HEADERS = 64 << 20  # with makedumpfile's bitmaps, two bits a page
MOST_TRACE = RECORDING_LIMIT + MOST  # QEMU's log, and before it what its threads have in common
WINDOWS = 1 << 20  # bytes of pages outside a guest's RAM that are kept, too: the VGA window, ROMs
COPIES = 4  # of a guest's pages one hash file may tell of: a dump can promise a page more than once


def _decode_hook(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(f"no {kind} from JSON")


def from_json(blob: bytes, kind: type[T], source: Path) -> T:
    """Typed and strict. Raises EvidenceError naming the file and the key."""
    try:
        return msgspec.json.decode(blob, type=kind, dec_hook=_decode_hook)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise EvidenceError(f"{source}: {problem}") from problem


def _require_plausible(told: object, source: Path) -> None:
    if complaint := next(numbers.complaints(told), ""):
        raise EvidenceError(f"{source}: can't be true: {complaint}")


class Evidence:
    """One evidence directory, read lazily, a stranger's too: see rig/reading.py and rig/rules.

    Raises EvidenceError for what is missing, torn, or can't be true.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Not functools.cache on the methods: that would keep every Evidence, with all that it has read, for ever.
        self._cpus: dict[str, tuple[CpuState, ...]] = {}
        self._pages: dict[str, Mapping[int, bytes]] = {}

    def _read(self, name: str, most: int = MOST) -> bytes:
        try:
            return read_file(self.path, name, most)
        except FileNotFoundError:
            raise EvidenceError(f"{self.path / name} is missing") from None

    def _has(self, name: str) -> bool:
        return (self.path / name).exists()

    @cached_property
    def facts(self) -> Facts:
        source = self.path / "run.json"
        found = from_json(self._read("run.json"), Facts, source)
        _require_plausible(found, source)
        return found

    @cached_property
    def result(self) -> RunResult:
        source = self.path / "result.json"
        found = from_json(self._read("result.json"), RunResult, source)
        _require_plausible(found, source)
        return found

    def _pages_file(self, name: str) -> dict[int, bytes]:
        """At most all of the guest's memory, and what lies outside it."""
        guest = (self.facts.plan.guest.memory << 20) + WINDOWS
        most = min(MOST_PAGES, guest + guest // PAGE_SIZE * 8)
        blob = self._read(name, most)
        require_small(blob, most, self.path / name)
        return unpack_pages(blob, self.path / name)

    def _hashes_file(self, name: str) -> npt.NDArray[np.uint64]:
        most = min(MOST_PAGES, COPIES * 8 * ((self.facts.plan.guest.memory << 20) + WINDOWS) // PAGE_SIZE)
        blob = self._read(name, most)
        require_small(blob, most, self.path / name)
        return unpack_hashes(blob, self.path / name)

    @property
    def base(self) -> Checkpoint:
        """The first capture, which the later ones are kept as differences from: `panic`, where there is one."""
        return next(iter(self.facts.captured), Checkpoint.PANIC)

    @property
    def course(self) -> tuple[Checkpoint, ...]:
        """The checkpoints at which memory has to be seen, in their order: the first is what all others are held
        against."""
        if self.facts.jump:
            return Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER, Checkpoint.RETURNED
        to_handover = (Checkpoint.PANIC, Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER)
        return to_handover if self.facts.ends_at_handover else (*to_handover, Checkpoint.CRASH_KERNEL)

    @property
    def course_in_words(self) -> str:
        """From where to where, for summaries."""
        if self.facts.jump:
            return "out and back"
        return "from panic to hand-over" if self.facts.ends_at_handover else "from panic to crash kernel"

    @cached_property
    def copied(self) -> Copied:
        """What a plain kexec copied where. EvidenceError when that was not seen."""
        words = self._hashes_file(IMAGE)
        if len(words) % 3:
            raise EvidenceError(f"{self.path / IMAGE} is torn: {len(words)} words are no triples")
        return Copied(*words.reshape(3, -1))

    def cpus(self, checkpoint: str) -> tuple[CpuState, ...]:
        """Registers of all CPUs at a checkpoint, or when the guest DIED."""
        if checkpoint not in self._cpus:
            self._cpus[checkpoint] = self._read_cpus(checkpoint)
        return self._cpus[checkpoint]

    def _read_cpus(self, checkpoint: str) -> tuple[CpuState, ...]:
        name = f"{REGISTERS}/{checkpoint}.json"
        found = from_json(self._read(name), tuple[CpuState, ...], self.path / name)
        _require_plausible(found, self.path / name)
        return found

    def crashing_cpu(self, checkpoint: str) -> CpuState:
        """The CPU that panicked, at that checkpoint or when it DIED."""
        number = self.facts.crashing_cpu
        for cpu in self.cpus(checkpoint):
            if cpu.cpu == number:
                return cpu
        raise EvidenceError(f"no registers of the crashing CPU ({number}) at {checkpoint}")

    def pages(self, checkpoint: str) -> Mapping[int, bytes]:
        """The pages kept for a checkpoint, or DIED, by pfn. Those of the first are held against their hashes."""
        if checkpoint not in self._pages:
            self._pages[checkpoint] = self._read_pages(checkpoint)
        return self._pages[checkpoint]

    def _read_pages(self, checkpoint: str) -> Mapping[int, bytes]:
        name = f"{MEMORY}/{checkpoint}.pages.zst"
        found = self._pages_file(name)
        if checkpoint == self.base:
            hashes, index_of = self._hashes, self._page_index
            for pfn, page in found.items():
                index = index_of(pfn)
                if index is not None and xxhash.xxh3_64_intdigest(page) != int(hashes[index]):
                    raise EvidenceError(f"{name}: page {pfn:#x} does not match its hash")
        return found

    @cached_property
    def _hashes(self) -> npt.NDArray[np.uint64]:
        return self._hashes_file(f"{MEMORY}/{self.base}.hashes.zst")

    def hashes_at_panic(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """xxh3_64 of the page at each physical address, at the first capture. EvidenceError where there is no RAM."""
        return hashes_at(addresses, self._hashes, self.facts.ram)

    def _page_index(self, pfn: int) -> int | None:
        """Where a page lies in the hash list; None for what is not RAM (the VGA window)."""
        for start, size, offset in self.facts.ram:
            if start <= pfn * PAGE_SIZE < start + size:
                return (pfn * PAGE_SIZE - start + offset) // PAGE_SIZE
        return None

    def memory(self, checkpoint: str) -> PagesMemory:
        """Physical memory at a checkpoint, or when the guest DIED, as far as it was kept: its own pages, else those of
        the first capture."""
        if checkpoint not in self.facts.captured and not (checkpoint == DIED and self.facts.post_mortem):
            raise EvidenceError(f"memory was not captured at {checkpoint}")
        base = PagesMemory(self.pages(self.base))
        if checkpoint == self.base:
            return base
        return PagesMemory(self.pages(checkpoint), fallback=base)

    @cached_property
    def vmcore(self) -> VmcoreHeaders:
        return parse_headers(self._read(HEADERS, MOST_HEADERS))

    @cached_property
    def dump(self) -> VmcoreHeaders:
        """The headers of the dump that was taken whole: /proc/vmcore's own, or makedumpfile's."""
        if self.facts.plan.scenario.dump is not Dump.MAKEDUMPFILE:
            return self.vmcore
        blob = self._read(FILTERED_HEADERS, MOST_HEADERS)
        return kdump.parse_front(blob).headers if blob.startswith(kdump.SIGNATURE) else parse_headers(blob)

    @cached_property
    def dump_hashes(self) -> npt.NDArray[np.uint64]:
        """xxh3_64 of each piece of the whole dump, as far as it arrived."""
        return self._hashes_file(DUMP_HASHES)

    @cached_property
    def dump_pages(self) -> Mapping[int, bytes]:
        """The pieces of the whole dump that were kept, by number, each filled up to a page with zeroes."""
        return self._pages_file(DUMP_PAGES)

    @cached_property
    def dumped_pgd(self) -> bytes:
        """The page at CR3 as the dump shows it, 4096 bytes."""
        return self._read(PGD)

    @cached_property
    def dumped_dom0(self) -> bytes:
        """The front of dom0's vmcoreinfo note as the dump shows it."""
        return self._read(DOM0)

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """Symbols of the first kernel, ascending; none when the run broke off before they were looked up."""
        if not self._has(SYMBOLS):
            return ()
        found = from_json(self._unpacked(SYMBOLS, MOST), tuple[Symbol, ...], self.path / SYMBOLS)
        _require_plausible(found, self.path / SYMBOLS)
        return found

    @cached_property
    def given_back(self) -> tuple[Range, ...]:
        """Parts of the first kernel's image that it has freed: physical. What lies there is anybody's."""
        code = next((r for r in self.facts.iomem if r.name == "Kernel code"), None)
        if self.facts.text is None or code is None:
            return ()
        move = code.start - self.facts.text
        return tuple(Range(start + move, end + move - 1, "freed") for start, end in self.facts.given_back)

    def symbol_at(self, address: int) -> str:
        """ "name+0x1f" of a virtual address in the first kernel; the bare address when no symbol is known there."""
        index = bisect.bisect_right(self.symbols, address, key=lambda symbol: symbol.start) - 1
        symbol = self.symbols[index] if index >= 0 else None
        if symbol is not None and address < symbol.end:
            return f"{symbol.name}+{address - symbol.start:#x}"
        return f"{address:#x}"

    @cached_property
    def trace(self) -> Trace:
        """What the crashing CPU executed from machine_kexec on; up to its death, when it never got to the new image."""
        if self.facts.crashing_cpu is None:
            raise EvidenceError("the first checkpoint was never reached: there is no hand-over trace")
        return self._parsed(self._unpacked(TRACE), self.facts.symbols.get(MACHINE_KEXEC))

    @cached_property
    def recording(self) -> Trace:
        """All that was recorded of the crashing CPU: `trace`, and before it what led there from `panic`.

        The way from `panic` is recorded under TCG only. Takes a while to read.
        """
        if self.facts.crashing_cpu is None:
            raise EvidenceError("the first checkpoint was never reached: nothing was recorded")
        before = self._unpacked(BEFORE) if self._has(BEFORE) else b""
        return self._parsed(before + self._unpacked(TRACE), None)

    @cached_property
    def way_back(self) -> Trace:
        """What the CPU executed from the image's entry to the return of machine_kexec, or to its death: a kexec jump's.

        :raise EvidenceError: there is no such recording, or it is broken
        """
        return self._parsed(self._unpacked(BACK), None)

    def other_cpu(self, cpu: int) -> Trace | None:
        """What a CPU other than the crashing one executed from `panic` to machine_kexec.

        None when it executed nothing then, or when that was not recorded.
        """
        if not self._has(BEFORE):
            return None
        text = self._unpacked(BEFORE).decode("ascii", errors="replace")
        return parse_trace(text, cpu) if f"\nTrace {cpu}: " in text else None

    def _parsed(self, text: bytes, start: int | None) -> Trace:
        assert self.facts.crashing_cpu is not None
        return parsed_trace(text.decode("ascii", errors="replace"), self.facts.crashing_cpu, start)

    @property
    def hand_over_end(self) -> str:
        """What memory and registers the hand-over ended with: `handover`, or DIED. EvidenceError when with neither."""
        if Checkpoint.HANDOVER in self.facts.captured:
            return Checkpoint.HANDOVER
        if self.facts.post_mortem:
            return DIED
        raise EvidenceError("the new image was never entered, and nothing was taken where the hand-over ended")

    @property
    def way_back_end(self) -> str:
        """The same of a kexec jump's way back: `returned`, or DIED. EvidenceError when with neither."""
        if Checkpoint.RETURNED in self.facts.captured:
            return Checkpoint.RETURNED
        if self.facts.post_mortem and Checkpoint.HANDOVER in self.facts.captured:
            return DIED
        raise EvidenceError("machine_kexec was not seen to return, and nothing was taken where the way back ended")

    def final_state(self, *, back: bool = False) -> CpuState | None:
        """The crashing CPU's state at `handover`, or when it died before that; None when it was not seen.

        back: the same of a kexec jump's way back.
        """
        try:
            return self.crashing_cpu(self.way_back_end if back else self.hand_over_end)
        except EvidenceError:
            return None

    def _unpacked(self, name: str, most: int = MOST_TRACE) -> bytes:
        return unpack(self._read(name, most), most, self.path / name)

    # what the report needs

    def console(self) -> bytes:
        """What the guest printed; nothing when the run was skipped, or broke off, before there was a guest."""
        early = bool(self.facts.skip) or self.facts.broke_off is not None
        if early and not self._has(CONSOLE):
            return b""
        return self._read(CONSOLE, MOST_CONSOLE)

    def registers(self) -> Mapping[str, tuple[CpuState, ...]]:
        """Registers per checkpoint, in the order of the checkpoints, then those of a guest that DIED."""
        known = (*map(str, Checkpoint), DIED)
        return {c: self.cpus(c) for c in known if self._has(f"{REGISTERS}/{c}.json")}

    def files(self) -> list[tuple[str, int]]:
        """(path relative to the directory, bytes), sorted."""
        found = (p for p in self.path.rglob("*") if p.is_file() and not p.is_symlink())
        return sorted((str(p.relative_to(self.path)), p.stat().st_size) for p in found)
