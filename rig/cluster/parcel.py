"""What goes to a worker with a cell, and what comes back: the client's side of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rig import ingredients
from rig.cluster import archive
from rig.errors import EvidenceError
from rig.evidence.reader import Evidence
from rig.evidence.writer import EvidenceWriter
from rig.facts import Manifest, files
from rig.model import RunPlan
from rig.pool import Finished

MADE_OF = "its cache holds files that have changed: remove the directory `cluster` in it, while no worker runs there"


@dataclass(frozen=True)
class Parcel:
    """A cell's ingredients. files: by hash, where they lie on this machine."""

    manifest: Manifest
    files: Mapping[str, Path]


Gather = Callable[[RunPlan, Callable[[str], None]], Parcel]


def gathered(manifest: Manifest, root: Path) -> Parcel:
    """root: of this machine's cache, which the manifest is of."""
    paths = zip(files(manifest.ingredients), files(ingredients.find(manifest, root)), strict=True)
    return Parcel(manifest, {manifest.sha256[str(portable)]: path for portable, path in paths})


def place(blob: bytes, plan: RunPlan, manifest: Manifest, results: Path) -> Finished:
    """A worker's packed evidence as one more directory of the results.

    :raise EvidenceError: it is no whole evidence of this cell made of these files; then nothing is left
    """
    writer = EvidenceWriter(results, plan.slug)
    try:
        archive.unpack(blob, writer.path)
        evidence = Evidence(writer.path)
        facts, result = evidence.facts, evidence.result
        if facts.plan != plan or result.id != plan.id:
            raise EvidenceError(f"the evidence that came is not of {plan.id} as it was planned, but of {result.id}")
        if facts.manifest is not None and facts.manifest.sha256 != manifest.sha256:
            raise EvidenceError("the worker ran other files than those it was sent", hint=MADE_OF)
        return result, writer.finish()
    except BaseException:
        writer.discard()
        raise
