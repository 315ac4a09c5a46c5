"""What a plain kexec copied, against what was loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash

from rig.checks import run_check
from rig.evidence import IMAGE, Copied
from rig.evidence.reader import Evidence
from rig.evidence.writer import EvidenceWriter, to_json
from rig.facts import Kimage
from rig.kernel.pagelist import NOWHERE
from rig.memory.packed import pack_hashes
from rig.model import PAGE_SIZE, Checkpoint, Verdict
from tests.forge import RAM, Machine

SOURCES, DESTINATIONS = (0x300000, 0x700000), (0x900000, 0x901000)
PAGES = (b"\x11" * PAGE_SIZE, b"\x22" * PAGE_SIZE)
ZEROES = bytes(PAGE_SIZE)


def evidence(
    tmp_path: Path, arrived: tuple[bytes, bytes], loaded: tuple[bytes, bytes] = PAGES, **facts: object
) -> Evidence:
    """Two pages of an image as they were loaded, at their sources at `machine-kexec`, one of zeroes nowhere; at their
    destinations at `handover`, as they are kept: the hash of each, and the page itself where it is not the source's.
    """
    machine = Machine()
    machine.learn(
        captured=(Checkpoint.MACHINE_KEXEC, Checkpoint.HANDOVER),
        kimage=Kimage(0, DESTINATIONS[0], "forged", segments=((DESTINATIONS[0], 3 * PAGE_SIZE),)),
    )
    machine.learn(**facts)
    writer = EvidenceWriter(tmp_path, "plain")
    hashes = np.full(RAM // PAGE_SIZE, xxhash.xxh3_64_intdigest(bytes(PAGE_SIZE)), np.uint64)
    sources = [NOWHERE if page == ZEROES else source for source, page in zip(SOURCES, loaded, strict=True)]
    for source, page in zip(SOURCES, loaded, strict=True):
        hashes[source // PAGE_SIZE] = xxhash.xxh3_64_intdigest(page)
    there = np.array([xxhash.xxh3_64_intdigest(page) for page in arrived], np.uint64)
    writer.write_hashes(hashes, Checkpoint.MACHINE_KEXEC)
    writer.write_image(Copied(np.array(DESTINATIONS, np.uint64), np.array(sources, np.uint64), there))
    torn = [n for n in range(2) if arrived[n] != loaded[n]]
    kept = {SOURCES[n] // PAGE_SIZE: loaded[n] for n in torn if sources[n] != NOWHERE}
    writer.write_pages(Checkpoint.MACHINE_KEXEC, kept)
    writer.write_pages(Checkpoint.HANDOVER, {DESTINATIONS[n] // PAGE_SIZE: arrived[n] for n in torn})
    writer.write("run.json", to_json(machine.facts))
    return Evidence(writer.finish())


def test_pages_that_arrived_pass_and_those_in_place_are_counted(tmp_path: Path) -> None:
    result = run_check("image-copied", evidence(tmp_path, PAGES))
    assert result.verdict is Verdict.PASS
    assert (result.figures["pages"], result.figures["in_place"]) == (2, 1)


def test_a_changed_byte_is_named_by_its_page(tmp_path: Path) -> None:
    torn = PAGES[1][:7] + b"\x23\x24" + PAGES[1][9:]
    result = run_check("image-copied", evidence(tmp_path, (PAGES[0], torn)))
    assert (result.verdict, result.figures["bytes_differing"]) == (Verdict.FAIL, 2)
    assert result.figures["differing"] == [
        {"source": SOURCES[1], "destination": DESTINATIONS[1], "bytes": 2, "first": 7}
    ]


def test_a_page_that_should_be_zeroes_is_looked_at_too(tmp_path: Path) -> None:
    loaded = (PAGES[0], ZEROES)
    whole = run_check("image-copied", evidence(tmp_path / "whole", loaded, loaded))
    assert (whole.verdict, whole.figures["zeroed"]) == (Verdict.PASS, 1)
    torn = run_check("image-copied", evidence(tmp_path / "torn", (PAGES[0], b"\x01" + ZEROES[1:]), loaded))
    assert torn.verdict is Verdict.FAIL
    assert torn.figures["differing"] == [{"source": None, "destination": DESTINATIONS[1], "bytes": 1, "first": 0}]


def test_pages_that_were_mixed_up_fail(tmp_path: Path) -> None:
    result = run_check("image-copied", evidence(tmp_path, (PAGES[1], PAGES[0])))
    assert (result.verdict, result.figures["pages_differing"]) == (Verdict.FAIL, 2)


def test_an_image_that_was_never_entered_is_not_judged(tmp_path: Path) -> None:
    found = evidence(tmp_path, PAGES, captured=(Checkpoint.MACHINE_KEXEC,))
    assert run_check("image-copied", found).verdict is Verdict.ERROR


def test_a_torn_file_is_not_judged(tmp_path: Path) -> None:
    found = evidence(tmp_path, PAGES)
    (found.path / IMAGE).write_bytes(pack_hashes(np.zeros(5, np.uint64)))
    assert run_check("image-copied", found).verdict is Verdict.ERROR
