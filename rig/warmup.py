"""What a run needs only after its guest has booted is imported while it boots: Python's time passes beside the guest's.

Nothing depends on it: what is not imported by then is imported by whoever needs it.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator, Sequence

from rig.checks import REGISTRY
from rig.model import RunPlan

# In the order in which a run comes to need them. What these import themselves is not listed.
_DRIVING = ("rig.recorder", "rig.memory.image", "rig.hold", "rig.vm.tracing", "rig.kernel.exception", "rig.injection")
_READING = ("rig.saboteur", "rig.survey", "rig.dump")
_JUDGING = ("rig.judge", "rig.report.html", "rig.report.listing", "rig.report.site", "rig.report.text", "rich.console")


def modules(plan: RunPlan) -> Sequence[str]:
    """What a run of this plan needs after its guest has booted."""
    families = dict.fromkeys(f"rig.checks.{REGISTRY[name].family}" for name in plan.scenario.checks)
    return (*_DRIVING, *_READING, *families, *_JUDGING)


@contextlib.contextmanager
def warmed_up(names: Sequence[str]) -> Iterator[None]:
    """Import modules, and compile the templates of the pages, in a thread of their own.

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
            importlib.import_module(name)
        except Exception:  # whoever needs it imports it again, and is told
            return
    if not over.is_set():
        from rig.report.html.render import compile_templates

        compile_templates()
