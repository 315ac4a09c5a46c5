"""`rig matrix --cluster`: the connection to a scheduler, and the workers that it knows of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rig.cluster.address import Address, not_ours, require_engine, security
from rig.cluster.lab import Place
from rig.cluster.machine import Machine, rig_id
from rig.cluster.parcel import Gather, Parcel, gathered
from rig.errors import Cancelled, MachineError
from rig.model import Options, RunPlan
from rig.pool import Capacity, Finished
from rig.progress import Progress
from rig.report.wording import plural

T = TypeVar("T")
POLL = 0.2  # seconds: a threading.Event can't be awaited
CONNECT_SECONDS = 10
# What happens, as Link.events has it.
JOINED, LEFT, SAID = "joined", "left", "said"
ALL = "all"  # Dask's topic on which workers come and go


class Link:
    """A connection: what comes over it is put into `events` as (what, of what, more).

    (JOINED, worker, Place)  (LEFT, worker, whether it was asked to)  (SAID, key of a task, text)
    """

    def __init__(self, address: Address, tell: Callable[[str], None]) -> None:
        self.address = address
        self.events: asyncio.Queue[tuple[str, str, Any]] = asyncio.Queue()
        self.places: dict[str, Place] = {}  # by worker
        self._tell = tell
        self._rig = rig_id()
        self._leaving: set[str] = set()
        self._refused: set[str] = set()  # machines that were spoken of
        self._tasks: set[asyncio.Task[None]] = set()
        self._kept: set[str] = set()  # hashes that the scheduler has
        self._sending = asyncio.Lock()

    async def open(self) -> None:
        """:raise MachineError: no scheduler answers. RequestError: it is another client's, or not a rig's"""
        import distributed

        from rig.cluster.worker import LEAVING

        try:
            self.client = await distributed.Client(  # type: ignore[no-untyped-call]
                self.address.text,
                asynchronous=True,
                security=security(self.address.tls),
                timeout=CONNECT_SECONDS,
                set_as_default=False,
            )
        except (OSError, TimeoutError) as problem:
            raise MachineError(
                f"no scheduler answers at {self.address.text}: {problem}", hint="`rig cluster scheduler` starts one"
            ) from problem
        mine = await self.client.scheduler.rig_claim(client=self.client.id)
        if mine is None:
            raise not_ours(self.address)
        if not mine:
            raise MachineError(f"another matrix runs on {self.address.text}", hint="wait for its end")
        self.topic = f"rig-{self.client.id}"
        self.client.subscribe_topic(ALL, self._on_change)
        self.client.subscribe_topic(LEAVING, self._on_leaving)
        self.client.subscribe_topic(self.topic, self._on_said)
        await self._meet(None)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if hasattr(self, "client"):
            await self.client.close()

    @property
    def connected(self) -> bool:
        return bool(self.client.status == "running")

    def machines(self) -> list[Machine]:
        return list({place.machine.id: place.machine for place in self.places.values()}.values())

    async def send(self, parcel: Parcel) -> None:
        """Have the scheduler keep the files that it lacks.

        :raise MachineError: it can't
        """
        async with self._sending:  # cells have most of their files in common
            new = sorted(parcel.files.keys() - self._kept)
            for sha256 in await self.client.scheduler.rig_lacks(sha256=new) if new else ():
                await self._put(sha256, parcel.files[sha256])
            self._kept |= parcel.files.keys()

    async def _put(self, sha256: str, path: Path) -> None:
        from rig.cluster.blobs import PIECE

        with path.open("rb") as file:
            size, offset = path.stat().st_size, 0
            while True:
                piece = file.read(PIECE)
                if problem := await self.client.scheduler.rig_put(
                    client=self.client.id, sha256=sha256, offset=offset, piece=piece, size=size
                ):
                    raise MachineError(f"{path} could not be sent to {self.address.text}: {problem}")
                offset += len(piece)
                if offset >= size:
                    return

    # ------------------------------------------------------------ who is there

    def _on_change(self, event: tuple[float, dict[str, Any]]) -> None:
        message = event[1]
        worker = message.get("worker", "")
        if message["action"] == "add-worker":
            task = asyncio.create_task(self._meet([worker]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif message["action"] == "remove-worker" and self.places.pop(worker, None):
            self.events.put_nowait((LEFT, worker, worker in self._leaving))

    def _on_leaving(self, event: tuple[float, str]) -> None:
        self._leaving.add(event[1])

    def _on_said(self, event: tuple[float, dict[str, str]]) -> None:
        self.events.put_nowait((SAID, event[1]["key"], event[1]["text"]))

    async def _meet(self, workers: list[str] | None) -> None:
        """Ask workers what they are. None: all."""
        from rig.cluster.cell import describe

        answers = await self.client.run(describe, workers=workers, on_error="return")
        for worker, answer in answers.items():
            if not isinstance(answer, Machine) or answer.rig != self._rig:
                self._refuse(worker, answer)
            elif worker not in self.places:
                place = self.places[worker] = Place(worker, answer)
                self.events.put_nowait((JOINED, worker, place))

    def _refuse(self, worker: str, answer: object) -> None:
        """It gets no cells, and the user is told why, once for each machine."""
        name, why = (worker, f"not started by `rig cluster worker` ({answer})")
        if isinstance(answer, Machine):
            name, why = answer.name, f"its rig is {answer.rig}, this one is {self._rig}"
        if name not in self._refused:
            self._refused.add(name)
            self._tell(f"{name} gets no cells: {why}")


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
        from rig.cluster.drive import Drive

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


def no_worker(link: Link, seconds: float) -> MachineError:
    return MachineError(
        f"for {seconds:.0f} s there was no worker at {link.address.text}",
        hint=f"on each machine that is to run cells: rig cluster worker {link.address.text}",
    )


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
