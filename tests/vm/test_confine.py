"""What is refused to a QEMU, tried by a program that is confined like one, and by QEMU itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rig.errors import GuestDied, ProtocolError
from rig.vm import confine
from rig.vm.deadline import Deadline
from rig.vm.machine import MachineSpec
from rig.vm.qemu import Vm
from tests.vm.conftest import LOOP, say

MakeSpec = Callable[..., MachineSpec]
needs_landlock = pytest.mark.skipif(not confine.landlock(), reason="this kernel has no Landlock")

# Tries what a guest that had got the better of QEMU might; prints for each try what came of it.
INTRUDER = r"""
import errno, json, os, signal, socket, sys
own, other, port, parent = sys.argv[1:]
def attempt(what):
    try:
        what()
    except OSError as problem:
        return errno.errorcode[problem.errno]
    return "done"
def bind(number):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", number))
def connect():
    socket.create_connection(("127.0.0.1", int(port)), 5).close()
print(json.dumps({
    "write own": attempt(lambda: open(own + "/new", "w").close()),
    "write other": attempt(lambda: open(other + "/new", "w").close()),
    "overwrite other": attempt(lambda: open(other + "/kept", "r+").close()),
    "remove other": attempt(lambda: os.unlink(other + "/kept")),
    "link into own": attempt(lambda: os.symlink(other, own + "/link")),
    "write null": attempt(lambda: open(os.devnull, "w").close()),
    "connect": attempt(connect),
    "bind a port": attempt(lambda: bind(int(port))),
    "bind any port": attempt(lambda: bind(0)),
    "signal": attempt(lambda: os.kill(int(parent), 0)),
    "parent's files": attempt(lambda: os.readlink(f"/proc/{parent}/fd/0")),
    "parent's secrets": attempt(lambda: open(f"/proc/{parent}/environ").read()),
    "capabilities": next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")),
    "environment": sorted(os.environ),
    "umask": os.umask(0),
}))
"""


@pytest.fixture
def port() -> Iterator[int]:
    """Where somebody listens, on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "kept").touch()
    return folder


def intrude(own: Path, other: Path, port: int, *launcher: str) -> dict[str, Any]:
    own.mkdir(exist_ok=True)
    words = (own, other, port, os.getpid())
    command = [*launcher, sys.executable, "-I", "-S", "-c", INTRUDER, *map(str, words)]
    done = subprocess.run(command, env={**os.environ, "RIG_SECRET": "x"}, capture_output=True, text=True, timeout=30)
    found: dict[str, Any] = json.loads(done.stdout or done.stderr)
    return found


@needs_landlock
def test_nothing_but_its_own_directory(tmp_path: Path, other: Path, port: int) -> None:
    abi, own = confine.landlock(), tmp_path / "own"
    own.mkdir()
    found = intrude(own, other, port, sys.executable, "-I", "-S", confine.__file__, str(own), "--")
    assert found["write own"] == found["write null"] == found["bind any port"] == "done"
    refused = ["write other", "overwrite other", "remove other", "link into own", "parent's files", "parent's secrets"]
    refused += ["connect", "bind a port"] if abi >= 4 else []
    assert {key: found[key] for key in refused} == dict.fromkeys(refused, "EACCES")
    assert found["signal"] == ("EPERM" if abi >= 6 else "done")
    assert (other / "kept").exists()
    assert "RIG_SECRET" not in found["environment"]
    assert found["umask"] == 0o077
    assert int(found["capabilities"], 16) & ~0b110 == 0  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def test_the_intruder_gets_through_where_nothing_holds_it(tmp_path: Path, other: Path, port: int) -> None:
    """So that what the other test sees is the confinement's doing."""
    found = intrude(tmp_path / "own", other, port)
    assert found.pop("bind a port") == "EADDRINUSE"
    assert "RIG_SECRET" in found.pop("environment")
    del found["umask"], found["capabilities"]
    assert set(found.values()) == {"done"}


@pytest.mark.parametrize(
    ("abi", "known"),
    [
        (1, (13, 0, 0)),  # Linux 5.13: LANDLOCK_ACCESS_FS_EXECUTE to MAKE_SYM, the first 13, but for three
        (2, (14, 0, 0)),  # 5.19: REFER
        (3, (15, 0, 0)),  # 6.2: TRUNCATE
        (5, (15, 2, 0)),  # 6.7: BIND_TCP and CONNECT_TCP; 6.10: IOCTL_DEV, which is left alone
        (6, (15, 2, 2)),  # 6.12: both scopes
    ],
)
def test_older_kernels_are_asked_for_what_they_know(abi: int, known: tuple[int, int, int]) -> None:
    """A bit that the kernel does not know makes it refuse the whole ruleset."""
    files, net, scoped = confine.handled(abi)
    assert (files.bit_length(), net.bit_length(), scoped.bit_length()) == known
    assert files & 0b1101 == 0  # EXECUTE, READ_FILE, READ_DIR: QEMU has to be started, and to read


@pytest.mark.vm
@pytest.mark.timeout(60)
def test_a_running_qemu_is_confined(make_spec: MakeSpec, tmp_path: Path, other: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with Vm(make_spec(say(b"ready\n") + LOOP, monitor=private / "qmp")) as vm:
        vm.console.expect(["ready"], Deadline.after(15, "the test's guest"))
        for task in Path(f"/proc/{vm.pid}/task").iterdir():
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
            assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1"), task
            assert int(status["CapEff"], 16) & ~0b110 == 0
        listening = [one.laddr for one in psutil.Process(vm.pid).net_connections("inet")]
        assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", vm.ssh_port)]
        assert (private / "qmp").stat().st_mode & 0o077 == 0
        if confine.landlock():
            with pytest.raises(ProtocolError, match="Permission denied"):
                vm.qmp.execute("pmemsave", {"val": 0, "size": 16, "filename": str(other / "kept")})
            assert (other / "kept").stat().st_size == 0
        with pytest.raises(GuestDied):
            vm.qmp.execute("migrate", {"uri": f"exec:touch {other}/new"})
        assert vm.ending
        assert f"status {-signal.SIGSYS}" in vm.ending.message  # by the filter (seccomp(2), SECCOMP_RET_KILL_PROCESS)
    assert not (other / "new").exists()
