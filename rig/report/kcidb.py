"""KCIDB's I/O format, version 5 (kcidb-io, kcidb_io/schema/v05_00.py): what kernelci.org's database takes. Pure.

    checkout    one a kernel image. Which source it was made of is not known here: no commit, only name and release
    build       the same again, with its architecture
    test        one a run, path kexec.SCENARIO, and one a check, path kexec.SCENARIO.CHECK

| here | status |
|---|---|
| passed, failed | PASS, FAIL |
| skipped | SKIP |
| a check that could not judge | ERROR |
| a check of a run that broke off, and that run: guest, QEMU or machine | MISS |

KCIDB is about kernels. A scenario that expects a failure damages its kernel on purpose, or runs one that was built
to misbehave: what it tells is about the rig. Such runs are left out, and so are those without a kernel to report on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from rig.errors import RequestError
from rig.model import Arch, KernelIdentity, RunResult, Verdict
from rig.report.cases import Case, Status, check_cases, run_case
from rig.report.wording import printable, printable_lines

ORIGIN = re.compile(r"[a-z0-9_]+")
VERSION = {"major": 5, "minor": 0}  # nothing later is used, so that older readers take it
ARCHITECTURES = {Arch.I386: "i386", Arch.AMD64: "x86_64"}  # as the kernel calls them
EXCERPT = 16384  # characters of a log
_STATUS = {Status.PASSED: "PASS", Status.FAILED: "FAIL", Status.ERROR: "ERROR", Status.SKIPPED: "SKIP"}


def left_out(result: RunResult) -> str:
    """Why a run is not reported; empty when it is."""
    if result.expect is Verdict.FAIL:
        return "expects a failure: it tests the rig, not the kernel"
    return "" if result.kernel.sha256 else "broke off, or was skipped, before it had a kernel"


def kcidb(results: Sequence[tuple[RunResult, Arch]], origin: str) -> dict[str, Any]:
    """The document of all runs that are not `left_out`. origin: the name that the database knows the sender by.

    :raise RequestError: no such name
    """
    if not ORIGIN.fullmatch(origin):
        raise RequestError(
            f"{origin!r} is no KCIDB origin", hint="lower-case letters, digits and _ only: --kcidb-origin"
        )
    told = [(result, arch) for result, arch in results if not left_out(result)]
    kernels = {result.kernel.sha256: (result.kernel, arch) for result, arch in told}
    return {
        "version": VERSION,
        "checkouts": [_checkout(kernel, origin) for kernel, _ in kernels.values()],
        "builds": [_build(kernel, arch, origin) for kernel, arch in kernels.values()],
        "tests": [test for result, _ in told for test in _tests(result, origin)],
    }


def _checkout(kernel: KernelIdentity, origin: str) -> dict[str, Any]:
    return {
        "id": f"{origin}:{kernel.sha256}",
        "origin": origin,
        "comment": printable(
            f"{kernel.release}, known to the rig as {kernel.name}; a kernel image, its source unknown"
        ),
    }


def _build(kernel: KernelIdentity, arch: Arch, origin: str) -> dict[str, Any]:
    return {
        "id": f"{origin}:{kernel.sha256}",
        "checkout_id": f"{origin}:{kernel.sha256}",
        "origin": origin,
        "architecture": ARCHITECTURES[arch],
        "comment": printable(kernel.release),
        "misc": {"name": printable(kernel.name), "release": printable(kernel.release), "sha256": kernel.sha256},
    }


def _tests(result: RunResult, origin: str) -> Iterator[dict[str, Any]]:
    """The run, then its checks. A run that is reported twice has the same ids twice."""
    phases = tuple((phase.name, phase.seconds) for phase in result.phases)
    own = hashlib.sha256(repr((result.id, result.started, result.kernel.sha256, phases)).encode()).hexdigest()[:32]
    broke_off = result.verdict is Verdict.ERROR and result.error is not None
    path = f"kexec.{_node(result.scenario)}"
    common = {"build_id": f"{origin}:{result.kernel.sha256}", "origin": origin, "environment": _environment(result)}
    yield {
        **common,
        "id": f"{origin}:{own}",
        "path": path,
        "duration": round(sum(seconds for _, seconds in phases), 3),
        **_judged(run_case(result), broke_off),
        **({"start_time": result.started} if result.started else {}),
        **_excerpt(result),
    }
    for case in check_cases(result):
        ident = {"id": f"{origin}:{own}.{printable(case.name)}", "path": f"{path}.{_node(case.name)}"}
        yield {**common, **ident, **_judged(case, broke_off)}


def _judged(case: Case, broke_off: bool) -> dict[str, Any]:
    status = "MISS" if broke_off and case.status is Status.ERROR else _STATUS[case.status]
    return {"status": status, "comment": case.message}


def _node(name: str) -> str:
    """A node of a test's path: letters, digits, _ and -."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)


def _environment(result: RunResult) -> dict[str, Any]:
    known = {name: printable(str(result.environment[name])) for name in ("qemu", "accel") if name in result.environment}
    crash = result.crash_kernel
    return {
        "comment": printable(f"guest {result.guest} under QEMU, crash kernel {crash.release}"),
        "misc": {**known, "guest": printable(result.guest), "crash_kernel_sha256": crash.sha256},
    }


def _excerpt(result: RunResult) -> dict[str, Any]:
    if result.error is None or not result.error.console:
        return {}
    return {"log_excerpt": "\n".join(printable_lines(result.error.console))[-EXCERPT:]}
