"""Which cell runs on which worker: pure, told of what happens by the client.

A machine has one worker, a process, for each of its CPUs; each runs one cell at a time. So a worker that dies has died
of its own cell, or with its machine, and no other cell is blamed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rig.cluster.machine import Machine
from rig.model import Dump, RunPlan
from rig.pool import need

ATTEMPTS = 2  # workers that a cell may end: it is run elsewhere once


@dataclass(frozen=True)
class Place:
    """worker: its address, by which Dask knows it."""

    worker: str
    machine: Machine


class Lab:
    """The cells of one go (by number), and the workers that are there."""

    def __init__(self, plans: Sequence[RunPlan], places: Iterable[Place]) -> None:
        self._plans = plans
        self._places = {place.worker: place for place in places}
        self._running: dict[str, int] = {}  # by worker
        self._ended: dict[int, list[Machine]] = {}  # where a cell's workers ended
        # As in rig.pool: first what takes longest, then the largest, while there is the most room.
        self._pending = sorted(
            range(len(plans)),
            key=lambda n: (plans[n].scenario.dump is Dump.HEADERS, -plans[n].guest.cpus, -need(plans[n])),
        )

    @property
    def finished(self) -> bool:
        return not self._pending and not self._running

    @property
    def idle(self) -> bool:
        """Nothing runs."""
        return not self._running

    @property
    def machines(self) -> list[Machine]:
        """Those that have a worker, each once."""
        return list({place.machine.id: place.machine for place in self._places.values()}.values())

    def ended_on(self, number: int) -> list[str]:
        """Names of the machines on which a worker ended with this cell."""
        return [machine.name for machine in self._ended.get(number, [])]

    def join(self, place: Place) -> None:
        self._places[place.worker] = place

    def leave(self, worker: str, *, blame: bool = True) -> tuple[int, bool] | None:
        """The worker is gone. Returns the cell that it ran, and whether that is to be run elsewhere; None without one.

        blame: not so when the worker was asked to end.
        """
        place = self._places.pop(worker, None)
        number = self._running.pop(worker, None)
        if place is None or number is None:
            return None
        if blame:
            self._ended.setdefault(number, []).append(place.machine)
        again = len(self._ended.get(number, ())) < ATTEMPTS
        if again:
            self._pending.insert(0, number)
        return number, again

    def begin(self) -> tuple[int, Place] | None:
        """A cell, and where it is begun now; None when none fits anywhere."""
        free = [place for worker, place in self._places.items() if worker not in self._running]
        tried = set()  # of ten thousand cells most are alike
        for index, number in enumerate(self._pending if free else ()):
            like = self._plans[number].guest.cpus, need(self._plans[number]), *self.ended_on(number)
            if like not in tried and (place := self._best(number, free)):
                self._running[place.worker] = self._pending.pop(index)
                return number, place
            tried.add(like)
        return None

    def running(self, worker: str) -> int:
        """The cell that runs on this worker."""
        return self._running[worker]

    def end(self, worker: str) -> int:
        """The cell on this worker has ended: its number."""
        return self._running.pop(worker)

    def give_up(self) -> list[int]:
        """The cells that fit on none of the machines that are there, taken out."""
        given = [number for number in self._pending if not self._fitting(number)]
        self._pending = [number for number in self._pending if self._fitting(number)]
        return given

    def _fitting(self, number: int) -> list[Machine]:
        """Machines that have the memory for it, were they empty; as for the others, not where it has ended a worker."""
        fitting = [machine for machine in self.machines if need(self._plans[number]) <= machine.memory]
        avoided = {machine.id for machine in self._ended.get(number, [])}
        return [machine for machine in fitting if machine.id not in avoided] or fitting

    def _best(self, number: int, free: Sequence[Place]) -> Place | None:
        """Where it fits now and most CPUs are left."""
        wanted = {machine.id for machine in self._fitting(number)}
        left = {
            place: cpus
            for place in free
            if place.machine.id in wanted and (cpus := self._cpus_left(number, place.machine)) >= 0
        }
        return max(left, key=lambda place: left[place], default=None)

    def _cpus_left(self, number: int, machine: Machine) -> int:
        """CPUs that are left there beside this cell; less than 0 when it doesn't fit beside those that run."""
        there = [n for worker, n in self._running.items() if self._places[worker].machine.id == machine.id]
        memory = sum(need(self._plans[n]) for n in (*there, number))
        cpus = sum(min(self._plans[n].guest.cpus, machine.cpus) for n in (*there, number))
        return machine.cpus - cpus if memory <= machine.memory else -1
