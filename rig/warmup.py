"""What a run needs only after its guest has booted is imported while the guest is busy: Python's time passes beside the
guest's.

Nothing depends on it: what is not imported by then is imported by whoever needs it.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator, Sequence

from rig import loads
from rig.checks import REGISTRY
from rig.model import LoadKind, RunPlan, Until

# In the order in which a run comes to need them. What these import themselves is not listed.
_DRIVING = ("rig.recorder", "rig.memory.image", "rig.hold", "rig.survey")
_WAYS = {LoadKind.PLAIN: "rig.plain", LoadKind.JUMP: "rig.jump"}
_JUDGING = ("rig.judge", "rig.memory.packed", "capstone", "numpy.ma")  # np.unique() imports numpy.ma
_REPORTING = (
    *("rig.report.html", "rig.report.html.render:compile_templates", "rig.report.listing"),
    *("rig.report.site", "rig.report.text", "rich.console"),
)
_DUMPING = ("rig.memory.vmcore", "elftools.elf.elffile", "rig.dump")  # of a crash only, and the slowest: last


def driving(plan: RunPlan) -> Sequence[str]:
    """What a run of this plan needs once its guest is armed: names for `warmed_up`."""
    sabotage = ("rig.saboteur",) if plan.scenario.sabotage else ()
    return (*_DRIVING, _WAYS.get(loads.kind(plan.scenario.load), "rig.crash"), *sabotage)


def judging(plan: RunPlan) -> Sequence[str]:
    """What it needs once its guest is done for."""
    families = dict.fromkeys(f"rig.checks.{REGISTRY[name].family}" for name in plan.scenario.checks)
    crash = loads.kind(plan.scenario.load) is LoadKind.CRASH
    dump = _DUMPING if crash and plan.scenario.until is Until.END else ()
    return (*families, *_JUDGING, *_REPORTING, *dump)


@contextlib.contextmanager
def warmed_up(names: Sequence[str]) -> Iterator[None]:
    """Import modules, and call those functions that are named as MODULE:FUNCTION, in a thread of their own.

    At the end of the block it is left at the next module: a cancelled run does not wait for all of them.
    """
    over = threading.Event()
    thread = threading.Thread(target=_import_all, args=(names, over), name="warm-up")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _import_all(names: Sequence[str], over: threading.Event) -> None:
    for name in names:
        if over.is_set():
            return
        try:
            module, _, function = name.partition(":")
            found = importlib.import_module(module)
            if function:
                getattr(found, function)()
        except Exception:  # whoever needs it comes upon it again, and is told
            return
