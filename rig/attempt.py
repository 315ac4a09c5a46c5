"""One cell among many: whatever becomes of it is a result, even when the rig itself fails."""

from __future__ import annotations

import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from rig.errors import Cancelled, RigError
from rig.model import Failure, Options, RunPlan

if TYPE_CHECKING:
    from rig.pool import Finished, Listener

FRAMES = 3  # of a traceback that a result's message has room for


def attempt(plan: RunPlan, options: Options, memory: int, listener: Listener, stop: threading.Event) -> Finished:
    """Run it. A cell that doesn't fit, or that brings the rig down, is a result like others: it must not cost a night.

    memory: MiB that could be had when the night began.

    :raise Cancelled: `stop` was set
    :raise RigError: results can't be written at all
    """
    from rig import conductor, pool

    # Not only when the night begins: by the time of a second attempt another program may have ended.
    if pool.lack(plan, memory) and (lack := pool.lack(plan, pool.available_memory())):
        return conductor.record(plan, options, Failure(type(lack).__name__, lack.message, "prepare", lack.hint))
    try:
        return conductor.run(plan, options, listener, stop)
    except Cancelled:
        raise
    except RigError as problem:
        trouble = Failure(type(problem).__name__, problem.message, "", problem.hint)
        return conductor.record(plan, options, trouble)  # raises in its turn when results can't be written at all
    except Exception as bug:
        return conductor.record(plan, options, failure(bug), "".join(traceback.format_exception(bug)))


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
