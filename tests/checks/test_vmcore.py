"""`vmcore-faithful` on forged evidence: a dump of 8 MiB below the crash region, and what can be wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rig.checks import run_check
from rig.evidence import DUMP_PAGES
from rig.facts import DumpInfo, Transfer
from rig.memory.packed import pack_pages
from rig.model import Checkpoint, CheckResult, Dump, Range, Verdict
from tests.forge import CRASH, NOTES, PANIC_RIP, PGD, RAM, STACK, Machine, scenario
from tests.memory.forged_vmcore import vmcore_i386

CPUS = [(PANIC_RIP + 0x80, STACK - 0x60), (0xC0030000, 0)]
LOW = (0x1000, 0x10000, 0x9EC00)  # physical, file offset, size: ends within a page
HIGH = (0x100000, 0xAF000, 0x700000)  # up to the crash region
AGAIN = (0x100000, 0x7AF000, 0x200000)  # the kernel's image, a second time
ABOVE = (0xC00000, 0x9AF000, 0x400000)
IOMEM = (
    Range(0x1000, 0x9FBFF, "System RAM"),
    Range(0xC0000, 0xFFFFF, "Kernel code"),
    Range(0x100000, RAM - 1, "System RAM"),
    Range(0x100000, 0x2FFFFF, "Kernel data", 1),
    replace(CRASH, depth=1),
)
KERNEL_DATA = 0x123456


@pytest.fixture
def machine() -> Machine:
    found = Machine(headers=vmcore_i386(CPUS, [LOW, HIGH, AGAIN, ABOVE]))
    transfer = Transfer("dd if=/proc/vmcore bs=1M", 10 << 20, 1.0, "aes128-ctr hmac-sha2-256 none")
    found.learn(iomem=IOMEM, dump=DumpInfo("ssh", PGD, transfer=transfer))
    found.expect(dump=Dump.RAW, checks=("vmcore-faithful",))
    return found


def judged(machine: Machine, tmp_path: Path) -> CheckResult:
    return run_check("vmcore-faithful", machine.write(tmp_path))


def test_a_faithful_dump(machine: Machine, tmp_path: Path) -> None:
    found = judged(machine, tmp_path)
    pages = 0x9F + 0xF00 - 0x400  # low memory, and the rest without the crash region; the image counts once
    assert found.verdict is Verdict.PASS, found.summary
    assert {name: value for name, value in found.figures.items() if name != "transfer"} == {
        "kind": "raw",
        "via": "ssh",
        "pages_in_dump": pages + 0x200,
        "pages_compared": pages,
        "pages_differing": 0,
        "bytes_compared": pages * 4096 - 0x400,
        "bytes_differing": 0,
        "fidelity": 1.0,
        "owners": [],
        "unaccounted": 0,
        "kexec_cost_bytes": 0,
        "pages_missing": 0,
    }


def test_what_kexec_cost_has_owners_and_is_counted_once(machine: Machine, tmp_path: Path) -> None:
    machine.dumped = {NOTES[1][0] + 4: b"note", KERNEL_DATA: b"\1\0\1"}  # kernel data is in the dump twice
    found = judged(machine, tmp_path)
    assert found.verdict is Verdict.PASS
    assert {e["owner"]: e["bytes"] for e in found.figures["owners"]} == {"crash notes of CPU 1": 4, "kernel .data": 2}
    assert (found.figures["pages_differing"], found.figures["kexec_cost_bytes"]) == (2, 6)
    assert found.figures["fidelity"] == 1 - 6 / found.figures["bytes_compared"]
    assert "but for 6 " in found.summary


@pytest.mark.parametrize("address", [0x700123, 0x9FBFF, 0x9C000])
def test_a_byte_without_owner_fails(machine: Machine, tmp_path: Path, address: int) -> None:
    """Neither is there an excuse for the first 640 KiB, which purgatory saves, nor for their last, partial page."""
    machine.change(Checkpoint.CRASH_KERNEL, 0x9C000, b"trampoline")  # in memory, but not in the dump
    machine.dumped = {address: b"?"}
    found = judged(machine, tmp_path)
    assert (found.verdict, found.figures["unaccounted"], found.figures["kexec_cost_bytes"]) == (Verdict.FAIL, 1, 0)
    assert f"{address:#x}+1" in found.summary


def test_missing_ram_fails_a_raw_dump(machine: Machine, tmp_path: Path) -> None:
    machine.headers = vmcore_i386(CPUS, [LOW, HIGH])
    found = judged(machine, tmp_path)
    assert (found.verdict, found.figures["pages_missing"]) == (Verdict.FAIL, 0x400)
    assert "0xc00000-0xffffff" in found.summary


def test_a_filtered_dump_may_lack_pages_but_not_change_them(machine: Machine, tmp_path: Path) -> None:
    machine.expect(dump=Dump.MAKEDUMPFILE, checks=("vmcore-faithful",))
    machine.filtered_headers = vmcore_i386(CPUS, [(0x100000, 0x1000, 0x3000), (0x700000, 0x4000, 0x1000)])
    found = judged(machine, tmp_path / "whole")
    assert found.verdict is Verdict.PASS
    assert (found.figures["pages_compared"], found.figures["pages_excluded"]) == (4, 0x9F + 0xF00 - 0x400 - 4)
    machine.dumped = {0x700000: b"?"}
    assert judged(machine, tmp_path / "changed").verdict is Verdict.FAIL


def test_a_filtered_dump_must_have_the_notes_of_the_vmcore(machine: Machine, tmp_path: Path) -> None:
    machine.expect(dump=Dump.MAKEDUMPFILE, checks=("vmcore-registers",))
    machine.filtered_headers = vmcore_i386(CPUS, [(0x100000, 0x1000, 0x3000)])
    assert run_check("vmcore-registers", machine.write(tmp_path / "same")).verdict is Verdict.PASS
    machine.filtered_headers = vmcore_i386([CPUS[0], (0xC0030004, 0)], [(0x100000, 0x1000, 0x3000)])
    found = run_check("vmcore-registers", machine.write(tmp_path / "other"))
    assert (found.verdict, "other notes than /proc/vmcore" in found.summary) == (Verdict.FAIL, True)


@pytest.mark.parametrize(
    ("news", "words"),
    [
        ({"arrived": 0x500000}, "promise 3487 pages, 1264 arrived"),
        ({"keep": 2, "dumped": {KERNEL_DATA: b"x", 0x234567: b"x"}}, "only the first ones that do were kept"),
        ({"headers": vmcore_i386(CPUS, [(RAM, 0x10000, 0)])}, "no memory at all"),
    ],
)
def test_a_dump_that_is_not_whole_could_not_be_judged(
    machine: Machine, tmp_path: Path, news: dict[str, Any], words: str
) -> None:
    for name, value in news.items():
        setattr(machine, name, value)
    found = judged(machine, tmp_path)
    assert (found.verdict, words in found.summary) == (Verdict.ERROR, True), found.summary


def test_stray_bytes_fail_even_if_not_all_was_kept(machine: Machine, tmp_path: Path) -> None:
    machine.keep = 2
    machine.dumped = {0x400000: b"x", 0x500000: b"x"}
    found = judged(machine, tmp_path)
    assert (found.verdict, found.figures["pages_differing"]) == (Verdict.FAIL, 2)
    assert found.figures["bytes_differing"] == 1 + 4096  # of the page that was not kept, nothing is known to be whole


def test_no_whole_dump_no_verdict(machine: Machine, tmp_path: Path) -> None:
    machine.learn(dump=DumpInfo("console", PGD, "no:no-eth0"))
    found = judged(machine, tmp_path / "console")
    assert (found.verdict, "no SSH (no:no-eth0)" in found.summary) == (Verdict.ERROR, True)
    machine.learn(plan=replace(machine.facts.plan, scenario=scenario(checks=("vmcore-faithful",))))
    found = judged(machine, tmp_path / "headers")
    assert (found.verdict, "takes only the headers" in found.summary) == (Verdict.ERROR, True)


def test_torn_evidence_could_not_be_judged(machine: Machine, tmp_path: Path) -> None:
    machine.dumped = {KERNEL_DATA: b"x"}
    evidence = machine.write(tmp_path)
    number = next(n for n, page in evidence.dump_pages.items() if any(page))
    (evidence.path / DUMP_PAGES).write_bytes(pack_pages({**evidence.dump_pages, number: bytes(4096)}))
    found = run_check("vmcore-faithful", type(evidence)(evidence.path))
    assert (found.verdict, "does not match its hash" in found.summary) == (Verdict.ERROR, True)
