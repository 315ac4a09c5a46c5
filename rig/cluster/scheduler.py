"""The scheduler: Dask's own, and on it the files that cells are made of, for workers to fetch by their hash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from rig.cluster.address import Address, Tls, security
from rig.cluster.blobs import Blobs
from rig.cluster.serve import ended_by_signal
from rig.errors import EvidenceError, MachineError

# Dask's pages for people and its metrics, which TLS does not protect: on this machine only, at any free port.
PAGES = "127.0.0.1:0"


class Store(SchedulerPlugin):
    """What the rig asks of a scheduler beyond Dask's own: files by hash, and that one client at a time uses it."""

    name = "rig"

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._holder = ""  # id of the client whose matrix runs

    async def start(self, scheduler: Scheduler) -> None:
        scheduler.handlers.update(rig_claim=self.claim, rig_lacks=self.lacks, rig_put=self.put, rig_get=self.get)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        if client == self._holder:
            self._holder = ""

    def claim(self, client: str) -> bool:
        """Whether the workers are this client's from now on, until it is gone."""
        self._holder = self._holder or client
        return self._holder == client

    def lacks(self, sha256: list[str]) -> list[str]:
        return self._blobs.lacks(list(sha256))

    def put(self, client: str, sha256: str, offset: int, piece: bytes, size: int) -> str:
        """Returns what is wrong with it; empty when nothing is."""
        try:
            self._blobs.add_piece(sha256, client, offset, piece, size)
        except (EvidenceError, OSError) as problem:
            return str(problem)
        return ""

    def get(self, sha256: str, offset: int) -> bytes:
        return self._blobs.read(sha256, offset)


async def serve(host: str, port: int, tls: Tls | None, store: Path, announce: Callable[[Address], None]) -> None:
    """Until Ctrl-C or SIGTERM. port: 0 for any. store: directory of the files. announce: is told where it listens.

    :raise MachineError: it can't listen there
    """
    ended = ended_by_signal()
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "protocol": "tls" if tls else "tcp",
        "security": security(tls),
        "plugins": [Store(Blobs(store))],
        "allowed_failures": 0,  # the client, not Dask, runs a dead worker's cell elsewhere
        "dashboard": False,
        "dashboard_address": PAGES,
    }
    try:
        scheduler = await Scheduler(**options)
    except RuntimeError as problem:  # Dask's, for whatever it was
        raise MachineError(
            f"no scheduler can be started at {host}:{port}: {problem.__cause__ or problem}",
            hint="choose another --host or --port",
        ) from problem
    async with scheduler:
        announce(Address(scheduler.address, tls))
        await ended.wait()
