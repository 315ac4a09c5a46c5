"""One go: some cells, from the first that is sent to the last that is back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distributed import KilledWorker
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError

from rig import pool
from rig.attempt import failure
from rig.cluster.lab import Lab, Place
from rig.cluster.link import JOINED, LEFT, POLL, SAID, Link, no_worker
from rig.cluster.parcel import Gather, place
from rig.errors import Cancelled, MachineError, RigError
from rig.matrix import ENDED_WORKERS
from rig.model import Failure, Options, RunPlan
from rig.pool import Finished
from rig.progress import NOTE, Progress

ENDED = "ended"  # an event, beside those of Link: the task of the cell on this worker is done
GO_ON = "start it and the workers again; the same command with --resume goes on from here"
WORKER = "worker"  # in a result's environment: the machine that ran it


class WorkerGone(Exception):
    """The worker ended before its cell did, or can't be reached. No error of the rig's: the cell is run elsewhere.

    blame: whether the cell may have done it.
    """

    def __init__(self, *, blame: bool) -> None:
        super().__init__(blame)
        self.blame = blame


class Drive:
    """The mutable state of one go. All of it is touched by the event loop's thread only."""

    def __init__(
        self,
        link: Link,
        options: Options,
        remarks: Mapping[str, Any],
        gather: Gather,
        progress: Progress,
        cancel: threading.Event,
    ) -> None:
        self._link, self._gather, self._progress, self._cancel = link, gather, progress, cancel
        self._options = replace(options, remarks={**options.remarks, **remarks})
        self._tasks: dict[str, asyncio.Task[Finished]] = {}  # by worker
        self._keys: dict[str, str] = {}  # of Dask tasks, by worker; until their ends are seen: their words come before

    async def run(self, plans: Sequence[RunPlan]) -> list[Finished | None]:
        """As rig.batch.Execute says."""
        self._plans = plans
        self._outcomes: list[Finished | None] = [None] * len(plans)
        for number, plan in enumerate(plans):
            if plan.skip:
                self._progress.start(plan.id)
                self._keep(number, self._record(plan, None))
        wanted = [number for number, plan in enumerate(plans) if not plan.skip]
        self._numbers = wanted
        self._lab = Lab([plans[number] for number in wanted], self._link.places.values())
        self._alone_since = asyncio.get_running_loop().time()
        try:
            self._begin()
            while not self._lab.finished and not self._cancel.is_set():
                await self._step()
                self._begin()
        finally:
            await self._end_all()
        return self._outcomes

    # ------------------------------------------------------------ what goes on

    def _begin(self) -> None:
        """Everything that can be begun now."""
        while begun := self._lab.begin():
            index, where = begun
            plan = self._plans[self._numbers[index]]
            self._progress.start(plan.id)
            task = self._tasks[where.worker] = asyncio.create_task(self._cell(index, plan, where))
            task.add_done_callback(functools.partial(self._tell_end, where.worker))
        if self._lab.idle and self._lab.machines:
            largest = max(machine.memory for machine in self._lab.machines)
            for index in self._lab.give_up():
                plan = self._plans[self._numbers[index]]
                lack = pool.lack(plan, largest)
                assert lack is not None
                self._progress.start(plan.id)
                self._keep(self._numbers[index], self._record(plan, lack))

    def _tell_end(self, worker: str, task: asyncio.Task[Finished]) -> None:
        self._link.events.put_nowait((ENDED, worker, task))

    async def _step(self) -> None:
        """Wait for something to happen, for a moment, and do what follows from it.

        :raise MachineError: the scheduler is gone, or for too long no worker was there
        """
        now = asyncio.get_running_loop().time()
        if self._lab.machines:
            self._alone_since = now
        if not self._link.connected:
            raise MachineError(f"the scheduler {self._link.address.text} is gone", hint=GO_ON)
        if now - self._alone_since > self._options.deadline:
            raise no_worker(self._link, self._options.deadline)
        try:
            async with asyncio.timeout(POLL):
                what, whom, more = await self._link.events.get()
        except TimeoutError:
            return
        if what == SAID:
            self._said(whom, more)
        elif what == ENDED and whom in self._tasks and self._tasks[whom] is more:
            self._ended(whom)
        elif what == JOINED and whom in self._link.places:  # and not gone again meanwhile
            self._lab.join(more)
        elif what == LEFT:
            self._keys.pop(whom, None)
            if task := self._tasks.pop(whom, None):
                task.cancel()
            self._lost(whom, asked=more)

    def _said(self, key: str, text: str) -> None:
        """A run's phase, or a note; of one that was given up meanwhile, nothing."""
        worker = next((worker for worker, known in self._keys.items() if known == key), None)
        if worker is not None:
            self._progress.say(self._plans[self._numbers[self._lab.running(worker)]].id, text)

    def _ended(self, worker: str) -> None:
        """Its cell has a result, or its worker is gone."""
        task = self._tasks.pop(worker)
        self._keys.pop(worker, None)
        gone = None if task.cancelled() else task.exception()
        if isinstance(gone, WorkerGone):
            self._lost(worker, asked=not gone.blame)
        else:
            self._keep(self._numbers[self._lab.end(worker)], task.result())

    def _lost(self, worker: str, *, asked: bool) -> None:
        """The worker is gone, by Dask's word or as its task says: one of them comes first, the other is no news."""
        lost = self._lab.leave(worker, blame=not asked)
        if lost is None:
            return
        index, again = lost
        plan, ended = self._plans[self._numbers[index]], self._lab.ended_on(index)
        if again:
            self._progress.say(plan.id, f"{NOTE}its worker has ended: it is run elsewhere")
            self._progress.end(plan.id, "worker lost")
            return
        trouble = MachineError(
            f"both workers that ran it ended with it, on {' and '.join(ended)}",
            hint="the kernel's log on these machines says whether memory ran out; `rig run` shows what it does alone",
        )
        self._keep(self._numbers[index], self._record(plan, trouble, {ENDED_WORKERS: ended}))

    # ------------------------------------------------------------ one cell

    async def _cell(self, index: int, plan: RunPlan, where: Place) -> Finished:
        """:raise WorkerGone: it died"""
        told: dict[str, Any] = {WORKER: where.machine.name}
        if ended := self._lab.ended_on(index):
            told |= {ENDED_WORKERS: ended}
        try:
            return await self._remote(plan, where, told)
        except (WorkerGone, asyncio.CancelledError):
            raise
        except (Cancelled, CommClosedError):  # the worker is being ended; the scheduler is gone, as `_step` will see
            raise WorkerGone(blame=False) from None
        except Exception as trouble:
            return self._record(plan, trouble, told)

    async def _remote(self, plan: RunPlan, where: Place, told: Mapping[str, Any]) -> Finished:
        from rig.cluster import cell

        def tell(text: str) -> None:
            self._progress.say(plan.id, f"{NOTE}{text}")

        parcel = await asyncio.to_thread(self._gather, plan, tell)
        await self._link.send(parcel)
        key = f"{plan.slug}-{uuid.uuid4().hex}"
        options = replace(self._options, remarks={**self._options.remarks, **told})
        order = cell.Order(key, self._link.topic, plan, parcel.manifest, options)
        client = self._link.client
        self._keys[where.worker] = key
        future = client.submit(cell.run, order, key=key, workers=[where.worker], pure=False)
        try:
            blob = await future
        except KilledWorker:
            raise WorkerGone(blame=True) from None
        except FutureCancelledError:  # by Dask, which has lost the scheduler
            raise WorkerGone(blame=False) from None
        finally:
            with contextlib.suppress(OSError):  # when the scheduler is gone there is nothing to give up
                await client.cancel([future])
        return await asyncio.to_thread(place, blob, plan, parcel.manifest, self._options.results)

    def _record(self, plan: RunPlan, trouble: Exception | None, told: Mapping[str, Any] | None = None) -> Finished:
        """The result of what no worker ran, or ran to the end. trouble: None for what is skipped."""
        from rig import conductor

        options = replace(self._options, remarks={**self._options.remarks, **(told or {})})
        if trouble is None:
            return conductor.run(plan, options, lambda _: None, self._cancel)
        if isinstance(trouble, RigError):
            known = Failure(type(trouble).__name__, trouble.message, "prepare", trouble.hint)
            return conductor.record(plan, options, known)
        return conductor.record(plan, options, failure(trouble), "".join(traceback.format_exception(trouble)))

    def _keep(self, number: int, finished: Finished) -> None:
        self._outcomes[number] = finished
        self._progress.end(self._plans[number].id, pool.ending(finished[0]))

    async def _end_all(self) -> None:
        """Cells that still run are given up: their workers end the guests."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for worker in self._tasks:
            if left := self._lab.leave(worker, blame=False):
                self._progress.end(self._plans[self._numbers[left[0]]].id, "cancelled")
