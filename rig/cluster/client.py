"""`rig matrix --cluster`: cells run by the workers that a scheduler has."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rig.cluster.address import Address, require_engine
from rig.cluster.link import POLL, Link, no_worker
from rig.cluster.parcel import Gather, Parcel, gathered
from rig.errors import Cancelled
from rig.model import Options, RunPlan
from rig.pool import Capacity, Finished
from rig.progress import Progress
from rig.report.wording import plural

T = TypeVar("T")


class Engine:
    """Runs cells on the cluster. capacity: of all machines that were there at the start."""

    def __init__(self, runner: asyncio.Runner, link: Link, options: Options, gather: Gather) -> None:
        self._runner, self._link, self._options, self._gather = runner, link, options, gather
        machines = link.machines()
        self.capacity = Capacity(sum(m.cpus for m in machines), sum(m.memory for m in machines))

    def execute(
        self, plans: Sequence[RunPlan], remarks: Mapping[str, Any], progress: Progress, cancel: threading.Event
    ) -> list[Finished | None]:
        """As rig.batch.Execute says.

        :raise MachineError: the scheduler is gone, or for too long no worker was there
        """
        from rig.cluster.drive import Drive  # needs the engine: connected()

        drive = Drive(self._link, self._options, remarks, self._gather, progress, cancel)
        return self._runner.run(drive.run(plans))


@contextlib.contextmanager
def connected(
    address: Address, options: Options, cancel: threading.Event, gather: Gather | None = None
) -> Iterator[Engine]:
    """gather: by default what rig.prepare gathers.

    :raise RequestError: Dask distributed is not installed, or what answers is no scheduler of the rig
    :raise MachineError: nothing answers, it is another's, or no worker comes
    :raise Cancelled: before the first cell
    """
    require_engine()
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what counts is said by the rig
    link = Link(address, lambda text: print(f"rig: {text}", file=sys.stderr, flush=True))
    with asyncio.Runner() as runner:
        try:
            runner.run(_unless(cancel, link.open()))
            runner.run(_unless(cancel, _first_worker(link, options.deadline)))
            machines = link.machines()
            cpus = plural(sum(machine.cpus for machine in machines), "CPU", "CPUs")
            count = plural(len(machines), "machine", "machines")
            print(f"rig: {count} at {address.text}, with {cpus} for guests", file=sys.stderr)
            yield Engine(runner, link, options, gather or _gather(cancel))
        finally:
            runner.run(link.close())


async def _first_worker(link: Link, seconds: float) -> None:
    """:raise MachineError: none came"""
    if link.places:
        return
    print(f"rig: waiting for a worker at {link.address.text}", file=sys.stderr, flush=True)
    try:
        async with asyncio.timeout(seconds):
            while not link.places:
                event = await link.events.get()
        link.events.put_nowait(event)
    except TimeoutError:
        raise no_worker(link, seconds) from None


async def _unless(cancel: threading.Event, work: Coroutine[Any, Any, T]) -> T:
    """:raise Cancelled: `cancel` was set first"""
    task = asyncio.create_task(work)
    while not task.done():
        if cancel.is_set():
            task.cancel()
            raise Cancelled("cancelled: nothing was run")
        await asyncio.wait([task], timeout=POLL)
    return task.result()


def _gather(cancel: threading.Event) -> Gather:
    """What a cell is made of, by this machine's cache; fetched and built where it isn't there."""
    from rig import ingredients, prepare
    from rig.guest.packages import PackageCache

    def gather(plan: RunPlan, tell: Callable[[str], None]) -> Parcel:
        cache = PackageCache(progress=tell)
        root = cache.cache.root
        return gathered(ingredients.record(prepare.gather(plan, cache, cancel), root, ""), root)

    return gather
