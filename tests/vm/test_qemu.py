from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from rig.errors import GuestDied, ProtocolError
from rig.vm.console import Console
from rig.vm.deadline import Ending
from rig.vm.machine import MachineSpec
from rig.vm.qemu import Vm, describe_shutdown, parse_forwarded_port
from rig.vm.qmp import Qmp


def test_forwarded_port() -> None:
    # QEMU 7.2's `info usernet`
    text = """Hub -1 (net):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  12       127.0.0.1 44901       10.0.2.15    22     0     0
"""
    assert parse_forwarded_port(text) == 44901
    with pytest.raises(ProtocolError, match="forwards no port"):
        parse_forwarded_port(text.replace("HOST_FORWARD", "ESTABLISHED"))


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


@pytest.mark.parametrize("ends", [True, False])
def test_a_guest_that_ended_as_it_was_held(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU refuses `cont` then (runstate_needs_reset()), and its event may be dealt with a moment later."""
    vm = Vm(MachineSpec(512, 1, "pc", "qemu64", "tcg", Path("/k"), None, "", Path("/run dir")))

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
