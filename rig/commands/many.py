"""How `rig matrix` runs its cells: one that dies is one result, what was stopped can be gone on with."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rig.commands.common import cancel_on_signal, exit_code, require_writable, show_and_keep, tell
from rig.errors import Cancelled
from rig.model import Options, RunPlan

if TYPE_CHECKING:
    from rig.batch import Batch, Execute
    from rig.cluster.address import Address
    from rig.matrix import Timings
    from rig.pool import Capacity, Finished, Listener
    from rig.progress import Progress

GO_ON = "the same command with --resume goes on from here"


@dataclasses.dataclass(frozen=True)
class Request:
    """What `rig matrix` was asked for, besides what all commands that run guests understand."""

    patterns: Sequence[str]
    shard: str  # K/N; empty: everything
    resume: bool
    retry: bool
    cluster: Address | None = None  # None: the cells run on this machine


def carry_out_cells(
    plans: Sequence[RunPlan], request: Request, options: Options, show: Callable[[Sequence[Finished]], None]
) -> int:
    """Run what is not finished yet and show everything that is.

    :raise Cancelled: after showing, when some of them were not finished
    """
    from rig import batch as room

    require_writable(options.results)
    begin = room.resume if request.resume else room.begin
    batch = begin(options.results, request.patterns, request.shard, plans)
    taken: list[Finished | None] = [None] * len(plans)
    if request.resume:
        taken = room.find_finished(options.results, batch, plans)
        done = len(plans) - room.left(taken, request.retry)
        tell(f"{done} of {len(plans)} cells are finished, begun {batch.started}")
    with cancel_on_signal() as cancel:
        outcomes = _run(plans, taken, batch, options, request, cancel)
    finished = [outcome for outcome in outcomes if outcome is not None]
    left = room.left(outcomes, request.retry)
    if finished:
        show_and_keep(finished, options.results, show)
    if left:
        raise Cancelled(f"cancelled: {left} of {len(plans)} cells are left; {GO_ON}")
    return exit_code(result for result, _ in finished)


def _run(
    plans: Sequence[RunPlan],
    taken: Sequence[Finished | None],
    batch: Batch,
    options: Options,
    request: Request,
    cancel: threading.Event,
) -> list[Finished | None]:
    from rig import batch as room
    from rig import matrix
    from rig.guest.cache import default_root
    from rig.progress import open_progress

    timings = matrix.Timings(default_root() / "timings")
    options = dataclasses.replace(options, remarks={room.BATCH: batch.started})
    with _engine(request.cluster, options, timings, cancel) as (execute, capacity):
        missing = [plan for plan, outcome in zip(plans, taken, strict=True) if outcome is None]
        forecast = matrix.forecast(missing, timings.read(), capacity)
        with open_progress(sys.stderr, room.left(taken, request.retry), forecast) as progress:
            return room.run_cells(plans, taken, execute, progress, cancel, request.retry)


@contextlib.contextmanager
def _engine(
    cluster: Address | None, options: Options, timings: Timings, cancel: threading.Event
) -> Iterator[tuple[Execute, Capacity]]:
    """What runs cells, here or on a cluster, and how many it has room for."""
    if cluster is None:
        yield _here(options, timings)
        return
    from rig.cluster.client import connected

    with connected(cluster, options, cancel) as engine:
        yield engine.execute, engine.capacity


def _here(options: Options, timings: Timings) -> tuple[Execute, Capacity]:
    """On this machine."""
    from rig import pool
    from rig.attempt import attempt

    capacity = pool.capacity(options.jobs)

    def execute(
        plans: Sequence[RunPlan], remarks: Mapping[str, Any], progress: Progress, cancel: threading.Event
    ) -> list[Finished | None]:
        told = dataclasses.replace(options, remarks={**options.remarks, **remarks})

        def one(plan: RunPlan, listener: Listener, stop: threading.Event) -> Finished:
            result, where = attempt(plan, told, capacity.memory, listener, stop)
            timings.keep(plan.slug, result)
            return result, where

        return pool.run_all(plans, one, capacity, progress, cancel)

    return execute, capacity
