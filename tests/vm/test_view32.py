from __future__ import annotations

from xml.etree import ElementTree

import pytest

from rig.vm.view32 import DESCRIPTION, REGISTERS, X87, Answer, Question, ask, translate

# QEMU's `g`: rax rbx rcx rdx rsi rdi rbp rsp r8..r15 rip, 8 bytes each; eflags cs ss ds es fs gs, 4 each; and more.
WIDE = [f"{number:02x}" + "00" * 7 for number in range(17)]
NARROW = [f"{number:02x}" + "00" * 3 for number in range(17, 24)]
G = "".join([*WIDE, *NARROW]) + "99" * 300


def test_the_g_packet_in_i386s_order() -> None:
    reply = translate("g", G)
    values = [reply[start : start + 8] for start in range(0, 8 * len(REGISTERS), 8)]
    # eax ecx edx ebx esp ebp esi edi eip eflags cs ss ds es fs gs
    expected = [0, 2, 3, 1, 7, 6, 4, 5, 16, 17, 18, 19, 20, 21, 22, 23]
    assert [int.from_bytes(bytes.fromhex(value), "little") for value in values] == expected
    assert reply[8 * len(REGISTERS) :] == "xx" * (8 * 10 + 8 * 4)


@pytest.mark.parametrize(
    ("packet", "passed_on"),
    [
        ("g", Question("g", "g")),
        ("p4", Question("p7", "p")),  # esp
        ("p8", Question("p10", "p")),  # eip
        ("pf", Question("p17", "p")),  # gs
        ("p10", Answer("xxxxxxxx")),  # st0
        ("P8=78563412", Question("P10=7856341200000000")),
        ("P9=46020000", Question("P11=46020000")),  # eflags has 4 bytes in both
        ("P1f=00000000", Answer("E01")),
        ("G00", Answer("")),
        ("mc1000000,4", Question("mc1000000,4")),
        ("vCont;s:p1.1", Question("vCont;s:p1.1")),
    ],
)
def test_packets(packet: str, passed_on: Question | Answer) -> None:
    assert ask(packet) == passed_on


def test_replies() -> None:
    assert translate("p", "7856341200000000") == "78563412"
    assert translate("g", "E22") == "E22"
    assert translate("", "T05thread:01;") == "T05thread:01;"


def test_the_description_comes_in_parts_and_is_of_an_i386() -> None:
    text, more = "", True
    while more:
        answer = ask(f"qXfer:features:read:target.xml:{len(text):x},200")
        assert isinstance(answer, Answer)
        more, text = answer.payload.startswith("m"), text + answer.payload[1:]
    assert text == DESCRIPTION
    root = ElementTree.fromstring(text)
    assert root.findtext("architecture") == "i386"
    assert [reg.attrib["name"] for reg in root.iter("reg")] == [*REGISTERS, *X87]
