"""A guest that is held for its user, who has a debugger (the protocol, not gdb itself) and QMP."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest

from rig.vm.gdbstub import frame, take_packet
from tests.runs.conftest import ROOT, rig_command

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


class Debugger:
    """As much of gdb as it takes. It has QEMU number processes, as gdb does."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(path)
        self._buffer = b""
        assert "multiprocess+" in self.ask("qSupported:multiprocess+")

    def ask(self, packet: str) -> str:
        self._socket.sendall(b"+" + frame(packet.encode()))
        while True:
            reply, self._buffer = take_packet(self._buffer)
            if reply is not None:
                return reply.decode()
            self._buffer += self._socket.recv(65536)


def query_status(path: str) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(20)
        monitor.connect(path)
        stream: TextIO = monitor.makefile("rw")
        for command in ("qmp_capabilities", "query-status"):
            stream.write(json.dumps({"execute": command}))
            stream.flush()
        greeting, _, status = (json.loads(stream.readline()) for _ in range(3))
        assert "QMP" in greeting
        found: dict[str, Any] = status["return"]
        return found


@contextmanager
def held(checkpoint: str, guest: str, *words: str | Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A rig that holds a guest; the sockets for gdb and for QMP."""
    command = rig_command("run", *words, "--guest", guest, "--stop-at", checkpoint, "--json")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if line.startswith('{"held"'))
            attachment = json.loads(line)["held"]
            assert attachment["checkpoint"] == checkpoint
            target = next(word for word in shlex.split(attachment["gdb"]) if word.startswith("target remote "))
            yield process, target.split()[-1], shlex.split(attachment["qmp"])[-1]
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Press Enter. Exit status and result."""
    out, _ = process.communicate("\n")
    result: dict[str, Any] = json.loads(out)["runs"][0]["result"]
    return process.returncode, result


def test_a_guest_that_was_looked_at_goes_on_to_its_verdict(tmp_path: Path) -> None:
    with held("machine-kexec", "x86_64", "panic", "--results", tmp_path) as (process, gdb, qmp):
        debugger = Debugger(gdb)
        assert debugger.ask("?").startswith("T05thread:p01.01")
        assert len(debugger.ask("g")) > 256
        assert debugger.ask("D;1") == "OK"  # after which QEMU alone would let it run on
        assert query_status(qmp) == {"status": "debug", "singlestep": False, "running": False}
        status, result = finish(process)
    assert (status, result["verdict"]) == (0, "pass")
    told = result["environment"]["held"]
    assert (told["checkpoint"], told["debugger"], told["written"]) == ("machine-kexec", True, False)
    assert not Path(gdb).parent.exists()


def test_a_guest_that_was_let_run_on_is_not_judged(tmp_path: Path) -> None:
    with held("panic", "pae", "panic", "--results", tmp_path) as (process, gdb, _):
        debugger = Debugger(gdb)
        assert "<architecture>i386<" in debugger.ask("qXfer:features:read:target.xml:0,fff")
        before = debugger.ask("p8")  # eip
        assert debugger.ask("vCont;s:p1.1").startswith("T05")
        assert debugger.ask("p8") != before
        status, result = finish(process)
    assert (status, result["verdict"]) == (3, "error")
    assert "was let run on from panic" in result["error"]["message"]


def test_a_guest_at_its_shell_may_run_meanwhile(tmp_path: Path) -> None:
    with held("second-kernel", "x86_64", "plain-kexec", "--results", tmp_path) as (process, gdb, qmp):
        debugger = Debugger(gdb)
        assert debugger.ask("?").startswith("T")
        assert query_status(qmp)["running"] is False
        status, result = finish(process)
    assert (status, result["verdict"]) == (0, "pass")
