"""The sections of a run's page, from forged evidence: what they say, and what they say when something is missing."""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rig.checks import ledger
from rig.errors import EvidenceError
from rig.facts import Facts, Kimage
from rig.judge import judge
from rig.model import Checkpoint, Phase, RunResult, Verdict
from rig.report.html import render_run
from rig.report.html.changes import changes
from rig.report.html.commands import commands
from rig.report.html.console import console
from rig.report.html.handover import hand_over
from rig.report.html.memory import Axis, memory_map
from rig.report.html.page import Sources
from rig.report.html.pages import LINES_EACH, pages
from rig.report.html.picture import flag_names, picture
from rig.report.html.registers import register_tables
from rig.report.html.view import build_page
from rig.report.listing import ChangeRow, Listing
from tests.forge import PGD, Machine
from tests.report import forge

DATA = 0x100100  # physical, in the kernel's data
NONE = Sources([])


@pytest.fixture
def machine() -> Machine:
    return Machine()


# ---------------------------------------------------------------- the page directory


def test_the_picture_tells_changed_entries_from_bits_that_the_cpu_set(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.HANDOVER, PGD + 4 * 5, (0x00AB_C067).to_bytes(4, "little"))
    machine.change(Checkpoint.HANDOVER, PGD + 4 * 768, b"\xa3")  # accessed
    drawn = picture(machine.write(tmp_path))
    assert drawn is not None
    kinds = {cell.index: cell.kind for row in drawn.rows for cell in row.cells if cell.kind != "absent"}
    assert kinds == {0: "kernel large", 5: "changed", 768: "touched"}
    assert [len(row.cells) for row in drawn.rows] == [32] * 32
    assert drawn.summary == "1024 PDEs, 2 present: 1 changed, 1 got an accessed or dirty bit from the CPU"
    entries = {row.index: row for row in drawn.entries}
    assert entries[5].after == ["at handover: 0x00abc067 P RW US A D", "at vmcore: 0x00000000 not present"]
    assert entries[768].virtual == "0xc0000000–0xc03fffff"
    assert (entries[768].leads_to, entries[768].maps) == ("4 MiB page at 0x0", "4 MiB in 1 page")


def test_a_pgd_that_was_not_kept_is_no_picture(machine: Machine, tmp_path: Path) -> None:
    machine.base = {9: bytes(4096)}
    with pytest.raises(EvidenceError, match=r"0x5000 was not kept at panic"):
        picture(machine.write(tmp_path))


def test_flags_by_name() -> None:
    assert flag_names(1 << 63 | 0x1E7) == "P RW US A D PS G NX"
    assert flag_names(0x1E6) == "not present"


# ---------------------------------------------------------------- memory


def test_every_changed_byte_is_listed_with_the_owner_that_the_check_gives_it(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.MACHINE_KEXEC, DATA, b"abcd")
    machine.change(Checkpoint.HANDOVER, DATA + 1, b"X")
    machine.change(Checkpoint.HANDOVER, 0x700000, b"Y")
    evidence = machine.write(tmp_path)
    found = changes(evidence)
    assert [(c.interval, c.owner, c.address, c.length) for c in found] == [
        ("panic → machine-kexec", "kernel .data", DATA, 4),
        ("machine-kexec → handover", "kernel .data", DATA + 1, 1),
        ("machine-kexec → handover", "unaccounted", 0x700000, 1),
    ]
    told = ledger.memory_accounted(evidence).figures
    assert sum(c.length for c in found) == told["bytes_changed"]


def test_the_bytes_of_a_page_are_side_by_side(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.MACHINE_KEXEC, DATA, b"\xde\xad")
    evidence = machine.write(tmp_path)
    (one,) = pages(evidence, changes(evidence), Sources(["memory/panic.pages.zst"])).pages
    (line,) = one.lines
    assert line.address == "00100100"
    assert [(p.text, p.differs) for p in line.before] == [("−00−00", True), (" 00" * 14, False)]
    assert [(p.text, p.differs) for p in line.after] == [("+de+ad", True), (" 00" * 14, False)]
    assert one.patch == "100:dead"
    assert base64.b64decode(one.whole) == bytes(4096)
    assert [link.href for link in one.files] == ["memory/panic.pages.zst"]


def test_lines_that_are_left_out_are_counted(machine: Machine, tmp_path: Path) -> None:
    machine.change(Checkpoint.MACHINE_KEXEC, 0x100000, b"\1" * 4096)
    evidence = machine.write(tmp_path)
    (one,) = pages(evidence, changes(evidence), NONE).pages
    assert (len(one.lines), one.more) == (LINES_EACH, 256 - LINES_EACH)


def test_what_nobody_owns_is_left_out_last(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.change(Checkpoint.MACHINE_KEXEC, DATA, b"abcd")
    machine.change(Checkpoint.HANDOVER, 0x700000, b"Y")
    evidence = machine.write(tmp_path)
    monkeypatch.setattr("rig.report.html.pages.SHOWN", 1)
    found = pages(evidence, changes(evidence), NONE)
    assert [page.owners for page in found.pages] == ["unaccounted"]
    assert found.left_out == 1
    assert found.href("panic → machine-kexec", 0x100000) == ""
    assert found.href("machine-kexec → handover", 0x700000) == "#page-700000-1"


def test_the_map_has_what_nobody_owns_first(machine: Machine, tmp_path: Path) -> None:
    machine.learn(kimage=Kimage(0xC1000000, 0x900000, "forged", segments=((0x900000, 0x100000),)))
    machine.change(Checkpoint.MACHINE_KEXEC, DATA, b"abcd")
    machine.change(Checkpoint.HANDOVER, 0x700000, b"Y")
    evidence = machine.write(tmp_path)
    changed = changes(evidence)
    shown = pages(evidence, [c for c in changed if c.owner == "unaccounted"], NONE)
    drawn = memory_map(evidence, changed, shown)
    assert drawn is not None
    assert [(lane.kind, lane.marks[0].href) for lane in drawn.owners] == [
        ("changed unowned", "#page-700000-0"),
        ("changed", ""),  # its bytes are not in the page
    ]
    areas = {lane.kind: lane for lane in drawn.areas}
    assert (areas["crash"].marks[0].left, areas["crash"].marks[0].width) == (50.0, 25.0)
    assert areas["image"].note == "1 MiB"
    assert areas["root"].marks[0].start == PGD


def test_long_holes_are_cut_out_of_the_map() -> None:
    axis = Axis([(0, 0xA0000), (0xC0000, 0xBFF40000), (1 << 32, 1 << 30)])
    assert axis.ranges == [(0, 0xC0000000), (1 << 32, 5 << 30)]
    assert [axis.percent(a) for a in (0, 0xC0000000, 0xF0000000, 1 << 32, 5 << 30)] == [0, 75, 75, 75, 100]
    assert [tick.text for tick in axis.ticks()] == ["0", "1 GiB", "2 GiB", "4 GiB"]


# ---------------------------------------------------------------- registers, console, commands


def test_registers_that_changed_are_marked() -> None:
    before = forge.cpu(0)
    after = replace(before, cr4=0x20, general={**before.general, "rip": 0x1000})
    other = forge.cpu(1)
    first, second = register_tables({"panic": (other, before), "handover": (after,)}, 0, NONE)
    assert (first.cpu, first.crashing, second.cpu) == (0, True, 1)
    changed = {row.name: row.cells[1] for row in first.rows if row.cells[1].changed}
    assert set(changed) == {"rip", "cr4"}
    assert changed["cr4"].bits.startswith("PSE 1->0")
    assert [column.checkpoint for column in second.columns] == ["panic"]


def test_the_console_is_cut_where_phases_began() -> None:
    phases = (Phase("boot", 2.0, 0), Phase("arm", 1.0, 4), Phase("panic", 0.1, 4), Phase("dump", 0.1))
    parts = console(b"one\ntwo\n", phases, NONE).parts
    assert [(p.id, p.phase, p.began, p.text) for p in parts] == [
        ("console-0", "boot", "0.00 s", "one"),
        ("console-1", "arm", "2.00 s", ""),
        ("console-2", "panic", "3.00 s", "two"),
    ]


def test_a_console_of_a_rig_that_noted_no_phases_is_whole() -> None:
    found = console(b"one\ntwo\n", (Phase("boot", 2.0),), NONE)
    assert not found.marked
    assert [part.text for part in found.parts] == ["one\ntwo"]


def test_commands_name_what_was_run(machine: Machine) -> None:
    facts = machine.facts
    own = replace(facts.plan.kernel, image=Path("/boot/my kernel"), vmlinux=Path("/boot/vmlinux"))
    facts = replace(facts, plan=replace(facts.plan, kernel=own))
    text = [command.text for command in commands(forge.PASSED, facts, ["armed", "panic"])]
    run = "rig run panic --guest x86_64 --kernel '/boot/my kernel' --vmlinux /boot/vmlinux --crash-kernel forged"
    assert text[:3] == ["rig rerun .", "rig check .", run]
    assert text[3].splitlines() == [f"{run} --stop-at armed", f"{run} --stop-at panic"]
    without: Facts | None = None
    assert commands(forge.PASSED, without, [])[2].text == "rig run panic --guest x86_64 --kernel debian-6.1"


def test_the_tables_that_were_live_are_told_by_steps() -> None:
    rows = (
        ChangeRow("1", "relocate_kernel+0x1", "movl %eax, %cr3", "CR3 0x1000 -> 0x2000"),
        ChangeRow("2", "control page+0x2", "movl %eax, %cr0", "CR0 0x80000033 -> 0x33 (PG 1->0)"),
    )
    lines = ("The hand-over on CPU 0: 4 steps.", "", *(f"{n:6} 0x1 a+0x{n}" for n in range(4)), "The new image ...")
    found = hand_over(Listing(lines, rows, "The new image ...", 4), NONE)
    assert [(s.tables, s.steps, s.left, s.width) for s in found.live] == [
        ("0x1000", "0–1", 0, 50),
        ("0x2000", "2–2", 50, 25),
        ("none, paging is off", "3–3", 75, 25),
    ]
    assert [run.text.split()[0] for run in found.last if run.marked] == ["1"]
    assert hand_over(Listing(lines, (), "", 4), NONE).live == []


# ---------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    "name",
    ["run.json", "console.log", "registers/panic.json", "memory/panic.pages.zst", "memory/handover.pages.zst"],
)
@pytest.mark.parametrize("torn", [True, False])
def test_what_is_missing_or_torn_is_named_and_the_rest_is_there(
    machine: Machine, tmp_path: Path, name: str, torn: bool
) -> None:
    evidence = machine.write(tmp_path)
    result = judge(evidence)
    file = evidence.path / name
    if torn and name != "console.log":  # of text, any half will do
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    again = type(evidence)(evidence.path)  # nothing read yet
    page = build_page(result, again)
    assert any(name in problem for problem in page.unread)
    assert str(tmp_path) not in " ".join(page.unread)
    assert name in render_run(result, again)
    assert (page.pgd and page.pgd.picture) is None or name in ("console.log", "memory/handover.pages.zst")


def test_a_skipped_run_has_no_empty_sections() -> None:
    skipped: RunResult = forge.result(Verdict.SKIP, [replace(forge.SURVIVED, verdict=Verdict.SKIP, figures={})])
    page = build_page(skipped, forge.ForgedEvidence(listing=()))
    assert (page.pgd, page.map, page.ledger, page.pages.pages) == (None, None, None, [])


def test_text_and_names_that_are_no_utf_8_are_shown_by_their_codes(tmp_path: Path) -> None:
    odd = "\udcff\x1b"
    files = [(os.fsdecode(b"caf\xe9"), 1)]
    checks = [replace(forge.SURVIVED, name=odd, summary=odd, figures={odd: odd})]
    result = forge.result(Verdict.PASS, checks, id=odd, environment={odd: odd, "argv": [odd]}, surprise=odd)
    html = render_run(result, forge.ForgedEvidence(listing=files, text=""))
    html.encode()  # raises on what can't be written to a file
    assert 'href="caf%E9"' in html
    assert html.count(r"\udcff\x1b") >= 8
