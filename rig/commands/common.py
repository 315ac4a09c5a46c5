"""What the commands share: words understood, runs carried out, verdicts shown, exit codes, and signals.

Rooms are imported where they are needed: `rig list` must not wait for numpy.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rig.errors import Cancelled, RequestError, RigError, Untold
from rig.model import Options, RunPlan, RunResult, Verdict

_UNPRINTABLE = re.compile(r"[^\n -~]")  # and much that is printable

if TYPE_CHECKING:
    from rig.catalog import Catalogue
    from rig.pool import Finished


def print_json(document: dict[str, Any]) -> None:
    """One indented JSON document on stdout, `schema` first."""
    import msgspec

    text = msgspec.json.encode({"schema": 1, **document}, enc_hook=_named)
    print(harmless_json(msgspec.json.format(text, indent=1).decode()))


def _named(value: object) -> str:
    """A path, of which not every byte need be UTF-8."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def harmless_json(text: str) -> str:
    """The same JSON without characters that steer a terminal: C1 controls, bidirectional overrides (RFC 8259, 7)."""
    return _UNPRINTABLE.sub(lambda found: json.dumps(found[0])[1:-1] if not found[0].isprintable() else found[0], text)


def tell(text: str) -> None:
    """A line for people on stderr. What came from a file, or from a guest, can't steer the terminal."""
    from rig.report.wording import printable_lines

    with contextlib.suppress(OSError):  # who does not take it must not change what the exit status says
        print("\n".join(printable_lines(f"rig: {text}")), file=sys.stderr, flush=True)


# ---------------------------------------------------------------- words


def plans_of(args: argparse.Namespace, scenarios: Sequence[str] | None = None) -> list[RunPlan]:
    """scenarios: None for every one of the catalogue, of those with a kernel of their own only on guests they list."""
    from rig.plan import plan

    catalogue = catalogue_of(args)
    names = list(catalogue.scenarios) if scenarios is None else scenarios
    kernel, vmlinux = args.kernel, args.vmlinux
    if args.kernel_tree is not None:
        if kernel is not None or vmlinux is not None:
            raise RequestError("--kernel-tree stands for --kernel and --vmlinux", hint="leave those out")
        kernel, vmlinux = _of_tree(args.kernel_tree, catalogue, args.guest, names)
    plans = plan(catalogue, names, args.guest, kernel, args.crash_kernel, vmlinux)
    if scenarios is not None:
        return plans
    return [p for p in plans if p.guest.name in p.scenario.guests or not p.scenario.kernel]


def _of_tree(
    directory: Path, catalogue: Catalogue, guests: Sequence[str], scenarios: Sequence[str]
) -> tuple[str, Path]:
    """bzImage and vmlinux of a build tree, for guests that it is for."""
    from rig.catalog import find
    from rig.kernel.tree import read_tree, require_fit

    tree = read_tree(directory)
    names = guests or [name for one in scenarios for name in find(catalogue.scenarios, one, "scenario").guests]
    selected = [find(catalogue.guests, name, "guest") for name in names]
    require_fit(tree, selected, catalogue.guests.values())
    return str(tree.bzimage.absolute()), tree.vmlinux


def catalogue_of(args: argparse.Namespace) -> Catalogue:
    from rig import catalog

    return catalog.load(catalog.extra_roots(args.catalogue))


def options_of(args: argparse.Namespace) -> Options:
    """The words whose names are those of Options; a command that lacks one gets its default."""
    names = {field.name for field in dataclasses.fields(Options)}
    return Options(**{name: value for name, value in vars(args).items() if name in names})


# ---------------------------------------------------------------- runs


def carry_out(plans: Sequence[RunPlan], options: Options, show: Callable[[Sequence[Finished]], None]) -> int:
    """Run them all and show what was finished, which is everything unless the user stops it.

    :raise Cancelled: after showing, when some of them were not finished
    """
    require_writable(options.results)
    with cancel_on_signal() as cancel:
        outcomes = run_plans(plans, options, cancel)
    finished = [outcome for outcome in outcomes if outcome is not None]
    if not finished:
        raise Cancelled("cancelled: nothing was written")
    show_and_keep(finished, options.results, show)
    if missing := len(plans) - len(finished):
        raise Cancelled(f"cancelled: {missing} of {len(plans)} runs; nothing was written for them")
    return exit_code(result for result, _ in finished)


def show_and_keep(finished: Sequence[Finished], results: Path, show: Callable[[Sequence[Finished]], None]) -> None:
    """Show what was finished, and enter it in the history of the results directory however that ends.

    :raise Untold: stdout took not all of it: says where the results are
    :raise BrokenPipeError: nobody reads it any more
    """
    try:
        show(finished)
        sys.stdout.flush()  # what is buffered is not told yet
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise _untold(problem, finished, results) from problem
    finally:
        keep_history(results, finished)


def _untold(problem: OSError, finished: Sequence[Finished], results: Path) -> Untold:
    counted = Counter(result.verdict for result, _ in finished)
    kept = ", ".join(f"{counted[verdict]} {verdict}" for verdict in Verdict if counted[verdict])
    where, operand = (finished[0][1], finished[0][1]) if len(finished) == 1 else (results, results / "RESULT_DIR")
    return Untold(
        f"stdout: {problem.strerror}: not all of the results could be shown; they are kept in {where} ({kept})",
        hint=f"make room, or send the output elsewhere; `rig check {operand}` shows what is kept",
    )


def keep_history(results: Path, finished: Sequence[Finished]) -> None:
    """Into the history and the index of the results directory. Trouble with them costs no verdict: it is only said."""
    from rig.report import site

    try:
        site.update(results, finished, tell)
    except (RigError, OSError) as problem:
        tell(f"the index of {results} is not up to date: {problem}")


def run_plans(plans: Sequence[RunPlan], options: Options, cancel: threading.Event) -> list[Finished | None]:
    """:raise MachineError: one of the guests doesn't fit into this machine's memory; nothing is run then"""
    from rig.vm.installed import ask_ahead

    ask_ahead()  # it answers while the rest is imported
    from rig import conductor, pool
    from rig.guest.cache import default_root
    from rig.matrix import Timings
    from rig.progress import open_progress

    timings = Timings(default_root() / "timings")

    def one(plan: RunPlan, listener: Callable[[str], None], stop: threading.Event) -> Finished:
        result, where = conductor.run(plan, options, listener, stop)
        timings.keep(plan.slug, result)
        return result, where

    capacity = pool.capacity(options.jobs)
    if lacks := [lack for plan in plans if (lack := pool.lack(plan, capacity.memory))]:
        raise lacks[0]
    with open_progress(sys.stderr, len(plans)) as progress:
        return pool.run_all(plans, one, capacity, progress, cancel)


def print_verdicts(finished: Sequence[Finished], as_json: bool) -> None:
    """The same for a run as for its evidence judged again."""
    if as_json:
        print_json({"runs": [{"directory": where, "result": result} for result, where in finished]})
        return
    from rig.report.text import verdict_text
    from rig.screen import Screen

    console = Screen(highlight=False)
    for number, (result, where) in enumerate(finished):
        if number:
            console.print()
        console.print(verdict_text(result, where), soft_wrap=True)


def require_writable(directory: Path) -> None:
    """Before any guest boots: can files be made there? The directory is made when it isn't there.

    :raise RequestError: they can't
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise RequestError(
            f"the results directory {directory} can't be written: {error.strerror}",
            hint="name another one with --results DIR",
        ) from error


@contextlib.contextmanager
def cancel_on_signal(what: str = "ending the guests") -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM and a closed terminal set. The runs see it, reap their guests and end.

    A thread sets it, which is told by the C library's own handler (signal.set_wakeup_fd()): Python's run in the main
    thread only, and that waits for the runs to end. A signal that comes just as it begins to wait does not wake it:
    on a busy machine a SIGTERM was seen to be noticed when all was over.
    """
    cancel = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    told, teller = os.pipe()
    os.set_blocking(teller, False)  # as set_wakeup_fd() wants it

    def pass_on() -> None:
        while came := os.read(told, 1):
            if came[0] in numbers:
                cancel.set()
                with contextlib.suppress(OSError):  # the terminal may be what has gone
                    # Not print: the main thread may be in the middle of one.
                    os.write(2, f"\nrig: {signal.Signals(came[0]).name}: {what}\n".encode())
                return  # once is enough

    thread = threading.Thread(target=pass_on, name="signals", daemon=True)
    thread.start()
    woken_before = signal.set_wakeup_fd(teller, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield cancel
    finally:
        signal.set_wakeup_fd(woken_before)
        os.close(teller)
        thread.join()
        os.close(told)
        # Once cancelled the process is about to end: a second Ctrl-C must not break that off, with a stack trace or, as
        # Python gives up its own handlers at its very end, with a signal's status instead of ours.
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if cancel.is_set() else handler)


# ---------------------------------------------------------------- exit codes

# What `git bisect run` makes of a status: 0 good, 1 to 127 bad but for 125, which skips the commit; anything above ends
# the bisection (git-bisect(1)). So a wrong request must be above 127: it says nothing about any commit.
BISECT = {0: 0, 1: 1, 3: 125}
BISECT_ABORT = 128


def bisect_code(code: int) -> int:
    """The contract's exit code as `git bisect run` understands it."""
    return code if code > BISECT_ABORT else BISECT.get(code, BISECT_ABORT)


def exit_code(results: Iterable[RunResult]) -> int:
    """The contract's exit code for all of them (at least one): a failure outweighs what could not be judged.

    What was skipped doesn't count beside anything else; alone it is nothing judged.
    """
    codes = {_exit_code(result) for result in results if result.verdict is not Verdict.SKIP}
    return next((code for code in (1, 3, 0) if code in codes), 3)


def _exit_code(result: RunResult) -> int:
    if result.verdict is Verdict.ERROR:
        return 3
    if result.as_expected:
        return 0
    verdicts = {check.name: check.verdict for check in result.checks}
    failed = {name for name, verdict in verdicts.items() if verdict is Verdict.FAIL}
    unnoticed = any(verdicts.get(name) is Verdict.PASS for name in result.expect_failed)
    unjudged = any(verdict in (Verdict.ERROR, Verdict.SKIP) for verdict in verdicts.values())
    # Nothing failed that should have passed, nor the other way round, but not everything was judged.
    return 3 if unjudged and not unnoticed and failed <= set(result.expect_failed) else 1
