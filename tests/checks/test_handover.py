"""The checks on the hand-over: a good way passes, each defect fails its check, and a torn trace can't be judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rig.checks import run_check
from rig.evidence import DIED
from rig.judge import judge
from rig.model import PAGE_SIZE, Arch, Checkpoint, CheckResult, CpuState, Failure, Segment, Verdict
from rig.report import listing
from rig.report.html import render_run
from tests import forged_trace as f
from tests.forge import SEEN, Machine

CHECKS = ("switch-is-safe", "interrupts-off", "executes-nx-safe", "handover-state")
SMEP, NXE = 1 << 20, 1 << 11


def found(machine: Machine, results: Path, name: str) -> CheckResult:
    return run_check(name, machine.write(results))


def dead(machine: Machine) -> Machine:
    """The same machine, had it died before the new image was entered: what memory `handover` has, it had at death."""
    machine.cpus = {**machine.cpus, DIED: (f.at(f.CONTROL + 0x23, cr3=f.NEW, paging=False),)}
    message = "a CPU of the guest took a triple fault"
    machine.learn(captured=SEEN[:2], died=True, post_mortem=True, broke_off=Failure("GuestDied", message, "hand-over"))
    machine.expect(checks=CHECKS)
    return machine


def with_new_table(entries: dict[int, int]) -> Machine:
    machine = f.machine(f.way())
    machine.base[f.NEW // PAGE_SIZE] = f.table(entries)
    return machine


@pytest.mark.parametrize("name", CHECKS)
def test_a_good_way_passes(name: str, tmp_path: Path) -> None:
    result = found(f.machine(f.way()), tmp_path, name)
    assert (result.verdict, result.name) == (Verdict.PASS, name), result.summary


@pytest.mark.parametrize("name", CHECKS[:3])
def test_no_trace_no_verdict(name: str, tmp_path: Path) -> None:
    assert found(Machine(), tmp_path, name).verdict is Verdict.ERROR


@pytest.mark.parametrize("name", CHECKS)
def test_a_way_whose_end_was_not_seen_is_no_pass(name: str, tmp_path: Path) -> None:
    assert found(dead(f.machine(f.way())), tmp_path, name).verdict is Verdict.ERROR


def test_a_table_page_that_was_not_kept_is_no_failure(tmp_path: Path) -> None:
    machine = f.machine(f.way())
    del machine.base[f.NEW // PAGE_SIZE]
    result = found(machine, tmp_path, "switch-is-safe")
    assert (result.verdict, "was not kept" in result.summary) == (Verdict.ERROR, True)


# ---------------------------------------------------------------- switch-is-safe


def test_each_switch_is_told(tmp_path: Path) -> None:
    rows = found(f.machine(f.way()), tmp_path, "switch-is-safe").figures["switches"]
    assert [(r["step"], r["symbol"], r["register"], r["next"], r["same"]) for r in rows] == [
        (2, "control page+0x10", f"CR3={f.NEW:#x}", f.CONTROL_VIRTUAL + 0x13, "same page"),
        (4, "control page+0x20", "CR0.PG=0", f.CONTROL + 0x23, "same page"),
    ]
    assert rows[0]["physical_before"] == rows[0]["physical_after"] == [f.CONTROL + 0x13]


def test_another_page_with_the_same_bytes_will_do(tmp_path: Path) -> None:
    machine = with_new_table({**f.MAPPED, 770: 0x400083})
    machine.base[0x400000 // PAGE_SIZE] = bytes(PAGE_SIZE)
    result = found(machine, tmp_path, "switch-is-safe")
    assert (result.verdict, result.figures["switches"][0]["same"]) == (Verdict.PASS, "same bytes")


def test_another_page_with_other_bytes_fails(tmp_path: Path) -> None:
    machine = with_new_table({**f.MAPPED, 770: 0x400083})
    machine.base[0x400000 // PAGE_SIZE] = bytes(0x14) + b"\1" + bytes(PAGE_SIZE - 0x15)  # the jump's second byte
    result = found(machine, tmp_path, "switch-is-safe")
    assert result.verdict is Verdict.FAIL
    assert "0x800013 before and 0x400013 after it, with other bytes" in result.summary


def test_an_instruction_is_looked_at_in_both_of_its_pages(tmp_path: Path) -> None:
    """Its first byte is the last of a 4 MiB page that both tables map, its second in one that only the old one has."""
    way = f.way()
    way[2:4] = [
        f.Did(f.at(0xC0BFFFFC), f.TO_CR3),
        f.Did(f.at(0xC0BFFFFF, cr3=f.NEW), f.JUMP),
    ]
    machine = f.machine(way)
    machine.base[f.OLD // PAGE_SIZE] = f.table({**f.MAPPED, 771: 0xC00083})
    result = found(machine, tmp_path, "switch-is-safe")
    assert result.verdict is Verdict.FAIL
    assert "not mapped after it" in result.summary


def test_paging_goes_off_where_addresses_are_not_identical(tmp_path: Path) -> None:
    way = f.way()
    way[4:] = [
        f.Did(f.at(f.CONTROL_VIRTUAL + 0x20, cr3=f.NEW), f.TO_CR0),
        f.Did(f.at(f.CONTROL_VIRTUAL + 0x23, cr3=f.NEW, paging=False), f.RET),
    ]
    machine = f.machine(way)
    result = found(machine, tmp_path, "switch-is-safe")
    assert (result.verdict, "with other bytes" in result.summary) == (Verdict.FAIL, True)


def test_old_tables_may_be_damaged_after_they_were_used(tmp_path: Path) -> None:
    machine = f.machine(f.way())
    machine.change(Checkpoint.HANDOVER, f.OLD + 4 * 770, bytes(4))
    for name in CHECKS:
        assert found(machine, tmp_path, name).verdict is Verdict.PASS, name


def test_a_guest_that_died_of_the_switch(tmp_path: Path) -> None:
    """The address after the switch is in no step: the exception has it."""
    next_one = f.CONTROL_VIRTUAL + 0x13
    fault = f.event(14, replace(f.at(next_one, cr3=f.NEW), cr2=next_one))
    machine = dead(f.machine(f.way()[:3], {2: fault}))
    machine.base[f.NEW // PAGE_SIZE] = f.table({0: 0x83, 2: 0x800083})
    evidence = machine.write(tmp_path)
    result = judge(evidence)
    verdicts = {c.name: c for c in result.checks}
    assert result.verdict is Verdict.FAIL
    assert "0xc0800013 is not mapped after it: not present at PDE [770] (0x0)" in verdicts["switch-is-safe"].summary
    assert verdicts["executes-nx-safe"].verdict is Verdict.FAIL
    assert verdicts["interrupts-off"].verdict is Verdict.ERROR
    assert result.error is not None
    assert "control page+0x10 (0xc0800010: movl %eax, %cr3)" in result.error.message
    assert "#PF at CR2 0xc0800013: instruction fetch, page not present" in result.error.message
    page = render_run(result, evidence, listing.hand_over_listing(evidence))
    assert "nothing was judged" not in page
    assert "#PF at CR2 0xc0800013" in page


# ---------------------------------------------------------------- interrupts-off


def test_the_first_change_is_named(tmp_path: Path) -> None:
    figures = found(f.machine(f.way()), tmp_path, "interrupts-off").figures
    first = figures["first_change"]
    assert (first["step"], first["symbol"], first["what"]) == (1, "machine_kexec+0x1", "idtr")
    assert figures["cleared"]["symbol"] == "machine_kexec+0x0"


@pytest.mark.parametrize("number", [1, 4])
def test_interrupts_on_after_the_first_change(number: int, tmp_path: Path) -> None:
    way = f.way()
    state = way[number].state
    flags = {**state.general, "rflags": 0x246}
    way[number] = replace(way[number], state=replace(state, general=flags))
    general = {**way[number + 1].state.general, "rflags": 0x246}
    taken = f.event(0xEF, replace(way[number + 1].state, general=general))
    result = found(f.machine(way, {number: taken}), tmp_path, "interrupts-off")
    assert result.verdict is Verdict.FAIL
    assert f"step {number}" in result.summary
    assert result.figures["interrupts"] == [{"before_step": number + 1, "what": "interrupt 0xef"}]


# ---------------------------------------------------------------- executes-nx-safe


def test_user_pages_are_forbidden_by_smep_only(tmp_path: Path) -> None:
    user = {**f.MAPPED, 2: 0x800087}
    for smep, verdict in ((0, Verdict.PASS), (SMEP, Verdict.FAIL)):
        way = f.way()
        way[4] = replace(way[4], state=f.at(f.CONTROL + 0x20, cr3=f.NEW, cr4=0x10 | smep))
        machine = f.machine(way)
        machine.base[f.NEW // PAGE_SIZE] = f.table(user)
        result = found(machine, tmp_path, "executes-nx-safe")
        assert result.verdict is verdict, result.summary


@pytest.mark.parametrize(("nxe", "verdict"), [(NXE, Verdict.FAIL), (0, Verdict.FAIL)])
def test_nx_in_pae_tables(nxe: int, verdict: Verdict, tmp_path: Path) -> None:
    """Without EFER.NXE the bit is reserved: a fault as well, and named so."""
    directory = 0x7000
    way = f.way()
    way[4] = replace(way[4], state=replace(f.at(f.CONTROL + 0x20, cr3=f.NEW, cr4=0x20), efer=nxe))
    machine = f.machine([way[4]])
    nx_page = (0x800083 | 1 << 63).to_bytes(8, "little")
    machine.base[f.NEW // PAGE_SIZE] = (directory | 1).to_bytes(8, "little") + bytes(PAGE_SIZE - 8)
    machine.base[directory // PAGE_SIZE] = bytes(4 * 8) + nx_page + bytes(PAGE_SIZE - 5 * 8)
    result = found(machine, tmp_path, "executes-nx-safe")
    assert result.verdict is verdict
    assert ("NX in its PDE" if nxe else "reserved bits 0x8000000000000000") in result.summary


def test_repeated_instructions_are_counted_and_pages_are_translated_once(tmp_path: Path) -> None:
    string = f.Did(f.at(f.CONTROL + 0x30, cr3=f.NEW), b"\xf3\xa5")
    way = f.way()
    figures = found(f.machine([*way[:4], *[string] * 100, *way[4:]]), tmp_path, "executes-nx-safe").figures
    # the kernel's page and the control page by the old tables, by the new ones at both of its addresses
    assert (figures["instructions"], figures["translated_pages"], figures["paging_off"]) == (106, 4, 1)


# ---------------------------------------------------------------- handover-state


def entered(machine: Machine, state: CpuState) -> Machine:
    machine.cpus = {**machine.cpus, Checkpoint.HANDOVER: (state,)}
    return machine


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general": {**f.END.general, "rflags": 0x246}}, "EFLAGS.IF is set"),
        ({"general": {**f.END.general, "rflags": 0x446}}, "EFLAGS.DF is set"),
        ({"general": {**f.END.general, "rbx": 7}}, "EBX is 0x7, not 0"),
        ({"cr0": 0x10033}, "CR0 has WP set"),
        ({"cr4": 0x80}, "CR4.PGE is set"),
        ({"cr0": 0x80000033, "cr3": f.NEW}, "paging is on (2-level)"),
        ({"segments": {**f.END.segments, "ds": Segment(0x68, 0x1000, 0xFFFFFFFF, 0xCF9300)}}, "DS is not flat"),
        ({"segments": {**f.END.segments, "cs": Segment(0x60, 0, 0xFFFFFFFF, 0x8F9A00)}}, "runs 16-bit code"),
    ],
)
def test_what_the_protocol_forbids(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    result = found(entered(f.machine(f.way()), replace(f.END, **changes)), tmp_path, "handover-state")
    assert (result.verdict, words in result.summary) == (Verdict.FAIL, True), result.summary


def test_what_the_protocol_leaves_open_is_recorded(tmp_path: Path) -> None:
    state = replace(f.END, gdt_base=0x1000, gdt_limit=0x7F, general={**f.END.general, "rcx": 5})
    result = found(entered(f.machine(f.way()), state), tmp_path, "handover-state")
    assert result.verdict is Verdict.PASS
    assert result.figures["gdt"] == {"base": 0x1000, "limit": 0x7F, "loaded": True}
    assert result.figures["not_zero"] == {"rcx": 5}


def test_the_64_bit_protocol_is_another(tmp_path: Path) -> None:
    machine = f.machine(f.way())
    machine.learn(plan=replace(machine.facts.plan, guest=replace(machine.facts.plan.guest, arch=Arch.AMD64)))
    result = found(machine, tmp_path, "handover-state")
    assert "the CPU runs 32-bit code; paging is off" in result.summary


# ---------------------------------------------------------------- the listing


def test_the_listing_has_every_instruction_and_what_it_changed(tmp_path: Path) -> None:
    found = listing.hand_over_listing(f.machine(f.way()).write(tmp_path))
    assert found is not None
    (switch,) = [line for line in found.lines if f"CR3 {f.OLD:#x} -> {f.NEW:#x}" in line]
    assert switch.split()[:6] == ["2", "0xc0800010", "control", "page+0x10", "0f", "22"]
    assert "movl %eax, %cr3" in switch
    off = next(row for row in found.rows if row.step == "4")
    assert "PG 1->0" in off.changes
    assert found.ending == "The new image was entered at 0x900000."
    assert listing.hand_over_listing(Machine().write(tmp_path)) is None
