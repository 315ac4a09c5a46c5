"""The seam between a live run and its judgement: the only code that writes or reads an evidence directory.

    symbols.json.zst            the kernel's symbols that executed instructions and changed memory lie in
    trace.log.zst               the way from machine_kexec to the new image, instruction by instruction, as QEMU logged
                                it: see rig/trace.py
    before.log.zst              the same from `panic` to machine_kexec, of all CPUs, one after the other (TCG)
    handover.txt                the hand-over for people, an instruction a line
    run.json                    Facts: what was run, and what the guest said about itself
    result.json, report.html    the verdict, and the same for people
    console.log control.log     the guest's two serial lines, as they came
    qmp.jsonl                   what the rig and QEMU said to each other
    qemu.log qemu.stderr        what QEMU said by itself
    traceback.txt               where the rig itself failed, when it did
    registers/CHECKPOINT.json   every CPU's registers at that checkpoint
    memory/panic.hashes.zst     xxh3_64 of every page of RAM at `panic`, 8 bytes each, little-endian, in file order
    memory/CHECKPOINT.pages.zst the pages that count (rig/memory/packed.py): at `panic` each page that changes later, is
                                part of the crashed task's page tables, holds its pattern, or differs in the dump;
                                at later checkpoints every page that differs from `panic` (in `crash-kernel`: outside
                                the crash region)
    memory/machine-kexec.*      in a plain kexec or a kexec jump, which have no `panic`, as memory/panic.*
    memory/handover.pages.zst   in a plain kexec, of the image's pages: destinations that don't hold what was to be
                                copied there; all others, sources too, as they were when the copying began
    memory/image.words.zst      in a plain kexec: the pages copied, in their order: physical addresses of the
                                destinations, of the sources (all ones: zeroes); xxh3_64 of destinations at `handover`
    back.log.zst                in a kexec jump: the way back, from the image's entry to the return of machine_kexec
    registers/died.json         every CPU's registers, and
    memory/died.pages.zst       the pages that differ from `panic`, of a guest that died in the hand-over, or on the way
                                back from a kexec jump
    memory/CHECKPOINT.ram.zst   all of RAM, only with --keep-memory
    vmcore/headers.bin          the front of /proc/vmcore: ELF header, program headers, notes
    vmcore/pgd.bin              the page that CR3 pointed to, as the dump shows it
    vmcore/dom0.bin             under a hypervisor: dom0's vmcoreinfo, as the dump shows it
    vmcore/filtered-headers.bin the same of the dump that makedumpfile made of it (kdump-compressed: with its bitmaps)
    vmcore/dump.hashes.zst      xxh3_64 of every piece of the whole dump that arrived (rig/memory/dump.py says what a
                                piece is), in the order of the dump
    vmcore/vmcore               the whole dump as a user gets it, for crash or drgn: only with --keep-dump
    vmcore/dump.pages.zst       the pieces of the dump that differ from `panic`, and those that are no whole pages; by
                                number instead of pfn, filled up with zeroes

A directory is written under a temporary name and renamed when complete: what bears a run's name is whole. What a killed
rig has left under such a name is removed when the next run begins (rig/unfinished.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import msgspec

from rig import unfinished
from rig.errors import EvidenceError, RequestError
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
    from rig.memory.packed import pack_hashes, pack_pages, unpack_hashes, unpack_pages
    from rig.memory.ram import Ram
    from rig.memory.vmcore import VmcoreHeaders, parse_headers
    from rig.trace import Trace
    from rig.trace import parse as parse_trace
else:  # nothing of it is needed to begin a directory
    np, xxhash, zstandard = late("numpy"), late("xxhash"), late("zstandard")
    kdump, hashes_at = late("rig.memory.kdump"), late("rig.memory.dump:hashes_at")
    PagesMemory = late("rig.memory.image:PagesMemory")
    pack_hashes, pack_pages = late("rig.memory.packed:pack_hashes"), late("rig.memory.packed:pack_pages")
    unpack_hashes, unpack_pages = late("rig.memory.packed:unpack_hashes"), late("rig.memory.packed:unpack_pages")
    parse_headers, parse_trace = late("rig.memory.vmcore:parse_headers"), late("rig.trace:parse")

T = TypeVar("T")

CONSOLE = "console.log"
REGISTERS = "registers"
MEMORY = "memory"
SYMBOLS = "symbols.json.zst"
TRACE = "trace.log.zst"
BEFORE = "before.log.zst"
BACK = "back.log.zst"
HEADERS = "vmcore/headers.bin"
PGD = "vmcore/pgd.bin"
DOM0 = "vmcore/dom0.bin"
FILTERED_HEADERS = "vmcore/filtered-headers.bin"
IMAGE = "memory/image.words.zst"
DUMP_HASHES = "vmcore/dump.hashes.zst"
DUMP_PAGES = "vmcore/dump.pages.zst"
VMCORE = "vmcore/vmcore"
LISTING = "handover.txt"
TRACEBACK = "traceback.txt"
# Bytes that files may have, packed or not, when they are read: far more than runs leave, and what a machine can hold.
MOST = 16 << 20  # JSON, and what is short
MOST_PAGES = 512 << 20  # of one checkpoint; as hashes the same is enough for a guest of 256 GiB
MOST_CONSOLE = 256 << 20
MOST_HEADERS = 64 << 20  # with makedumpfile's bitmaps, two bits a page
MOST_TRACE = RECORDING_LIMIT + MOST  # QEMU's log, and before it what its threads have in common
WINDOWS = 1 << 20  # bytes of pages outside a guest's RAM that are kept, too: the VGA window, ROMs
COPIES = 4  # of a guest's pages one hash file may tell of: a dump can promise a page more than once

# Not a checkpoint: the guest died between `machine-kexec` and `handover`, and QEMU has kept it as it was.
DIED = "died"


@dataclass(frozen=True)
class Copied:
    """The pages of a plain kexec's image, in the order of copying. hashes: xxh3_64 of destinations at `handover`."""

    destinations: npt.NDArray[np.uint64]  # physical addresses
    sources: npt.NDArray[np.uint64]
    hashes: npt.NDArray[np.uint64]


# ---------------------------------------------------------------- JSON


def _encode_hook(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"no JSON for {type(value)}")


def _decode_hook(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(f"no {kind} from JSON")


def to_json(value: object) -> bytes:
    """Any of the model's objects as indented UTF-8 JSON, ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=_encode_hook), indent=1) + b"\n"


def from_json(blob: bytes, kind: type[T], source: Path) -> T:
    """Typed and strict. Raises EvidenceError naming the file and the key."""
    try:
        return msgspec.json.decode(blob, type=kind, dec_hook=_decode_hook)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise EvidenceError(f"{source}: {problem}") from problem


def _require_plausible(told: object, source: Path) -> None:
    if complaint := next(numbers.complaints(told), ""):
        raise EvidenceError(f"{source}: can't be true: {complaint}")


# ---------------------------------------------------------------- writing


class EvidenceWriter:
    """Gathers one run's evidence under a temporary name beside its final one, until finish() or discard().

    Raises RequestError when the results directory can't be written.
    """

    def __init__(self, results: Path, slug: str) -> None:
        self._results = results
        self._slug = slug
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
        """Give the directory its name: SLUG, or SLUG.2, SLUG.3... when earlier runs are there."""
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


# ---------------------------------------------------------------- reading


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
        for symbol in self.symbols:
            if symbol.start <= address < symbol.end:
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
        return parse_trace(text.decode("ascii", errors="replace"), self.facts.crashing_cpu, start)

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
