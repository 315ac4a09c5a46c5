"""Damage to the held machine, done and made sure of; and the record of what a control module did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rig import sabotage
from rig.errors import ProtocolError
from rig.injection import Change
from rig.memory.physical import Memory
from rig.model import PAGE_SIZE, CpuState
from rig.vm.gdbstub import GdbStub


def carry_out(change: Change, gdb: GdbStub, memory: Memory, cpu: Callable[[], CpuState]) -> dict[str, Any]:
    """Write what an injection chose; returns the facts about it. memory and cpu: the machine as it is when asked.

    :raise ProtocolError: what was written can't be read back
    """
    for word in change.memory:
        gdb.write_physical(word.address, word.after.to_bytes(word.size, "little"))
        found = int.from_bytes(memory.read(word.address, word.size), "little")
        if found != word.after:
            raise ProtocolError(f"{word.after:#x} was written to {word.address:#x}, where {found:#x} is read")
    for one in change.registers:
        gdb.write_register(one.register, one.after)
    after = cpu()
    for one in change.registers:
        if after.register(one.register) != one.after:
            raise ProtocolError(f"{one.after:#x} was written to {one.register}: {after.register(one.register):#x}")
    own = {"control_memory": (change.own, PAGE_SIZE)} if change.own is not None else {}
    return {"damage": change.memory, "register_damage": change.registers, **own}


def read_record(memory: Memory, address: int) -> Mapping[str, Any]:
    """The facts that a control module left. EvidenceError when it left no record."""
    told = sabotage.parse_record(memory.read(address, sabotage.RECORD_SIZE))
    return {"damage": told.words, "control_memory": (address, sabotage.BLOCK_SIZE)}
