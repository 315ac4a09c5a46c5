"""What /proc/vmcore says about the CPUs, and whether it is the memory of the kernel that died."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from rig.checks.hypervisor import hypervisor_registers
from rig.checks.ledger import UNTOLD, claims, slab_claims
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.kernel import ages
from rig.memory.diff import changed_ranges
from rig.memory.dump import Pieces, cut
from rig.memory.ledger import UNACCOUNTED, Change, Claim, account, divide, split
from rig.memory.physical import OutsideMemory
from rig.model import CRASH_KERNEL, MACHINE_KEXEC, PAGE_SIZE, Checkpoint, CheckResult, Dump, Verdict

# How far below the stack pointer at the first instruction of __crash_kexec its own frame may reach. The registers are
# saved by inline assembly in that very function (arch/x86/include/asm/kexec.h, crash_setup_regs), which keeps a
# struct pt_regs on its stack.
FRAME = 1024
# How far behind the function's first instruction the saved RIP may lie.
FUNCTION = 4096


def vmcore_registers(evidence: Evidence) -> CheckResult:
    """The crashing CPU's note must place it inside the function that `panic` was taken in, on the same stack, in the
    same segments. With 32-bit guests the selectors are compared by their low 16 bits. A dump that makedumpfile made
    must have the notes of /proc/vmcore.

    After an exception it must instead be the exception's registers, each of them, as they were in memory at `panic`.
    Under a hypervisor the notes are its own: see hypervisor_registers().
    """
    facts = evidence.facts
    if facts.dump is None:
        raise EvidenceError("no headers of /proc/vmcore were fetched")
    if facts.hypervisor is not None:
        return hypervisor_registers(evidence)
    if facts.panic_symbol == MACHINE_KEXEC:
        raise EvidenceError(f"`panic` was taken at {MACHINE_KEXEC}, when the registers had been saved already")
    notes = evidence.vmcore.prstatus
    cpus = evidence.cpus(Checkpoint.PANIC)
    seen = evidence.crashing_cpu(Checkpoint.PANIC)
    figures: dict[str, Any] = {"cpus": len(notes), "machine_cpus": len(cpus), "crashing_cpu": seen.cpu}
    problems: list[str] = []
    if len(notes) != len(cpus):
        problems.append(f"{len(notes)} notes for {len(cpus)} CPUs")
    if facts.dump.transfer is not None and evidence.dump.prstatus != notes:
        problems.append("the dump that makedumpfile made has other notes than /proc/vmcore")
    if facts.exception:
        return _exception_note(evidence, figures, problems)
    rip, rsp = seen.general["rip"], seen.general["rsp"]
    fitting = [n for n in notes if 0 <= n.general["rip"] - rip < FUNCTION and 0 <= rsp - n.general["rsp"] < FRAME]
    if len(fitting) != 1:
        told = ", ".join(f"rip {n.general['rip']:#x} rsp {n.general['rsp']:#x}" for n in notes)
        problems.append(
            f"{len(fitting)} notes place a CPU in {facts.panic_symbol} (from {rip:#x}), stack at {rsp:#x}: {told}"
        )
    for note in fitting:
        figures |= {
            "rip_offset": note.general["rip"] - rip,
            "rsp_offset": rsp - note.general["rsp"],
            "registers": {name: [seen.general[name], value] for name, value in sorted(note.general.items())},
        }
        for name in ("cs", "ss"):
            selector = note.selectors[name] & 0xFFFF
            if selector != seen.segments[name].selector:
                problems.append(f"{name} is {selector:#x} in the note, was {seen.segments[name].selector:#x}")
    if problems:
        return CheckResult("vmcore-registers", Verdict.FAIL, "; ".join(problems), figures)
    summary = (
        f"{len(notes)} notes for {len(cpus)} CPUs; CPU {seen.cpu} is at {facts.panic_symbol}"
        f"+{figures['rip_offset']:#x}, {figures['rsp_offset']} bytes below the stack pointer seen at panic"
    )
    return CheckResult("vmcore-registers", Verdict.PASS, summary, figures)


def _exception_note(evidence: Evidence, figures: dict[str, Any], problems: list[str]) -> CheckResult:
    """figures, problems: what is known before the notes are looked into; added to."""
    registers, notes = evidence.facts.exception, evidence.vmcore.prstatus
    general = {name: value for name, value in registers.items() if notes and name in notes[0].general}
    segments = [name for name in ("cs", "ss") if name in registers]
    fitting = [
        note
        for note in notes
        if all(note.general[name] == value for name, value in general.items())
        and all((note.selectors[name] ^ registers[name]) & 0xFFFF == 0 for name in segments)
    ]
    figures["exception"] = dict(sorted(registers.items()))
    where = f"rip {registers['rip']:#x} rsp {registers['rsp']:#x}"
    if len(fitting) != 1:
        told = ", ".join(f"rip {n.general['rip']:#x} rsp {n.general['rsp']:#x}" for n in notes)
        problems.append(f"{len(fitting)} notes have the registers of the exception, {where}: {told}")
    if problems:
        return CheckResult("vmcore-registers", Verdict.FAIL, "; ".join(problems), figures)
    summary = f"{len(notes)} notes for {figures['machine_cpus']} CPUs; one has the registers of the exception, {where}"
    return CheckResult("vmcore-registers", Verdict.PASS, summary, figures)


@dataclass(frozen=True)
class _Differences:
    """ranges: (physical address, length) of bytes that differ, ascending, each byte once. unseen: physical addresses
    of pages that differ, but were not kept."""

    ranges: tuple[tuple[int, int], ...]
    unseen: tuple[int, ...]


def vmcore_faithful(evidence: Evidence) -> CheckResult:
    """Every byte of the whole dump against memory at `panic`. A byte that differs must have an owner: the dying kernel
    wrote it on its way. The first 640 KiB are no exception: the crash kernel was given them, but the dump reads them
    from the copy that purgatory made. Figures count memory, once: where the dump has a page twice, both copies are
    compared. Of a raw dump, all System RAM outside the crash region must be there; of a filtered one what is missing is
    only counted.
    """
    pieces = _arrived(evidence)
    found = _differences(evidence, pieces)
    changes = [Change("panic -> dump", address, length) for address, length in found.ranges]
    owners = account(divide(changes, (*claims(evidence), *slab_claims(evidence))))
    stray = [entry for entry in owners if entry.owner == UNACCOUNTED]
    absent = _absent(evidence)
    raw = evidence.facts.plan.scenario.dump is Dump.RAW
    figures = _figures(evidence, pieces, found) | {
        "owners": [asdict(entry) for entry in owners],
        "unaccounted": sum(entry.bytes for entry in stray),
        "kexec_cost_bytes": sum(entry.bytes for entry in owners if entry.owner != UNACCOUNTED),
        "pages_missing" if raw else "pages_excluded": _pages(absent),
    }
    problems = []
    if stray and ages.older(evidence.facts.kernel.release, ages.PER_CPU_TOLD):
        raise EvidenceError(f"{figures['unaccounted']} bytes differ; whose they are is not known, since {UNTOLD}")
    if stray:
        where = ", ".join(address for entry in stray for address in entry.addresses)
        problems.append(f"{figures['unaccounted']} bytes differ from memory at panic and have no owner: at {where}")
    if raw and absent:
        where = ", ".join(f"{a:#x}-{a + n - 1:#x}" for a, n in absent[:6])
        problems.append(f"{_pages(absent)} pages of System RAM are not in it: {where}")
    if problems:
        return CheckResult("vmcore-faithful", Verdict.FAIL, "; ".join(problems), figures)
    if found.unseen:
        raise EvidenceError(f"{len(found.unseen)} pages of the dump differ, but only the first ones that do were kept")
    summary = (
        f"{figures['pages_compared']} pages are as they were at panic, but for {figures['kexec_cost_bytes']} bytes,"
        f" all with an owner: that is what kexec cost"
    )
    return CheckResult("vmcore-faithful", Verdict.PASS, summary, figures)


def _arrived(evidence: Evidence) -> Pieces:
    """The pieces of the dump. EvidenceError when it was not taken whole, or did not arrive whole."""
    info = evidence.facts.dump
    if evidence.facts.plan.scenario.dump is Dump.HEADERS:
        raise EvidenceError(
            'the scenario takes only the headers of the dump: it must say dump = "raw" or "makedumpfile"'
        )
    if info is None or info.transfer is None:
        raise EvidenceError("the dump was not taken" + (f": no SSH ({info.note})" if info and info.note else ""))
    pieces = cut(evidence.dump.loads)
    if len(evidence.dump_hashes) != len(pieces):
        raise EvidenceError(f"the dump's headers promise {len(pieces)} pages, {len(evidence.dump_hashes)} arrived")
    if not len(pieces):
        raise EvidenceError("the dump holds no memory at all")
    return pieces


def _differences(evidence: Evidence, pieces: Pieces) -> _Differences:
    """What of the dump is not as it was at `panic`."""
    hashes, kept = evidence.dump_hashes, evidence.dump_pages
    differs = ~pieces.whole | (hashes != evidence.hashes_at_panic(pieces.address))
    memory = evidence.memory(Checkpoint.PANIC)
    marks: dict[int, NDArray[np.bool_]] = defaultdict(lambda: np.zeros(PAGE_SIZE, np.bool_))
    unseen = []
    for number in np.flatnonzero(differs).tolist():
        address, size = int(pieces.address[number]), int(pieces.size[number])
        if number not in kept:
            unseen.append(address)
            continue
        dumped = kept[number][:size]
        if xxhash.xxh3_64_intdigest(dumped) != int(hashes[number]):
            raise EvidenceError(f"piece {number} of the dump (at {address:#x}) does not match its hash")
        try:
            before = memory.read(address, size)
        except OutsideMemory as problem:
            raise EvidenceError(f"the page at {address:#x} differs in the dump, but was not kept at panic") from problem
        page, at = divmod(address, PAGE_SIZE)
        for offset, length in changed_ranges(before, dumped):
            marks[page][at + offset : at + offset + length] = True
    ranges = [
        (page * PAGE_SIZE + offset, length)
        for page, mark in sorted(marks.items())
        for offset, length in changed_ranges(bytes(PAGE_SIZE), mark.tobytes())
    ]
    return _Differences(tuple(ranges), tuple(unseen))


def _figures(evidence: Evidence, pieces: Pieces, found: _Differences) -> dict[str, Any]:
    """How much was compared, how much of it differs, and how it was had. Pages that were not kept differ as a whole."""
    info = evidence.facts.dump
    assert info is not None
    assert info.transfer is not None
    covered = _covered(pieces)
    unseen = {address // PAGE_SIZE for address in found.unseen}
    pages = {address // PAGE_SIZE for address, _ in found.ranges} | unseen
    compared = sum(length for _, length in covered)
    differing = sum(n for a, n in found.ranges if a // PAGE_SIZE not in unseen) + len(unseen) * PAGE_SIZE
    return {
        "kind": str(evidence.facts.plan.scenario.dump),
        "via": info.transfer.via,
        "pages_in_dump": len(pieces),
        "pages_compared": _pages(covered),
        "pages_differing": len(pages),
        "bytes_compared": compared,
        "bytes_differing": differing,
        "fidelity": 1 - differing / compared,
        "transfer": asdict(info.transfer),
    }


def _covered(pieces: Pieces) -> list[tuple[int, int]]:
    """(address, length) of the memory that the dump holds, each byte once, ascending."""
    found: list[tuple[int, int]] = []
    order = np.argsort(pieces.address, kind="stable")
    for address, size in zip(pieces.address[order].tolist(), pieces.size[order].tolist(), strict=True):
        end = address + size
        if found and address <= sum(found[-1]):
            start, length = found[-1]
            found[-1] = (start, max(start + length, end) - start)
        else:
            found.append((address, size))
    return found


def _absent(evidence: Evidence) -> list[tuple[int, int]]:
    """(address, length) of System RAM outside the crash region that the dump has not."""
    facts = evidence.facts
    here = [Claim(load.physical, load.physical + load.size, "in the dump") for load in evidence.dump.loads]
    here += [Claim(r.start, r.last + 1, "crash region") for r in facts.iomem if r.name == CRASH_KERNEL]
    ram = [Change("", r.start, r.size) for r in facts.iomem if r.name == "System RAM"]
    if not ram:
        raise EvidenceError("/proc/iomem named no System RAM: what the dump must hold is not known")
    return sorted((a, n) for each in ram for owner, a, n in split(each, here) if owner == UNACCOUNTED)


def _pages(ranges: list[tuple[int, int]]) -> int:
    """How many pages these (address, length) touch."""
    return len({page for a, n in ranges for page in range(a // PAGE_SIZE, (a + n - 1) // PAGE_SIZE + 1)})
