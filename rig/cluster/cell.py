"""What a worker does with a cell: fetch what it is made of, run it, send its evidence back."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dask.typing import Key
from distributed import Worker, WorkerPlugin, get_worker
from distributed.utils import sync

from rig import ingredients
from rig.attempt import attempt
from rig.cluster import archive
from rig.cluster.blobs import Blobs
from rig.cluster.machine import Machine
from rig.facts import Manifest
from rig.model import Brought, Options, Repeat, RunPlan

PLUGIN = "rig"


@dataclass(frozen=True)
class Order:
    """A cell to run. key: of its Dask task. topic: where the client listens for how it goes on."""

    key: str
    topic: str
    plan: RunPlan
    manifest: Manifest
    options: Options


class Cells(WorkerPlugin):
    """A worker's knowledge of its machine, and of the cell that it runs."""

    name = PLUGIN

    def __init__(self, machine: Machine, store: Path) -> None:
        self.machine = machine
        self.store = store
        self._stops: dict[str, threading.Event] = {}  # by the task's key

    @contextlib.contextmanager
    def running(self, key: str) -> Iterator[threading.Event]:
        """An event that is set when nobody wants the cell's result any more, or the worker ends."""
        stop = self._stops[key] = threading.Event()
        try:
            yield stop
        finally:
            del self._stops[key]

    def transition(self, key: Key, start: str, finish: str, **_: object) -> None:
        """Called by Dask. `released`: the client has given up a task that runs, or is gone."""
        if finish == "released" and (stop := self._stops.get(str(key))):
            stop.set()

    def teardown(self, worker: Worker) -> None:
        """Called by Dask when the worker ends, by a signal or as its scheduler is gone."""
        for stop in list(self._stops.values()):
            stop.set()


def describe(dask_worker: Worker) -> Machine | None:
    """Run by Dask on a worker: its machine. None for one that `rig cluster worker` did not start."""
    plugin = dask_worker.plugins.get(PLUGIN)
    return plugin.machine if isinstance(plugin, Cells) else None


def run(order: Order) -> bytes:
    """Run by Dask as a task: the cell's evidence directory, packed.

    :raise Cancelled: nobody wants it any more
    :raise EvidenceError: a file that it is made of came with other bytes
    """
    worker = get_worker()
    plugin = worker.plugins[PLUGIN]
    assert isinstance(plugin, Cells)  # no cell is sent to a worker that could not describe itself
    with plugin.running(order.key) as stop, tempfile.TemporaryDirectory(dir=worker.local_directory) as results:
        # What is kept by hash is what the client chose: nothing is looked up, downloaded or built here.
        brought = _bring(order.manifest, Blobs(plugin.store), worker)
        made_of = ingredients.find_brought(order.manifest, brought.root)
        options = replace(order.options, results=Path(results), repeat=Repeat(made_of, {}, brought))

        def tell(text: str) -> None:
            worker.log_event(order.topic, {"key": order.key, "text": text})

        _, where = attempt(order.plan, options, plugin.machine.memory, tell, stop)
        return archive.pack(where)


def _bring(manifest: Manifest, blobs: Blobs, worker: Worker) -> Brought:
    """All files of the manifest, in a directory of their own."""

    def fetch(sha256: str, offset: int) -> bytes:
        piece: bytes = sync(worker.loop, worker.scheduler.rig_get, sha256=sha256, offset=offset)
        return piece

    for sha256 in blobs.lacks(sorted(set(manifest.sha256.values()))):
        blobs.fetch(sha256, fetch)
    return Brought(blobs.lay_out(manifest.sha256), manifest.packages)
