"""The recording of a hand-over: what QEMU logs, and what a torn log must not be taken for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rig.errors import EvidenceError
from rig.trace import CUT, Gap, addresses, changes, code_of, gap, parse
from tests.forged_trace import CONTROL, END, KERNEL, NEW, OLD, Did, at, block, dump, event, trace_line, way

REP_MOVSL = bytes.fromhex("f3a5")


def test_steps_have_bytes_and_the_registers_before_them() -> None:
    trace = parse("".join(map(block, way())), 0)
    assert [(step.number, step.pc, step.code) for step in trace.steps] == [
        (n, did.state.general["rip"], did.code) for n, did in enumerate(way())
    ]
    assert trace.steps[3].state == way()[3].state
    assert (trace.others, trace.events) == (0, ())


def test_a_long_instruction_goes_on_in_the_next_line() -> None:
    pc, code = 0xC0010000, bytes.fromhex("48c7803412000078563412")
    shown = f"0x{pc:08x}:  48 c7 80 34 12 00 00 78  movq $1, 2(%rax)\n0x{pc + 8:08x}:  56 34 12\n"
    text = f"----------------\nIN: name\n{shown}\n{trace_line(pc)}{dump(at(pc))}"
    assert [step.code for step in parse(text, 0).steps] == [code]


def test_code_that_qemu_shows_as_plain_bytes() -> None:
    shown = f"0x{KERNEL:08x}:  OBJD-T: fa90\n".replace("fa90", "fa 90")
    assert parse(f"IN: \n{shown}\n{trace_line(KERNEL)}{dump(at(KERNEL))}", 0).steps[0].code == b"\xfa\x90"


def test_a_block_translated_once_is_known_when_it_is_executed_again() -> None:
    again = trace_line(KERNEL) + dump(at(KERNEL))
    other = Did(at(KERNEL + 1), b"\x90")
    trace = parse(block(Did(at(KERNEL), b"\x40")) + block(other) + again, 0)
    assert [(step.pc, step.code) for step in trace.steps][::2] == [(KERNEL, b"\x40")] * 2


def test_a_string_instruction_is_one_step_and_a_loop_is_not() -> None:
    string, loop = Did(at(KERNEL), REP_MOVSL), Did(at(KERNEL + 2), b"\xeb\xfe")
    trace = parse(block(string) * 256 + block(loop) * 3, 0)
    assert [(step.pc, step.repeats) for step in trace.steps] == [(KERNEL, 256), *[(KERNEL + 2, 1)] * 3]


def test_a_gap_lies_between_two_steps_and_an_interrupt_in_it_counts() -> None:
    string, later = Did(at(KERNEL), REP_MOVSL), Did(at(KERNEL + 2), b"\x90")
    text = block(string) + gap("the copying of 7 pages") + event(0x22, at(KERNEL)) + block(later)
    trace = parse(text, 0)
    assert [step.pc for step in trace.steps] == [KERNEL, KERNEL + 2]
    assert trace.gaps == (Gap(1, "the copying of 7 pages"),)
    assert [(e.before, e.vector) for e in trace.events] == [(1, 0x22)]


def test_a_block_that_was_left_before_it_ran_is_no_step_but_its_interrupt_counts() -> None:
    undone = block(way()[1]) + f"Stopped execution of TB chain before 0x7f89 [{KERNEL + 1:08x}] \n"
    trace = parse(block(way()[0]) + undone + "Servicing hardware INT=0xef\n" + event(0xEF, way()[1].state), 0)
    assert [step.pc for step in trace.steps] == [KERNEL]
    (taken,) = trace.events
    assert (taken.before, taken.vector, taken.maskable) == (1, 0xEF, True)


@pytest.mark.parametrize(("vector", "software", "maskable"), [(2, 0, False), (14, 0, False), (0x80, 1, False)])
def test_what_if_does_not_hold_back(vector: int, software: int, maskable: bool) -> None:
    trace = parse(block(way()[0]) + event(vector, at(KERNEL + 1), software=software), 0)
    assert trace.events[0].maskable is maskable


def test_what_a_delivery_changes_is_not_the_instructions_doing() -> None:
    on = at(KERNEL, flags=0x246)
    handler = Did(at(KERNEL + 0x80, flags=0x46), b"\x90")  # an interrupt gate clears IF
    text = block(Did(on, b"\x90")) + event(0xEF, at(KERNEL + 1, flags=0x246)) + block(handler)
    assert list(changes(parse(text, 0), None)) == []


def test_changes_name_the_instruction_and_the_end_gives_the_last() -> None:
    trace = parse("".join(map(block, way())), 0)
    found = [(c.step.number, c.name, c.before, c.after) for c in changes(trace, END)]
    assert (2, "cr3", (OLD,), (NEW,)) in found
    assert (0, "if", (1,), (0,)) in found
    assert (5, "cr3", (NEW,), (0,)) in found
    assert 5 not in {c.step.number for c in changes(trace, None)}


def test_other_cpus_are_counted_only() -> None:
    trace = parse(block(Did(at(0xC0030000), b"\xf4"), number=1) + block(way()[0]), 0)
    assert (len(trace.steps), trace.others) == (1, 1)
    assert addresses(block(Did(at(CONTROL), b"\xf4"), number=1) * 2) == [CONTROL]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no instruction of CPU 0"),
        ("garbage\n\0\nTrace x: nothing\n", "no instruction of CPU 0"),
        (block(way()[0], number=1), "no instruction of CPU 0"),
        (trace_line(KERNEL) + dump(at(KERNEL)), "does not say what instruction is at 0xc0010000"),
        (block(way()[0])[:-200], "broken at 0xc0010000"),
        (block(way()[0]) + event(14, at(KERNEL))[:-200], "broken at interrupt 0e"),
        (block(way()[0]).replace("EIP=c0010000", "EIP=c0030000"), "mixes CPUs"),
    ],
)
def test_a_torn_recording_is_no_trace(text: str, words: str) -> None:
    with pytest.raises(EvidenceError, match=words):
        parse(text, 0)


def test_a_fault_leaves_the_state_in_which_it_was_raised() -> None:
    state = replace(at(CONTROL, cr3=NEW), cr2=CONTROL)
    trace = parse(block(way()[0]) + event(14, state, error=0x10), 0)
    assert (trace.events[0].state.cr2, trace.events[0].error) == (CONTROL, 0x10)


def test_a_recording_that_was_cut_is_no_trace_but_its_code_is_known_later() -> None:
    first, *rest = way()
    cut = block(first) + f"\n{CUT}\n"
    with pytest.raises(EvidenceError, match="is cut"):
        parse(cut, 0)
    # executed again: QEMU does not say its bytes a second time
    again = trace_line(first.state.general["rip"]) + dump(first.state)
    trace = parse(code_of(cut) + again + "".join(map(block, rest)), 0)
    assert [step.code for step in trace.steps] == [did.code for did in way()]
