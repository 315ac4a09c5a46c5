"""A machine that runs cells: a worker process for each of its CPUs, started again by Dask when it dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distributed import Nanny
from distributed.core import rpc

from rig.cluster.address import Address, not_ours, security
from rig.cluster.cell import Cells
from rig.cluster.machine import Machine
from rig.cluster.scheduler import PAGES
from rig.cluster.serve import ended_by_signal
from rig.errors import MachineError

LEAVING = "rig-leaving"  # topic: addresses of workers that end because they were asked to
CONNECT_SECONDS = 10  # that the scheduler may take to answer at the start
START_SECONDS = 120  # that a worker process may take until it is registered: it starts again while guests have the CPUs


async def serve(
    scheduler: Address,
    host: str,
    machine: Machine,
    store: Path,
    announce: Callable[[], None],
    preload: Sequence[str] = (),
) -> None:
    """Until Ctrl-C or SIGTERM. host: that the workers listen on. store: directory for files by hash, and for scratch.

    preload: modules that each worker process imports first.

    :raise RequestError: what answers there is no scheduler of the rig
    :raise MachineError: nothing answers, or the scheduler is gone
    """
    ended = ended_by_signal()
    await _require(scheduler)
    options: dict[str, Any] = {
        "nthreads": 1,  # one cell at a time
        "memory_limit": 0,  # Dask would count the worker's memory without its guests'
        "host": host,
        "security": security(scheduler.tls),
        "local_directory": str(store / "scratch"),
        "plugins": (Cells(machine, store),),
        "preload": list(preload),
        "death_timeout": START_SECONDS,
        "dashboard_address": PAGES,
        "config": {"distributed.worker.profile.enabled": False},  # it looks at the running cell 100 times a second
    }
    nannies = [Nanny(scheduler.text, name=f"{machine.name}-{machine.id}-{n}", **options) for n in range(machine.cpus)]
    async with contextlib.AsyncExitStack() as stack:
        for nanny in nannies:
            stack.push_async_callback(nanny.close)
        try:
            await asyncio.gather(*nannies)
        except Exception as problem:  # Dask raises what its processes raised, of any kind
            raise MachineError(f"no worker could be started for {scheduler.text}: {problem}") from problem
        announce()
        gone = [asyncio.create_task(nanny.finished()) for nanny in nannies]  # type: ignore[no-untyped-call]
        asked = asyncio.create_task(ended.wait())
        done, left = await asyncio.wait([asked, *gone], return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        if asked not in done:
            raise MachineError(
                f"the scheduler {scheduler.text} is gone, or a worker process could not be started again",
                hint="start it, if it is gone, and this worker again",
            )
        for nanny in nannies:
            with contextlib.suppress(OSError):  # the scheduler may be gone meanwhile
                await nanny.scheduler.log_event(topic=LEAVING, msg=nanny.worker_address)


async def _require(scheduler: Address) -> None:
    """A nanny would ask for ever.

    :raise RequestError: what answers is no scheduler of the rig
    :raise MachineError: nothing answers
    """
    arguments = security(scheduler.tls).get_connection_args("worker")  # type: ignore[no-untyped-call]
    try:
        async with rpc(  # type: ignore[no-untyped-call]
            scheduler.text, connection_args=arguments, timeout=CONNECT_SECONDS
        ) as there:
            answer = await there.rig_lacks(sha256=[])
    except OSError as problem:
        raise MachineError(
            f"no scheduler answers at {scheduler.text}: {problem}",
            hint="does `rig cluster scheduler` run there, and with the same TLS authority?",
        ) from problem
    if answer is None:
        raise not_ours(scheduler)
