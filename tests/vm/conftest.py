"""Machines without an operating system: a few bytes of code, started by QEMU as a multiboot kernel."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from rig.vm.machine import MachineSpec

LOAD = 0x100000
CODE = LOAD + 0x20  # after the header
_MAGIC, _ADDRESSES_GIVEN = 0x1BADB002, 0x10000

LOOP = b"\xeb\xfe"  # jmp to itself


def multiboot(code: bytes) -> bytes:
    """A multiboot image (Multiboot Specification 0.6.96, 3.1) that enters `code` in 32-bit protected mode."""
    checksum = -(_MAGIC + _ADDRESSES_GIVEN) & 0xFFFFFFFF
    # header, load, load end (0: whole file), bss end (0: none), entry
    header = struct.pack("<8I", _MAGIC, _ADDRESSES_GIVEN, checksum, LOAD, LOAD, 0, 0, CODE)
    return header + code


def say(text: bytes, port: int = 0x3F8) -> bytes:
    """Code that writes `text` to a UART, and the text behind it; goes on after the text."""
    loop = bytes.fromhex("ac84c07403eeebf8")  # lodsb; test al,al; jz +3; out dx,al; jmp -8
    # call next: pushes the address of the text; pop esi at its end gets it
    body = text + b"\0"
    return b"\xe8" + struct.pack("<I", len(body)) + body + b"\x5e\x66\xba" + struct.pack("<H", port) + loop


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[..., MachineSpec]:
    """A function that makes the MachineSpec for a machine that runs the given code."""

    def make(code: bytes, cpu: str = "qemu64", monitor: Path | None = None) -> MachineSpec:
        kernel, initrd, run_dir = tmp_path / "kernel", tmp_path / "initrd", tmp_path / "run"
        kernel.write_bytes(multiboot(code))
        initrd.write_bytes(b"module")
        run_dir.mkdir()
        return MachineSpec(
            memory=64,
            cpus=2,
            machine="pc",
            cpu=cpu,
            accel="tcg",
            kernel=kernel,
            initrd=initrd,
            cmdline="",
            run_dir=run_dir,
            monitor=monitor,
        )

    return make
