from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rig.errors import MachineError
from rig.vm.machine import MachineSpec, Wiring, argv, ram_ranges

SPEC = MachineSpec(
    memory=512,
    cpus=2,
    machine="pc",
    cpu="qemu64,+rdrand",
    accel="tcg",
    kernel=Path("/k"),
    initrd=Path("/i"),
    cmdline="console=ttyS0 quiet",
    run_dir=Path("/run dir"),
)
WIRING = Wiring(ram=10, console=11, control=12, qmp=13, gdb=14)
MIB, GIB = 1 << 20, 1 << 30


def value(option: str, spec: MachineSpec = SPEC) -> str:
    """The word after the only occurrence of an option."""
    words = argv(spec, WIRING)
    assert words.count(option) == 1
    return words[words.index(option) + 1]


def test_a_hypervisor_gets_the_kernel_as_a_module() -> None:
    """A comma ends a module for QEMU, unless it is doubled."""
    spec = dataclasses.replace(
        SPEC, cmdline="console=hvc0 a=1,2", hypervisor=Path("/x"), hypervisor_cmdline="com1=115200,8n1"
    )
    assert value("-kernel", spec) == "/x"
    assert value("-initrd", spec) == "/k console=hvc0 a=1,,2,/i"
    assert value("-append", spec) == "com1=115200,8n1"


def test_ram_is_the_inherited_file() -> None:
    assert value("-object") == "memory-backend-file,id=ram,size=512M,mem-path=/proc/self/fd/10,share=on"
    assert value("-machine") == "pc,memory-backend=ram"
    assert value("-m") == "512M"


def test_firmware_of_its_own() -> None:
    assert "-bios" not in argv(SPEC, WIRING)
    assert value("-bios", dataclasses.replace(SPEC, firmware=Path("/f/OVMF.fd"))) == "/f/OVMF.fd"


def test_serial_lines_come_in_order() -> None:
    words = argv(SPEC, WIRING)
    serial = [words[i + 1] for i, word in enumerate(words) if word == "-serial"]
    assert serial == ["chardev:console", "chardev:control"]
    assert "socket,id=console,fd=11" in words
    assert "socket,id=control,fd=12" in words


def test_command_line_with_spaces_is_one_word() -> None:
    assert value("-append") == "console=ttyS0 quiet"
    assert value("-D") == "/run dir/.qemu-log/%d"


def test_cpu_model_depends_on_the_accelerator() -> None:
    assert value("-cpu") == "qemu64,+rdrand"
    assert value("-cpu", dataclasses.replace(SPEC, accel="kvm")) == "host"


def test_a_disk_is_a_file_that_the_rig_reads_too() -> None:
    assert "-blockdev" not in argv(SPEC, WIRING)
    spec = dataclasses.replace(SPEC, disk=Path("/proc/7/fd/15"))
    assert value("-blockdev", spec).startswith("driver=file,node-name=dump,filename=/proc/7/fd/15,")
    assert "virtio-blk-pci,drive=dump,werror=report,rerror=report" in argv(spec, WIRING)


def test_guest_gets_no_program_started_for_it() -> None:
    state, *rules = value("-sandbox").split(",")
    assert state == "on"
    assert sorted(rules) == ["elevateprivileges=deny", "obsolete=deny", "resourcecontrol=deny", "spawn=deny"]
    assert "-sandbox" not in argv(dataclasses.replace(SPEC, sandbox=False), WIRING)


def test_open_files_are_inherited_and_nothing_else() -> None:
    spec = dataclasses.replace(SPEC, initrd=Path("/proc/self/fd/7"), disk=Path("/proc/self/fd/9"))
    assert spec.inherited == (7, 9)
    assert SPEC.inherited == ()
    assert SPEC.writable == (Path("/run dir"),)
    assert dataclasses.replace(SPEC, monitor=Path("/private/qmp")).writable == (Path("/run dir"), Path("/private"))


def test_guest_is_reachable_from_loopback_only() -> None:
    assert value("-netdev") == "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"


# As QEMU 7.2's `info mtree -f` shows them.
@pytest.mark.parametrize(
    ("machine", "memory", "expected"),
    [
        ("pc", 512, [(0, 0xA0000, 0), (0xC0000, 512 * MIB - 0xC0000, 0xC0000)]),
        ("pc", 3583, [(0, 0xA0000, 0), (0xC0000, 3583 * MIB - 0xC0000, 0xC0000)]),
        ("pc", 4096, [(0, 0xA0000, 0), (0xC0000, 3 * GIB - 0xC0000, 0xC0000), (4 * GIB, GIB, 3 * GIB)]),
        (
            "pc-q35-7.2",
            4096,
            [(0, 0xA0000, 0), (0xC0000, 2 * GIB - 0xC0000, 0xC0000), (4 * GIB, 2 * GIB, 2 * GIB)],
        ),
        ("q35,smm=off", 2815, [(0, 0xA0000, 0), (0xC0000, 2815 * MIB - 0xC0000, 0xC0000)]),
        ("pc-i440fx-7.2", 64, [(0, 0xA0000, 0), (0xC0000, 64 * MIB - 0xC0000, 0xC0000)]),
    ],
)
def test_ram_ranges(machine: str, memory: int, expected: list[tuple[int, int, int]]) -> None:
    assert ram_ranges(dataclasses.replace(SPEC, machine=machine, memory=memory)) == expected


@pytest.mark.parametrize(("machine", "memory"), [("pc", 3584), ("q35", 2816)])
def test_ram_ranges_cover_the_file_but_for_the_vga_window(machine: str, memory: int) -> None:
    ranges = ram_ranges(dataclasses.replace(SPEC, machine=machine, memory=memory))
    assert len(ranges) == 3
    assert sum(size for _, size, _ in ranges) == memory * MIB - 0x20000


def test_ram_ranges_of_an_unknown_machine() -> None:
    with pytest.raises(MachineError, match="microvm"):
        ram_ranges(dataclasses.replace(SPEC, machine="microvm"))
