"""The image that a plain kexec puts together: is each page where it belongs, as it was loaded?"""

from __future__ import annotations

from typing import Any

import numpy as np

from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.kernel.pagelist import NOWHERE, wanted_hashes
from rig.memory.physical import OutsideMemory
from rig.model import PAGE_SIZE, Checkpoint, CheckResult, Verdict

NAME = "image-copied"
SHOWN = 16  # pages in figures


def image_copied(evidence: Evidence) -> CheckResult:
    """Each destination at `handover` against its source at `machine-kexec`, by the list that kimage->head leads to.

    By their hashes; of pages that differ, byte by byte. Pages of segments that are not in the list are in place from
    the start, and counted.
    """
    if Checkpoint.HANDOVER not in evidence.facts.captured:
        raise EvidenceError("the new image was never entered")
    copied = evidence.copied
    if not len(copied.destinations):
        raise EvidenceError("the image's list of pages is empty: nothing was copied")
    wanted = wanted_hashes(copied.sources, evidence.hashes_at_panic)
    differs = np.flatnonzero(wanted != copied.hashes).tolist()
    rows = [_row(evidence, int(copied.sources[n]), int(copied.destinations[n])) for n in differs]
    image = evidence.facts.kimage
    listed = len(np.unique(copied.destinations))
    total = sum(size for _, size in image.segments) // PAGE_SIZE if image else listed
    figures: dict[str, Any] = {
        "pages": len(copied.destinations),
        "in_place": total - listed,
        "pages_differing": len(rows),
        "bytes_differing": sum(row["bytes"] for row in rows),
        "differing": rows[:SHOWN],
    }
    if rows:
        told = ", ".join(f"{row['destination']:#x} ({row['bytes']} bytes)" for row in rows[:4])
        summary = f"{len(rows)} of {len(copied.destinations)} pages differ from what was loaded: {told}"
        return CheckResult(NAME, Verdict.FAIL, summary, figures)
    zeroed = int(np.count_nonzero(copied.sources == NOWHERE))
    figures["zeroed"] = zeroed
    filled = f", {zeroed} filled with zeroes" if zeroed else ""
    summary = f"{len(copied.destinations) - zeroed} pages copied{filled}, all as they were loaded"
    return CheckResult(NAME, Verdict.PASS, summary, figures)


def _row(evidence: Evidence, source: int, destination: int) -> dict[str, int | None]:
    try:
        before = bytes(PAGE_SIZE) if source == NOWHERE else evidence.memory(evidence.base).read(source, PAGE_SIZE)
        after = evidence.memory(Checkpoint.HANDOVER).read(destination, PAGE_SIZE)
    except OutsideMemory as problem:
        raise EvidenceError(f"a page of the image was not kept: {problem}") from problem
    changed = [at for at in range(PAGE_SIZE) if before[at] != after[at]]
    if not changed:
        raise EvidenceError(f"the hash of the page at {destination:#x} differs from its source's, but no byte does")
    return {
        "source": None if source == NOWHERE else source,
        "destination": destination,
        "bytes": len(changed),
        "first": changed[0],
    }
