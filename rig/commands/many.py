"""How `rig matrix` runs its cells: one that dies is one result, what was stopped can be gone on with."""

from __future__ import annotations

import dataclasses
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rig.commands.common import cancel_on_signal, exit_code, keep_history, require_writable
from rig.errors import Cancelled, RigError
from rig.model import Failure, Options, RunPlan

if TYPE_CHECKING:
    from rig.batch import Attempt, Batch
    from rig.matrix import Timings
    from rig.pool import Capacity, Finished

FRAMES = 3  # of a traceback that a result's message has room for
GO_ON = "the same command with --resume goes on from here"


@dataclasses.dataclass(frozen=True)
class Request:
    """What `rig matrix` was asked for, besides what all commands that run guests understand."""

    patterns: Sequence[str]
    shard: str  # K/N; empty: everything
    resume: bool
    retry: bool


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
        print(f"rig: {done} of {len(plans)} cells are finished, begun {batch.started}", file=sys.stderr)
    with cancel_on_signal() as cancel:
        outcomes = _run(plans, taken, batch, options, request.retry, cancel)
    finished = [outcome for outcome in outcomes if outcome is not None]
    left = room.left(outcomes, request.retry)
    if finished:
        show(finished)
        keep_history(options.results, finished)
    if left:
        raise Cancelled(f"cancelled: {left} of {len(plans)} cells are left; {GO_ON}")
    return exit_code(result for result, _ in finished)


def _run(
    plans: Sequence[RunPlan],
    taken: Sequence[Finished | None],
    batch: Batch,
    options: Options,
    retry: bool,
    cancel: threading.Event,
) -> list[Finished | None]:
    from rig import batch as room
    from rig import matrix, pool
    from rig.guest.cache import default_root
    from rig.progress import open_progress

    timings, capacity = matrix.Timings(default_root() / "timings"), pool.capacity(options.jobs)
    attempt = _attempt(options, batch, timings, capacity)
    missing = [plan for plan, outcome in zip(plans, taken, strict=True) if outcome is None]
    forecast = matrix.forecast(missing, timings.read(), capacity)
    with open_progress(sys.stderr, room.left(taken, retry), forecast) as progress:
        return room.run_cells(plans, taken, attempt, capacity, progress, cancel, retry)


def _attempt(options: Options, batch: Batch, timings: Timings, capacity: Capacity) -> Attempt:
    """A cell that doesn't fit, or that brings the rig down, is a result like others: it must not cost a night."""
    from rig import conductor, pool
    from rig.batch import BATCH

    def attempt(
        plan: RunPlan, remarks: Mapping[str, Any], listener: Callable[[str], None], stop: threading.Event
    ) -> Finished:
        told = dataclasses.replace(options, remarks={BATCH: batch.started, **remarks})
        # Not only when the night begins: by the time of a second attempt another program may have ended.
        if pool.lack(plan, capacity.memory) and (lack := pool.lack(plan, pool.available_memory())):
            return conductor.record(plan, told, Failure(type(lack).__name__, lack.message, "prepare", lack.hint))
        try:
            result, where = conductor.run(plan, told, listener, stop)
        except Cancelled:
            raise
        except RigError as problem:
            trouble = Failure(type(problem).__name__, problem.message, "", problem.hint)
            return conductor.record(plan, told, trouble)  # raises in its turn when results can't be written at all
        except Exception as bug:
            return conductor.record(plan, told, failure(bug), "".join(traceback.format_exception(bug)))
        timings.keep(plan.slug, result)
        return result, where

    return attempt


def failure(bug: Exception) -> Failure:
    """What the result of a cell says in which the rig itself failed: the last line and the innermost frames."""
    frames = reversed(traceback.extract_tb(bug.__traceback__)[-FRAMES:])
    places = ", called by ".join(f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in frames)
    last = " ".join(traceback.format_exception_only(bug)[-1].split())
    return Failure(
        kind=type(bug).__name__,
        message=f"the rig itself failed: {last}; in {places}",
        phase="",
        hint="this is a bug of the rig: report it with traceback.txt, which lies with the evidence",
    )
