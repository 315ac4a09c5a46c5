"""The connection of `rig matrix --cluster` to a scheduler: which workers there are, and what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rig.cluster.address import Address, not_ours, security
from rig.cluster.lab import Place
from rig.cluster.machine import Machine, rig_id
from rig.cluster.parcel import Parcel
from rig.errors import MachineError

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


def no_worker(link: Link, seconds: float) -> MachineError:
    return MachineError(
        f"for {seconds:.0f} s there was no worker at {link.address.text}",
        hint=f"on each machine that is to run cells: rig cluster worker {link.address.text}",
    )
