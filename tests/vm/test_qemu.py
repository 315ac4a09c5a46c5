from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from rig.errors import GuestDied, MachineError, ProtocolError
from rig.vm.console import Console
from rig.vm.deadline import Ending
from rig.vm.qemu import (
    QEMU,
    MachineSpec,
    Vm,
    Wiring,
    _installed,
    argv,
    confinement,
    describe_shutdown,
    parse_forwarded_port,
    parse_version,
    qemu_version,
    ram_ranges,
    sandboxes,
)
from rig.vm.qmp import Qmp

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


def test_forwarded_port() -> None:
    # QEMU 7.2's `info usernet`
    text = """Hub -1 (net):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  12       127.0.0.1 44901       10.0.2.15    22     0     0
"""
    assert parse_forwarded_port(text) == 44901
    with pytest.raises(ProtocolError, match="forwards no port"):
        parse_forwarded_port(text.replace("HOST_FORWARD", "ESTABLISHED"))


def test_version() -> None:
    assert parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright") == (7, 2, 22)
    assert parse_version("QEMU emulator version 10.0.0") > (7, 2)
    with pytest.raises(MachineError, match="says 'nonsense'"):
        parse_version("nonsense\n")


@pytest.mark.parametrize(
    ("reason", "log", "expected"),
    [
        ("guest-reset", "CPU Reset (CPU 0)\nTriple fault\n", "triple-fault"),
        ("guest-reset", "CPU Reset (CPU 0)\n", "guest-reset"),
        ("guest-shutdown", "Triple fault\n", "guest-shutdown"),
        ("host-signal", "", "host-signal"),
    ],
)
def test_meaning_of_a_shutdown(reason: str, log: str, expected: str) -> None:
    assert describe_shutdown(reason, log).reason == expected


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The only directory in PATH; QEMU is asked anew."""
    monkeypatch.setenv("PATH", str(tmp_path))
    _installed.cache_clear()
    yield tmp_path
    _installed.cache_clear()


def install(path: Path, name: str, output: str = "") -> None:
    """A program that prints a line."""
    program = path / name
    program.write_text(f"#!/bin/sh\necho '{output}'\n")
    program.chmod(0o755)


def test_missing_qemu_is_told_with_a_remedy(path: Path) -> None:
    install(path, "setpriv")
    with pytest.raises(MachineError, match="qemu-system-x86_64 is not installed") as caught:
        qemu_version()
    assert "qemu-system-x86" in caught.value.hint


def test_missing_setpriv_is_told(path: Path) -> None:
    install(path, QEMU, "QEMU emulator version 8.2.0")
    with pytest.raises(MachineError, match="setpriv is not installed"):
        qemu_version()


def test_old_qemu_is_refused(path: Path) -> None:
    install(path, "setpriv")
    install(path, QEMU, "QEMU emulator version 5.2.0 (Debian 1:5.2)")
    with pytest.raises(MachineError, match=r"QEMU 5\.2\.0 is too old"):
        qemu_version()
    install(path, QEMU, "QEMU emulator version 7.2.0")
    assert qemu_version() == "QEMU emulator version 7.2.0"
    assert sandboxes()


def test_qemu_without_a_sandbox_is_found_out(path: Path) -> None:
    """As softmmu/vl.c has it where it is built without CONFIG_SECCOMP."""
    install(path, "setpriv")
    install(path, QEMU)
    (path / QEMU).write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -sandbox ]; then echo "-sandbox support is not enabled in this QEMU binary" >&2; exit 1; fi\n'
        'echo "QEMU emulator version 8.2.0"\n'
    )
    assert qemu_version() == "QEMU emulator version 8.2.0"
    assert confinement()["seccomp"] is False


@pytest.mark.parametrize("ends", [True, False])
def test_a_guest_that_ended_as_it_was_held(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU refuses `cont` then (runstate_needs_reset()), and its event may be dealt with a moment later."""
    vm = Vm(SPEC)

    def refuse(command: str) -> None:
        if ends:
            ending = Ending("triple-fault", "a CPU of the guest took a triple fault")
            threading.Timer(0.05, vm.watch.end, (ending,)).start()
        raise ProtocolError(f"QEMU refused {command}: Resetting the Virtual Machine is required")

    monkeypatch.setattr("rig.vm.qemu._LAST_WORDS", 10.0 if ends else 0.01)
    vm.qmp = cast(Qmp, SimpleNamespace(execute=refuse))
    vm.console = cast(Console, SimpleNamespace(tail=str))
    with pytest.raises(GuestDied if ends else ProtocolError, match="triple fault" if ends else "refused cont"):
        vm.cont()
