"""The page that CR3 points to, at every checkpoint and in the dump."""

from __future__ import annotations

from typing import Any

from rig.checks import check
from rig.checks.writers import writer
from rig.errors import EvidenceError
from rig.evidence import Evidence
from rig.memory import levels, paging
from rig.memory.diff import bytes_changed, changed_ranges
from rig.memory.physical import OutsideMemory
from rig.model import PAGE_SIZE, Checkpoint, CheckResult, PagingMode, Verdict

AFTER = (Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER, Checkpoint.CRASH_KERNEL)
DUMP = "vmcore"  # where the figures say that the page was seen in the dump


def _page(evidence: Evidence, checkpoint: Checkpoint, address: int) -> bytes:
    try:
        return evidence.memory(checkpoint).read(address, PAGE_SIZE)
    except OutsideMemory as problem:
        raise EvidenceError(f"the pgd's page {address:#x} was not kept at {checkpoint}") from problem


@check(
    "pgd-survives", "the page that CR3 points to is byte-identical from the panic to the crash kernel, and in its dump"
)
def pgd_survives(evidence: Evidence) -> CheckResult:
    """Compare the pgd's page at `panic` with every later checkpoint and with the dump.

    Accessed and dirty bits that the CPU sets by itself are counted apart and don't fail it (SDM vol. 3, 4.8). With PAE
    the 32 bytes of the PDPT give the entries; the page around them counts as well.

    When it changed, `writer` says which instruction wrote it last, or why none can be named.

    A page that was seen to change is a failure even if a later checkpoint was never reached; "unchanged" takes all
    of them.
    """
    facts = evidence.facts
    if facts.cr3 is None or facts.mode is None:
        raise EvidenceError("`panic` was never reached: there is no pgd to compare")
    if facts.mode is not facts.plan.guest.paging:
        raise EvidenceError(
            f"the guest ran in {facts.mode} paging, not {facts.plan.guest.paging}: not the machine asked for"
        )
    root = levels.root(facts.mode, facts.cr3)
    address, inside = root & ~(PAGE_SIZE - 1), root & (PAGE_SIZE - 1)
    size = levels.root_size(facts.mode)
    before = _page(evidence, Checkpoint.PANIC, address)

    afters: list[tuple[str, bytes]] = [(str(c), _page(evidence, c, address)) for c in AFTER if c in facts.captured]
    if facts.dump is not None:
        if facts.dump.physical != address:
            raise EvidenceError(
                f"the page fetched from the dump is {facts.dump.physical:#x}, the pgd's is {address:#x}"
            )
        afters.append((DUMP, evidence.dumped_pgd))
    worst_changed = worst_ad = 0
    compared: list[dict[str, Any]] = []
    entries: dict[tuple[int, int, int], str] = {}  # -> where it was first seen
    for where, after in afters:
        if len(after) != PAGE_SIZE:
            raise EvidenceError(f"the pgd's page at {where} has {len(after)} bytes, not {PAGE_SIZE}")
        changes = paging.entry_changes(facts.mode, before[inside : inside + size], after[inside : inside + size])
        # outside the root's own bytes (PAE) there is nothing the CPU would set a bit in
        around = bytes_changed(before[:inside], after[:inside]) + bytes_changed(
            before[inside + size :], after[inside + size :]
        )
        changed = changes.bytes_changed + around
        compared.append({"checkpoint": where, "bytes_changed": changed, "ad_bits": changes.ad_bits})
        worst_changed, worst_ad = max(worst_changed, changed), max(worst_ad, changes.ad_bits)
        for entry in changes.changed:
            entries.setdefault((entry.index, entry.before, entry.after), where)

    figures: dict[str, Any] = {
        "mode": str(facts.mode),
        "cr3": facts.cr3,
        "root": root,
        "bytes_compared": PAGE_SIZE,
        "bytes_changed": worst_changed,
        "ad_bits": worst_ad,
        "entries_changed": [
            {"index": index, "before": old, "after": new, "checkpoint": where}
            for (index, old, new), where in sorted(entries.items())
        ],
        "compared": compared,
    }
    if facts.dump is not None:
        figures["vmcore"] = {
            "physical": facts.dump.physical,
            "bytes_changed": compared[-1]["bytes_changed"],
            "via": facts.dump.via,
        }
    name = "PDPT" if facts.mode is PagingMode.PAE else "pgd"
    if worst_changed:
        first, changed_page = next(seen for seen, c in zip(afters, compared, strict=True) if c["bytes_changed"])
        ranges = [(address + at, address + at + n) for at, n in changed_ranges(before, changed_page)]
        figures["writer"], figures["writers"] = writer(evidence, None if first == DUMP else Checkpoint(first), ranges)
        indices = _ranges(sorted({index for index, _, _ in entries}))
        what = f"entries {indices}" if entries else "bytes around the PDPT"
        summary = (
            f"{name} at {root:#x} was overwritten: {worst_changed} of {PAGE_SIZE} bytes, {what}, first seen at {first}"
        )
        return CheckResult("pgd-survives", Verdict.FAIL, summary, figures)
    missing = [str(c) for c in AFTER if c not in facts.captured] + ([DUMP] if facts.dump is None else [])
    if missing:
        summary = f"{name} at {root:#x}: unchanged so far, but it was never seen at {', '.join(missing)}"
        return CheckResult("pgd-survives", Verdict.ERROR, summary, figures)
    summary = f"{name} at {root:#x}: 0 of {PAGE_SIZE} bytes changed from panic to crash kernel, nor in its dump"
    return CheckResult("pgd-survives", Verdict.PASS, summary, figures)


def _ranges(indices: list[int]) -> str:
    """[0, 1, 2, 7] -> "[0..2], [7]"."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(f"[{low}]" if low == high else f"[{low}..{high}]" for low, high in spans)
