"""Running a kernel's make: progress while it runs, its last words when it fails, nothing left when it is stopped."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rig.errors import Cancelled, MachineError

POLL = 0.2  # seconds: the longest that a cancellation goes unnoticed
_GRACE = 10.0  # seconds that make gets to remove half-written files
_STEP = re.compile(r"^  [A-Z][A-Z0-9_]* +\S")  # `  CC      kernel/fork.o`: something is being made
_KEPT_LINES = 15  # of what the tools said, in an error

# The commands of a kernel build, and the Debian packages that have them and what it includes.
TOOLS: Mapping[str, str] = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "patch": "patch",
    "tar": "tar",
    "xz": "xz-utils",
    "setpriv": "util-linux",
}
HEADERS: Mapping[str, str] = {"/usr/include/stdio.h": "libc6-dev", "/usr/include/gelf.h": "libelf-dev"}


@dataclass(frozen=True)
class Progress:
    """How far a build is. steps: files made so far, those of earlier attempts too. seconds: of this one."""

    steps: int
    seconds: float


def lacking_packages() -> list[str]:
    """Debian packages that this machine lacks for building a kernel."""
    lacking = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    return lacking + [package for header, package in HEADERS.items() if not Path(header).exists()]


def environment(caller: Mapping[str, str]) -> dict[str, str]:
    """What make sees of the caller's environment: flags and settings of other builds must not get into this one.

    The build's time, user and host are fixed: the same source and configuration give the same image, byte for byte
    (Documentation/kbuild/reproducible-builds.rst).
    """
    kept = {key: value for key, value in caller.items() if key in ("PATH", "HOME", "TMPDIR")}
    return kept | {
        "LC_ALL": "C.UTF-8",
        "KBUILD_BUILD_TIMESTAMP": "Mon May  1 00:00:00 UTC 2006",
        "KBUILD_BUILD_USER": "rig",
        "KBUILD_BUILD_HOST": "rig",
        "KBUILD_BUILD_VERSION": "1",
    }


def run(
    argv: Sequence[str], tree: Path, log: Path, cancel: threading.Event, on_progress: Callable[[Progress], None]
) -> Progress:
    """Run make, or what prepares for it, to its end in `tree`; all it says goes to `log` (appended).

    Returns how much was made, and how long it took.

    on_progress: called about every POLL seconds.

    :raise MachineError: it failed; carries what the tools said last
    :raise Cancelled: `cancel` was set; make and all it started are gone, half-written files too
    """
    started, rest = time.monotonic(), b""
    before = log.read_text(errors="replace") if log.exists() else ""
    steps = _steps(before.splitlines())
    with log.open("ab") as out, _started(argv, tree) as process, selectors.DefaultSelector() as selector:
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if cancel.is_set():
                raise Cancelled("stopped on request")
            if selector.select(POLL):
                data = os.read(process.stdout.fileno(), 1 << 16)
                if not data:
                    break
                out.write(data)
                *lines, rest = (rest + data).split(b"\n")
                steps += _steps(line.decode(errors="replace") for line in lines)
            on_progress(Progress(steps, time.monotonic() - started))
        status = process.wait()
    if status:
        words = last_words(log.read_text(errors="replace").removeprefix(before))
        raise MachineError(
            f"{Path(argv[0]).name} failed (exit status {status}):\n{words}", hint=f"all that it said: {log}"
        )
    return Progress(steps, time.monotonic() - started)


def _steps(lines: Iterable[str]) -> int:
    return sum(1 for line in lines if _STEP.match(line))


def last_words(said: str) -> str:
    """The last lines that tell of a trouble rather than of a file being made: other jobs may go on after the error."""
    lines = [line for line in said.strip().splitlines() if not _STEP.match(line)]
    return "\n".join(lines[-_KEPT_LINES:]) or "(it said nothing)"


@contextlib.contextmanager
def _started(argv: Sequence[str], tree: Path) -> Iterator[subprocess.Popen[bytes]]:
    """make in a session of its own: Ctrl-C on the terminal is the rig's alone. At the end the whole group is gone."""
    process = subprocess.Popen(
        # make ends its jobs on SIGTERM. It gets one even when the rig is killed (prctl(2), PR_SET_PDEATHSIG).
        ["setpriv", "--pdeathsig", "TERM", "--", "nice", *argv],
        cwd=tree,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(os.environ),
        start_new_session=True,
    )
    with process:
        try:
            yield process
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """All of the group, make first in its own way: it removes what is half written."""
    _signal_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    _signal_group(process.pid, signal.SIGKILL)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(group, number)
