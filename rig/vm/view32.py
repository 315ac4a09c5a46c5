"""An x86_64 CPU as a debugger of 32-bit code has to see it. Pure: packets of GDB's remote protocol in and out.

qemu-system-x86_64 shows 64-bit registers whatever the CPU runs (target/i386/gdbstub.c), and from those gdb disassembles
64-bit code. So a debugger of a 32-bit kernel is told of an i386, and what it asks of its registers is translated. The
x87's are not available to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# In gdb's order, which is that of the registers' numbers and of the `g` packet (GDB manual, G.5.6 and
# gdb/features/i386/32bit-core.xml): name, number in QEMU's x86_64 description (gdb-xml/i386-64bit.xml).
REGISTERS = {
    "eax": 0,
    "ecx": 2,
    "edx": 3,
    "ebx": 1,
    "esp": 7,
    "ebp": 6,
    "esi": 4,
    "edi": 5,
    "eip": 16,
    "eflags": 17,
    **{name: 18 + number for number, name in enumerate(("cs", "ss", "ds", "es", "fs", "gs"))},
}
X87 = {f"st{number}": 10 for number in range(8)} | dict.fromkeys(
    ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"), 4
)  # name: bytes
_NUMBERS = tuple(REGISTERS.values())
_WIDE = 17  # so many of QEMU's first registers have 8 bytes: 16 general ones and rip; those that follow have 4
_UNAVAILABLE = "xx"  # a byte of a register that is not known (GDB manual, E.2)
_DESCRIPTION = re.compile(r"qXfer:features:read:target\.xml:([0-9a-f]+),([0-9a-f]+)")
_POINTERS = {"esp": "data_ptr", "ebp": "data_ptr", "eip": "code_ptr"}


def _description() -> str:
    """GDB's target description of an i386."""
    lines = [f'<reg name="{name}" bitsize="32" type="{_POINTERS.get(name, "int32")}"/>' for name in REGISTERS]
    for name, size in X87.items():
        kind = "i387_ext" if size == 10 else 'int" group="float'
        lines.append(f'<reg name="{name}" bitsize="{8 * size}" type="{kind}"/>')
    return (
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target><architecture>i386</architecture>'
        f'<feature name="org.gnu.gdb.i386.core">{"".join(lines)}</feature></target>'
    )


DESCRIPTION = _description()


@dataclass(frozen=True)
class Answer:
    """What the debugger gets without QEMU being asked."""

    payload: str


@dataclass(frozen=True)
class Question:
    """What QEMU gets. kind: how its reply is to be translated: g, p, or not at all."""

    payload: str
    kind: str = ""


def ask(payload: str) -> Answer | Question:
    """What becomes of a packet from the debugger."""
    if match := _DESCRIPTION.fullmatch(payload):
        start, size = (int(digits, 16) for digits in match.groups())
        part = DESCRIPTION[start : start + size]
        return Answer(("m" if start + size < len(DESCRIPTION) else "l") + part)
    if payload == "g":
        return Question("g", "g")
    if match := re.fullmatch(r"p([0-9a-f]+)", payload):
        number = int(match[1], 16)
        return Question(f"p{_NUMBERS[number]:x}", "p") if number < len(_NUMBERS) else Answer(_UNAVAILABLE * 4)
    if match := re.fullmatch(r"P([0-9a-f]+)=([0-9a-f]+)", payload):
        number = int(match[1], 16)
        if number >= len(_NUMBERS):
            return Answer("E01")
        return Question(f"P{_NUMBERS[number]:x}={match[2]}{'00' * 4 if _NUMBERS[number] < _WIDE else ''}")
    if payload.startswith("G"):
        return Answer("")  # not known: gdb takes `P`, register by register
    return Question(payload)


def translate(kind: str, reply: str) -> str:
    """What the debugger gets for QEMU's reply to a Question of this kind. Errors pass as they are."""
    if not kind or reply.startswith("E"):
        return reply
    if kind == "p":
        return reply[:8]
    offsets = [2 * (8 * number if number <= _WIDE else 8 * _WIDE + 4 * (number - _WIDE)) for number in _NUMBERS]
    return "".join(reply[at : at + 8] for at in offsets) + _UNAVAILABLE * sum(X87.values())
