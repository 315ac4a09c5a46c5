"""Forged evidence: a small 2-level machine that crashed, whole and healthy until a test damages it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from rig.evidence import DIED, FILTERED_HEADERS
from rig.evidence.reader import Evidence
from rig.evidence.writer import EvidenceWriter, to_json
from rig.facts import Damage, DumpInfo, Facts, Kimage
from rig.memory.dump import DumpHashes, Words, cut, hashes_at
from rig.memory.vmcore import parse_headers
from rig.model import (
    PAGE_SIZE,
    Arch,
    Checkpoint,
    CpuState,
    Guest,
    Kernel,
    KernelIdentity,
    PagingMode,
    Range,
    RunPlan,
    Scenario,
    Segment,
    Symbol,
)
from tests.memory.forged_vmcore import vmcore_i386

RAM = 16 << 20  # bytes
PGD = 0x5000  # physical; entry 0 maps the first 4 MiB to themselves
PANIC_RIP = 0xC0010000
STACK = 0xC0201FF0  # virtual; the kernel's 4 MiB at 0xc0000000 are physical 0
CRASH = Range(0x800000, 0xBFFFFF, "Crash kernel")
NOTES = ((0x300000, 512), (0x310000, 512))

CHECKS = ("pgd-survives", "crash-kernel-boots", "memory-accounted", "vmcore-registers")
GUEST = Guest(
    name="i386",
    description="forged",
    arch=Arch.I386,
    paging=PagingMode.TWO_LEVEL,
    flavour="686",
    kernel="forged",
    memory=64,
    cpus=2,
    machine="pc",
    cpu="qemu64",
    crashkernel="4M",
)
KERNEL = Kernel(name="forged", description="forged", package="linux-image-forged")
IDENTITY = KernelIdentity("forged", "6.1.0-forged", "0" * 64)
SEEN = (Checkpoint.PANIC, Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER, Checkpoint.CRASH_KERNEL)


def scenario(**changes: Any) -> Scenario:
    return replace(Scenario("panic", "forged", "sysrq-c", ("i386",), CHECKS), **changes)


def pgd_page() -> bytes:
    """Two 4 MiB entries, present, writable, PSE (0x83): identity for user space, and the kernel at 0xc0000000."""
    table = np.zeros(1024, dtype="<u4")
    table[0] = 0x83
    table[768] = 0x83
    return table.tobytes()


def cpu(number: int, rip: int = PANIC_RIP, rsp: int = STACK, paging_on: bool = True) -> CpuState:
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rflags")
    flat = {name: Segment(0x7B, 0, 0xFFFFFFFF, 0) for name in ("ds", "es", "gs", "ldt", "tr")}
    return CpuState(
        cpu=number,
        general={**dict.fromkeys(names, 0), "rip": rip, "rsp": rsp},
        cr0=0x80000033 if paging_on else 0x33,
        cr2=0,
        cr3=PGD if paging_on else 0,
        cr4=0x10,
        efer=0,
        gdt_base=0,
        gdt_limit=0,
        idt_base=0,
        idt_limit=0,
        segments={
            **flat,
            "cs": Segment(0x60, 0, 0xFFFFFFFF, 0),
            "ss": Segment(0x68, 0, 0xFFFFFFFF, 0),
            "fs": Segment(0xD8, 0, 0xFFFFFFFF, 0),
        },
    )


@dataclass
class Machine:
    """What the forged evidence will say. Change it, then `write`.

    base: pages at `panic` (pfn -> bytes). later: pages that differ, per checkpoint.
    """

    base: dict[int, bytes] = field(default_factory=lambda: {PGD // PAGE_SIZE: pgd_page()})
    later: dict[Checkpoint, dict[int, bytes]] = field(default_factory=lambda: {c: {} for c in SEEN[1:]})
    dumped_pgd: bytes = field(default_factory=pgd_page)
    headers: bytes = field(default_factory=lambda: vmcore_i386([(PANIC_RIP + 0x80, STACK - 0x60), (0xC0030000, 0)]))
    filtered_headers: bytes = b""  # of makedumpfile's
    dumped: dict[int, bytes] = field(default_factory=dict)  # physical address -> what the whole dump has there instead
    arrived: int | None = None  # bytes of the whole dump; None: all
    keep: int = 100  # pieces of the dump that are kept
    symbols: tuple[Symbol, ...] = ()
    trace: str = ""  # of the hand-over, as QEMU logs it
    cpus: Mapping[str, tuple[CpuState, ...]] = field(
        default_factory=lambda: {
            **dict.fromkeys(SEEN[:2], (cpu(0), cpu(1, rip=0xC0030000))),
            **dict.fromkeys(SEEN[2:], (cpu(0, paging_on=False), cpu(1, rip=0xC0030000))),
        }
    )
    facts: Facts = field(
        default_factory=lambda: Facts(
            rig="forged",
            plan=RunPlan(scenario(), GUEST, KERNEL, KERNEL),
            kernel=IDENTITY,
            crash_kernel=IDENTITY,
            ram=((0, 0xA0000, 0), (0xC0000, RAM - 0xC0000, 0xC0000)),
            iomem=(Range(0xC0000, 0xFFFFF, "Kernel code"), Range(0x100000, 0x2FFFFF, "Kernel data"), CRASH),
            crash_region=CRASH,
            crash_notes=NOTES,
            crashing_cpu=0,
            panic_symbol="__crash_kexec",
            mode=PagingMode.TWO_LEVEL,
            cr3=PGD | 0x18,  # PCD and PWT set: no address bits
            kimage=Kimage(0xC1000000, 0x900000, "forged"),
            tables=(PGD,),
            crash_cmdline="panic=-1 maxcpus=1",
            crash_proc_cmdline="panic=-1 maxcpus=1 elfcorehdr=0x1efff000",
            crash_release="6.1.0-forged",
            crash_seconds=6.5,
            vmcore_present=True,
            dump=DumpInfo("ssh", PGD),
            captured=SEEN,
        )
    )

    def change(self, checkpoint: Checkpoint, address: int, blob: bytes) -> None:
        """Memory at a physical address has other bytes from `checkpoint` on."""
        pfn, offset = divmod(address, PAGE_SIZE)
        self.base.setdefault(pfn, bytes(PAGE_SIZE))
        for later in SEEN[SEEN.index(checkpoint) :]:
            page = self.later[later].get(pfn, self.base[pfn])
            self.later[later][pfn] = page[:offset] + blob + page[offset + len(blob) :]

    def learn(self, **news: Any) -> None:
        self.facts = replace(self.facts, **news)

    def expect(self, **changes: Any) -> None:
        """Change the scenario."""
        self.learn(plan=replace(self.facts.plan, scenario=scenario(**changes)))

    def damage(self, *words: tuple[int, int, int, int]) -> None:
        """What a sabotage says: (address, size, before, after)."""
        self.learn(damage=tuple(Damage(*w) for w in words))

    def write(self, results: Path) -> Evidence:
        writer = EvidenceWriter(results, self.facts.plan.slug)
        hashes = np.full(RAM // PAGE_SIZE, xxhash.xxh3_64_intdigest(bytes(PAGE_SIZE)), dtype="<u8")
        for pfn, page in self.base.items():
            hashes[pfn] = xxhash.xxh3_64_intdigest(page)
        if self.facts.dump is not None and self.facts.dump.transfer is not None:
            self._write_dump(writer, hashes)
        writer.write_hashes(hashes)
        writer.write_pages(Checkpoint.PANIC, self.base)
        for checkpoint, pages in self.later.items():
            if checkpoint in self.facts.captured:
                writer.write_pages(checkpoint, pages)
        if self.facts.post_mortem:
            writer.write_pages(DIED, self.later[Checkpoint.HANDOVER])
        for moment, cpus in self.cpus.items():
            writer.write_registers(moment, cpus)
        writer.write("vmcore/headers.bin", self.headers)
        writer.write("vmcore/pgd.bin", self.dumped_pgd)
        if self.trace:
            writer.write_trace(self.trace)
        if self.symbols:
            writer.write_symbols(self.symbols)
        writer.write("console.log", b"forged\n")
        writer.write("run.json", to_json(self.facts))
        return Evidence(writer.finish())

    def _write_dump(self, writer: EvidenceWriter, hashes: Words) -> None:
        """The whole dump: memory at `panic` as the dump's headers place it, with what it has instead."""
        loads = parse_headers(self.filtered_headers or self.headers).loads
        pieces = cut(loads)
        found = DumpHashes(pieces, hashes_at(pieces.address, hashes, self.facts.ram), self.keep)
        file = bytearray(max(load.offset + load.size for load in loads))
        memory = {pfn * PAGE_SIZE: page for pfn, page in self.base.items()}
        for load in loads:
            for address, blob in (memory | self.dumped).items():
                if load.physical <= address < load.physical + load.size:
                    at = load.offset + address - load.physical
                    file[at : at + len(blob)] = blob
        found.feed(bytes(file[: self.arrived]))
        for page in found.kept_pages:
            self.base.setdefault(page // PAGE_SIZE, bytes(PAGE_SIZE))
        writer.write_dump(found.hashes, found.kept)
        if self.filtered_headers:
            writer.write(FILTERED_HEADERS, self.filtered_headers)
