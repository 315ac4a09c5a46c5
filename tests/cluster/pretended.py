"""A worker whose runs are pretended: `python -m tests.cluster.pretended ADDRESS NAME STORE MARKS [CA CERT KEY]`.

What a run does is the first word of its scenario's description. Each leaves files in MARKS that say what it did.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import types
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rig import ingredients
from rig.cluster import address
from rig.cluster.machine import Machine, rig_id
from rig.errors import Cancelled
from rig.evidence.writer import EvidenceWriter, to_json
from rig.facts import Facts
from rig.guest.cache import default_root
from rig.model import Options, RunPlan, RunResult
from tests.test_pool import make_result

MARKS = "RIG_TEST_MARKS"
PASS, DIE, WAIT, TAMPER = "pass", "die", "wait", "tamper"
PLENTY = 10_000  # MiB: less than the largest guest needs


def mark(plan: RunPlan, what: str, text: object) -> None:
    Path(os.environ[MARKS], f"{plan.guest.name}.{what}.{uuid.uuid4().hex}").write_text(str(text))


def run(
    plan: RunPlan, options: Options, listener: Callable[[str], None], stop: threading.Event
) -> tuple[RunResult, Path]:
    """As rig.conductor.run."""
    listener("boot")
    what = plan.scenario.description
    mark(plan, "began", os.getpid())
    if what == DIE:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == WAIT and "ended_workers" not in options.remarks:
        _wait(plan, options, stop)
    assert options.repeat is not None
    if what == TAMPER:
        options.repeat.ingredients.kernel.bzimage.chmod(0o644)
        options.repeat.ingredients.kernel.bzimage.write_text("tampered with")
    made_of = options.repeat.ingredients
    manifest = ingredients.record(made_of, default_root(), "1f", options.repeat.brought)
    result = replace(make_result(plan), environment=dict(options.remarks))
    writer = EvidenceWriter(options.results, plan.slug)
    writer.write("run.json", to_json(Facts("0", plan, manifest=manifest)))
    writer.write("result.json", to_json(result))
    return result, writer.finish()


def _wait(plan: RunPlan, options: Options, stop: threading.Event) -> None:
    """With something that runs as QEMU does, until it is cancelled."""
    from rig.vm.qemu import launch

    guest = launch(["sleep", "600"], (), options.results / "log")
    mark(plan, "guest", guest.pid)
    try:
        stop.wait()
    finally:
        guest.kill()
        guest.wait()
    mark(plan, "stopped", os.getpid())
    raise Cancelled("stopped")


def dask_setup(_worker: object) -> None:
    """Called by Dask in each worker process."""
    import rig

    module = types.ModuleType("rig.conductor")
    vars(module).update(run=run)
    sys.modules["rig.conductor"] = module
    rig.conductor = module


def main(scheduler: str, name: str, store: str, marks: str, *tls: str) -> None:
    from rig.cluster import worker

    os.environ[MARKS] = marks
    files: Any = map(Path, tls)
    where = address.parse(scheduler, address.tls_of(*files) if tls else None)
    machine = Machine(name, name, 1, PLENTY, rig_id(), "QEMU", "tcg")
    here = address.LOOPBACK
    announce = lambda: print("ready", flush=True)  # noqa: E731
    asyncio.run(worker.serve(where, here, machine, Path(store), announce, ["tests.cluster.pretended"]))


def start(scheduler: str, name: str, directory: Path, *tls: Path) -> subprocess.Popen[str]:
    """One as a process, ready when its stdout says so."""
    marks = directory / "marks"
    marks.mkdir(exist_ok=True)
    words = [scheduler, name, directory / f"store-{name}", marks, *tls]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.pretended", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=(directory / f"{name}.err").open("w"),
        text=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
