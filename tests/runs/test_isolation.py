"""What an untrusted guest can reach, tried from inside of one that has its network up, and what can reach it."""

from __future__ import annotations

import dataclasses
import os
import select
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rig import catalog, terminal
from rig.errors import GuestError, ProtocolError
from rig.guest import ssh
from rig.guest.keys import RunKeys
from rig.model import Options
from rig.plan import plan
from rig.vm.deadline import Deadline
from rig.vm.qemu import Vm
from rig.vm.shell import Hello

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

KEYS, OTHER = RunKeys.make(), RunKeys.make()
HOST = "10.0.2.2"  # what QEMU's user network calls the host's loopback
DNS = "10.0.2.3"  # where it would answer for the host's name server
OUTSIDE = "192.0.2.1"  # of nobody (RFC 5737)


def soon() -> Deadline:
    return Deadline.after(120, "the test's guest")


@pytest.fixture(scope="module")
def arrived() -> Iterator[tuple[Vm, Hello]]:
    """A guest in its crash kernel, and what that said: only that has a driver for its network card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunKeys, "make", lambda: KEYS)  # those that it is booted with
        (one,) = plan(catalog.load(), ["panic"], ["x86_64"])
        with terminal.booted(one, Options(accel="tcg"), True, lambda _: None, threading.Event()) as (vm, _):
            vm.shell.send("echo c >/proc/sysrq-trigger")
            hello = vm.shell.wait_hello("crash", soon())
            assert hello.net == "yes"
            yield vm, hello


@pytest.fixture
def crashed(arrived: tuple[Vm, Hello]) -> Vm:
    return arrived[0]


@pytest.fixture
def listeners() -> Iterator[tuple[socket.socket, socket.socket]]:
    """TCP and UDP, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        yield tcp, udp


def test_a_real_kernel_says_the_same_when_it_is_asked_again(arrived: tuple[Vm, Hello]) -> None:
    vm, hello = arrived
    vm.shell.confirm(hello, soon())
    with pytest.raises(GuestError, match=r"9\.9\.9 said hello"):
        vm.shell.confirm(dataclasses.replace(hello, release="9.9.9"), soon())


def test_it_reaches_nobody(crashed: Vm, listeners: tuple[socket.socket, socket.socket]) -> None:
    tcp, udp = (listener.getsockname()[1] for listener in listeners)
    attempts = {
        "the host": f"timeout 5 nc -w 2 {HOST} {tcp} </dev/null",
        "its own port": f"timeout 5 nc -w 2 {HOST} {crashed.ssh_port} </dev/null",
        "outside": f"timeout 5 nc -w 2 {OUTSIDE} 80 </dev/null",
        "names": f"timeout 3 nslookup example.org {DNS}",
        "the host by UDP": f"timeout 3 tftp -g -r x {HOST} {udp}",
    }
    script = [f"route add default gw {HOST} || exit", "failed="]
    script += [f"{command} >/dev/null 2>&1 || failed=$failed:'{what}'" for what, command in attempts.items()]
    script += ["echo $failed"]
    assert crashed.shell.run("\n".join(script), soon()).strip() == "".join(f":{what}" for what in attempts)
    assert select.select(listeners, [], [], 0.5)[0] == []  # that would be a connection, or a datagram


def test_it_is_reached_on_loopback_with_its_own_keys_only(crashed: Vm) -> None:
    impostor = dataclasses.replace(KEYS, host_public=OTHER.host_public)
    with pytest.raises(ProtocolError, match="host key is not the one made for this run"):
        ssh.connect(crashed.ssh_port, impostor, soon(), crashed.watch)
    stranger = dataclasses.replace(KEYS, client_private=OTHER.client_private)
    with pytest.raises(ProtocolError, match="the SSH session broke"):
        ssh.connect(crashed.ssh_port, stranger, soon(), crashed.watch)
    with ssh.connect(crashed.ssh_port, KEYS, soon(), crashed.watch) as session:
        assert session.run("cat /proc/sys/kernel/ostype", soon()) == b"Linux\n"
    processes = (psutil.Process(crashed.pid), psutil.Process())
    listening = {
        (one.laddr.ip, one.laddr.port)
        for process in processes
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN or one.type is socket.SOCK_DGRAM
    }
    assert listening == {("127.0.0.1", crashed.ssh_port)}


def test_it_has_nothing_open_for_writing_but_its_own(crashed: Vm) -> None:
    run_dir = crashed.spec.run_dir.resolve()
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
    written = []
    for entry in Path(f"/proc/{crashed.pid}/fd").iterdir():
        if stat.S_ISREG(os.stat(entry).st_mode):
            info = dict(
                line.split(":", 1) for line in (entry.parents[1] / "fdinfo" / entry.name).read_text().splitlines()
            )
            if int(info["flags"], 8) & os.O_ACCMODE != os.O_RDONLY:
                written.append(os.readlink(entry))
    assert any(path.startswith("/memfd:rig-ram") for path in written)
    assert [path for path in written if not path.startswith(("/memfd:rig-", f"{run_dir}/"))] == []
