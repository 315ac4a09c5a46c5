"""Dumps opened by the tools that people open dumps with, crash(8) and drgn, which share nothing with the rig.

Of a kernel built from source: it comes with the types that readers need. crash 8.0.2, Debian 12's, wants an i386 kernel
to have a symbol sys_open, which is called __ia32_sys_open since Linux 5.7: a copy of the vmlinux gets one.
"""

from __future__ import annotations

import re
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import drgn
import pytest

from rig.catalog import load
from rig.evidence import VMCORE
from rig.evidence.reader import Evidence
from rig.guest.packages import PackageCache
from rig.model import Arch
from rig.prepare import obtain
from tests.runs.conftest import rig

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]

KERNEL = "built-6.1"
CALLS = ["panic", "__handle_sysrq", "write_sysrq_trigger", "vfs_write"]


@dataclass(frozen=True)
class Dump:
    """evidence: of the run that took it. pid: of the task that panicked, as the kernel itself noted it."""

    evidence: Evidence
    arch: Arch
    vmlinux: Path

    @property
    def pid(self) -> int:
        return self.evidence.vmcore.prstatus[0].pid


def taken(scenario: str, guest: str, results: Path) -> Dump:
    done = rig("run", scenario, "--guest", guest, "--kernel", KERNEL, "--keep-dump", "--json", "--results", results)
    assert done.status == 0, done.err
    catalogue = load(())
    files = obtain(catalogue.kernels[KERNEL], catalogue.guests[guest], PackageCache(), threading.Event())
    assert files.vmlinux is not None
    return Dump(Evidence(done.directories[guest]), files.arch, files.vmlinux)


def with_sys_open(vmlinux: Path, folder: Path) -> Path:
    copy = folder / "vmlinux"
    subprocess.run(["objcopy", "--add-symbol", "sys_open=.text:0,function,global", vmlinux, copy], check=True)
    return copy


def crash(dump: Dump, commands: str, folder: Path) -> str:
    """What crash prints for these commands. It comes from its package, with all of its libraries."""
    files = PackageCache().programs(dump.arch, {"/usr/bin/crash": "crash"}).files
    libraries = folder / "lib"
    libraries.mkdir()
    for path, file in files.items():
        (libraries / Path(path).name).symlink_to(file)
    [loader] = libraries.glob("ld-linux*")
    vmlinux = with_sys_open(dump.vmlinux, folder) if dump.arch is Arch.I386 else dump.vmlinux
    script = folder / "commands"
    script.write_text(f"{commands}\nquit\n")
    options = ["--library-path", libraries, libraries / "crash", "-s", "-i", script]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [loader, *map(str, options), vmlinux, dump.evidence.path / VMCORE],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Both ways to compress. Of an i386 kernel crash also reads what was freed after boot (vmlist, which is __initdata), and
# level 31 leaves that out.
@pytest.mark.parametrize(("scenario", "guest"), [("dump-zlib", "x86_64")])
def test_crash_finds_the_panicking_task_and_its_stack(scenario: str, guest: str, tmp_path: Path) -> None:
    dump = taken(scenario, guest, tmp_path)
    said = crash(dump, "bt", tmp_path)
    assert re.search(rf'^PID: {dump.pid} +TASK: \w+ +CPU: 0 +COMMAND: "sh"$', said, re.MULTILINE), said
    frames = re.findall(r"^ *#\d+ \[\w+\] (\S+) at ", said, re.MULTILINE)
    assert [name for name in frames if name in CALLS] == CALLS, said


# An ELF file this time. x86_64 only: drgn doesn't unwind i386 stacks.
def test_drgn_finds_them_too(tmp_path: Path) -> None:
    dump = taken("dump-makedumpfile", "x86_64", tmp_path)
    program = drgn.Program()
    program.set_core_dump(dump.evidence.path / VMCORE)
    program.load_debug_info([dump.vmlinux])
    thread = program.crashed_thread()
    assert (thread.tid, thread.object.comm.string_()) == (dump.pid, b"sh")
    frames = [frame.name for frame in thread.stack_trace()]
    assert [name for name in frames if name in CALLS] == CALLS, frames
