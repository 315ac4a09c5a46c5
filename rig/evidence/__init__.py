"""The seam between a live run and its judgement: what an evidence directory holds. Only rig.evidence.writer writes one,
and only rig.evidence.reader reads it.

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

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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

# Not a checkpoint: the guest died between `machine-kexec` and `handover`, and QEMU has kept it as it was.
DIED = "died"


@dataclass(frozen=True)
class Copied:
    """The pages of a plain kexec's image, in the order of copying. hashes: xxh3_64 of destinations at `handover`."""

    destinations: npt.NDArray[np.uint64]  # physical addresses
    sources: npt.NDArray[np.uint64]
    hashes: npt.NDArray[np.uint64]
