"""What each command does once its words are understood. Returns the exit code.

Rooms are imported by the command that needs them: `rig list` must not wait for numpy.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rig.errors import Cancelled, RequestError
from rig.model import Dump, Options, RunPlan, RunResult, Verdict

if TYPE_CHECKING:
    from rig.catalog import Catalogue
    from rig.pool import Finished

NIGHTLY = "nightly"  # the selection that `rig matrix` runs unless others are named
BENCHMARK = "panic"  # the scenario that `rig bench run` takes the time of
LISTS = ("scenarios", "guests", "kernels", "checks", "triggers", "loads", "selections")


def print_json(document: dict[str, Any]) -> None:
    """One indented JSON document on stdout, `schema` first."""
    import msgspec

    text = msgspec.json.encode({"schema": 1, **document}, enc_hook=str)
    print(msgspec.json.format(text, indent=1).decode())


# ---------------------------------------------------------------- running and judging


def run(args: argparse.Namespace) -> int:
    plans, options = _plans(args, [args.scenario]), _options(args)
    if options.keep_dump and plans[0].scenario.dump is Dump.HEADERS:
        raise RequestError(
            f"the scenario {args.scenario} takes only the headers of the dump: there is no dump to keep",
            hint='--keep-dump is for scenarios with dump = "raw" or "makedumpfile", like dump-raw',
        )
    return _carry_out(plans, options, lambda done: _print_verdicts(done, args.json))


def _carry_out(plans: Sequence[RunPlan], options: Options, show: Callable[[Sequence[Finished]], None]) -> int:
    """Run them all and show what was finished, which is everything unless the user stops it.

    :raise Cancelled: after showing, when some of them were not finished
    """
    require_writable(options.results)
    with cancel_on_signal() as cancel:
        outcomes = _run_plans(plans, options, cancel)
    finished = [outcome for outcome in outcomes if outcome is not None]
    if not finished:
        raise Cancelled("cancelled: nothing was written")
    show(finished)
    if missing := len(plans) - len(finished):
        raise Cancelled(f"cancelled: {missing} of {len(plans)} runs; nothing was written for them")
    return exit_code(result for result, _ in finished)


def matrix(args: argparse.Namespace) -> int:
    """Cells whose request is refused are results like others: one unsuitable kernel must not cost a night."""
    from rig import matrix as room
    from rig import pool
    from rig.guest.cache import default_root
    from rig.plan import matrix as cells

    plans = cells(_catalogue(args), args.patterns or [NIGHTLY])
    options = dataclasses.replace(_options(args), refused_is_error=True)
    if args.plan:
        jobs = options.jobs or pool.cores()
        known = room.Timings(default_root() / "timings").read()
        if args.json:
            rows = zip(plans, room.estimates(plans, known), strict=True)
            print_json({"cells": [{"id": p.id, "skip": p.skip, "seconds": seconds} for p, seconds in rows]})
        else:
            print("\n".join(room.plan_lines(plans, known, jobs)))
        return 0

    def show(finished: Sequence[Finished]) -> None:
        if args.json:
            _print_verdicts(finished, as_json=True)
        else:
            print("\n".join(room.lines([result for result, _ in finished])))

    return _carry_out(plans, options, show)


def check(args: argparse.Namespace) -> int:
    from rig.judge import judge_dir

    judged = [(judge_dir(directory), directory) for directory in args.directories]
    _print_verdicts(judged, args.json)
    return exit_code(result for result, _ in judged)


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


def _plans(args: argparse.Namespace, scenarios: Sequence[str] | None = None) -> list[RunPlan]:
    """scenarios: None for every one of the catalogue, of those with a kernel of their own only on guests they list."""
    from rig.plan import plan

    catalogue = _catalogue(args)
    names = list(catalogue.scenarios) if scenarios is None else scenarios
    plans = plan(catalogue, names, args.guest, args.kernel, args.crash_kernel, args.vmlinux)
    if scenarios is not None:
        return plans
    return [p for p in plans if p.guest.name in p.scenario.guests or not p.scenario.kernel]


def _catalogue(args: argparse.Namespace) -> Catalogue:
    from rig import catalog

    return catalog.load(catalog.extra_roots(args.catalogue))


def _options(args: argparse.Namespace) -> Options:
    """The words whose names are those of Options; a command that lacks one gets its default."""
    names = {field.name for field in dataclasses.fields(Options)}
    return Options(**{name: value for name, value in vars(args).items() if name in names})


def _run_plans(plans: Sequence[RunPlan], options: Options, cancel: threading.Event) -> list[Finished | None]:
    from rig import conductor, pool
    from rig.guest.cache import default_root
    from rig.matrix import Timings
    from rig.progress import open_progress

    timings = Timings(default_root() / "timings")

    def one(plan: RunPlan, listener: Callable[[str], None], stop: threading.Event) -> Finished:
        result, where = conductor.run(plan, options, listener, stop)
        timings.keep(plan.slug, result)
        return result, where

    jobs = pool.workers(plans, options.jobs, pool.cores(), pool.available_memory())
    with open_progress(sys.stderr, len(plans)) as progress:
        return pool.run_all(plans, one, jobs, progress, cancel)


def _print_verdicts(finished: Sequence[Finished], as_json: bool) -> None:
    """The same for a run as for its evidence judged again."""
    if as_json:
        print_json({"runs": [{"directory": where, "result": result} for result, where in finished]})
        return
    from rich.console import Console

    from rig.report.text import verdict_text

    console = Console(highlight=False)  # styles only where the terminal has them
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
    """An event that Ctrl-C, SIGTERM and a closed terminal set. The runs see it, reap their guests and end."""
    cancel = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if not cancel.is_set():
            # Not print: the signal may have come in the middle of one, and streams are not reentrant.
            os.write(2, f"\nrig: {signal.Signals(number).name}: {what}\n".encode())
        cancel.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield cancel
    finally:
        # Once cancelled the process is about to end: a second Ctrl-C must not break that off, with a stack trace or, as
        # Python gives up its own handlers at its very end, with a signal's status instead of ours.
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if cancel.is_set() else handler)


# ---------------------------------------------------------------- reports


def report(args: argparse.Namespace) -> int:
    from rig.evidence import Evidence
    from rig.judge import judge_dir
    from rig.report.html import render_run
    from rig.report.listing import hand_over_listing

    written = []
    for directory in args.directories:
        evidence = Evidence(directory)
        page = render_run(judge_dir(directory), evidence, hand_over_listing(evidence))
        target = directory / "report.html" if args.html is None else args.html / f"{directory.resolve().name}.html"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(page, encoding="utf-8")
        except OSError as error:
            raise RequestError(
                f"{target} can't be written: {error.strerror}", hint="choose a place with --html DIR"
            ) from error
        written.append(target)
    if args.json:
        print_json({"written": written})
    else:
        print("\n".join(map(str, written)))
    return 0


# ---------------------------------------------------------------- what there is


def list_(args: argparse.Namespace) -> int:
    from rig.checks import REGISTRY
    from rig.loads import LOADS
    from rig.triggers import TRIGGERS

    catalogue = _catalogue(args)
    tables: dict[str, Any] = {
        "scenarios": catalogue.scenarios,
        "guests": catalogue.guests,
        "kernels": catalogue.kernels,
        "checks": REGISTRY,
        "triggers": TRIGGERS,
        "loads": LOADS,
        "selections": catalogue.selections,
    }
    wanted = [args.what] if args.what else LISTS
    rows = {part: {name: entry.description for name, entry in sorted(tables[part].items())} for part in wanted}
    if args.json:
        print_json({part: [{"name": n, "description": d} for n, d in table.items()] for part, table in rows.items()})
        return 0
    width = max(len(name) for table in rows.values() for name in table)
    for part, table in rows.items():
        print(f"{part}:")
        for name, description in table.items():
            print(f"  {name:{width}}  {description}")
    return 0


def fetch(args: argparse.Namespace) -> int:
    """The newest of everything that the selected runs need; without a selection, that all scenarios need.

    Of a kernel that is built from source, the source. Runs that are skipped need nothing.
    """
    from rig.catalog import control
    from rig.guest import hypervisor
    from rig.guest.apt import host_arch
    from rig.guest.packages import PackageCache
    from rig.triggers import TRIGGERS

    cache = PackageCache(progress=lambda text: print(text, file=sys.stderr, flush=True), refresh=True)
    releases: dict[str, str] = {}
    for plan in _plans(args):
        if plan.skip:
            releases[f"{plan.kernel.name} for {plan.guest.name}"] = f"nothing: {plan.skip}"
            continue
        into = plan.into or plan.guest
        for arch in dict.fromkeys((plan.guest.arch, into.arch)):
            cache.userland(arch, plan.scenario.dump)
        if plan.guest.hypervisor:
            releases[plan.guest.hypervisor] = hypervisor.obtain(plan.guest.hypervisor, cache).version
        for kernel, guest in dict.fromkeys(((plan.kernel, plan.guest), (plan.crash_kernel, into))):
            where = f"{kernel.name} for {guest.name}"
            if kernel.source:
                version = cache.package(kernel.source, host_arch(), kernel.suite).version
                releases[where] = f"to be built from {kernel.source} {version}"
                continue
            files = cache.kernel(kernel, guest)
            releases[where] = files.release
            takes_module = control(plan.scenario) is not None or TRIGGERS[plan.scenario.trigger].module
            if kernel is plan.kernel and kernel.headers and takes_module:
                cache.headers(files, kernel.headers)
    if args.json:
        print_json({"cache": cache.cache.root, "kernels": releases})
    else:
        print("\n".join(f"{name}: {release}" for name, release in releases.items()))
    return 0


def build(args: argparse.Namespace) -> int:
    """One kernel, for each flavour that the guests have: one after the other, each with all jobs."""
    from rig import pool
    from rig.catalog import find, one_of
    from rig.guest.packages import PackageCache
    from rig.kernel.build import build as build_kernel

    catalogue = _catalogue(args)
    kernel = find(catalogue.kernels, args.kernel, "kernel")
    if not kernel.source:
        from_source = [name for name, other in catalogue.kernels.items() if other.source]
        raise RequestError(
            f"{kernel.name} is not built from source, there is nothing to build", hint=one_of(from_source)
        )
    named = [find(catalogue.guests, name, "guest") for name in args.guest or catalogue.guests]
    suitable = [guest for guest in named if not kernel.flavours or guest.flavour in kernel.flavours]
    if not suitable or (args.guest and len(suitable) < len(named)):
        raise RequestError(f"{kernel.name} exists for {', '.join(kernel.flavours)} only", hint="choose another --guest")
    guests = {guest.flavour: guest for guest in reversed(suitable)}  # the first of each flavour
    cache = PackageCache(progress=lambda text: print(text, file=sys.stderr, flush=True))
    built = []
    with cancel_on_signal("ending the build; the next one goes on from here") as cancel:
        for flavour in dict.fromkeys(guest.flavour for guest in suitable):
            outcome = build_kernel(kernel, guests[flavour], cache, cancel, args.jobs or pool.cores())
            built.append({"flavour": flavour, **dataclasses.asdict(outcome)})
            if not args.json:
                when = "built before, in" if outcome.cached else "built in"
                print(f"{kernel.name} for {flavour}: {outcome.files.release}, {when} {outcome.seconds:.0f} s")
                print(f"  {outcome.files.bzimage.parent}", flush=True)
    if args.json:
        print_json({"kernels": built})
    return 0


# ---------------------------------------------------------------- the rig and its machine


def doctor(args: argparse.Namespace) -> int:
    from rig import doctor as room
    from rig.guest.cache import default_root
    from rig.vm.accel import choose

    def accel() -> str:
        chosen = choose("auto")
        return f"{chosen.name} ({chosen.reason})"

    guests = list(_catalogue(args).guests.values())
    rows = room.examine(guests, default_root(), args.results, accel)
    if args.json:
        print_json({"rows": rows})
    else:
        print("\n".join(room.lines(rows)))
    return room.exit_code(rows)


def selftest(args: argparse.Namespace) -> int:
    """1 also when, having run everything, some check was failed by no sabotage: then nothing shows that it can be."""
    from rig import selftest as room
    from rig.checks import REGISTRY

    unproved: list[str] = []

    def show(finished: Sequence[Finished]) -> None:
        table = room.rows(result for result, _ in finished)
        unproved.extend(room.unproved(table, REGISTRY))
        if args.json:
            print_json({"sabotages": table, "unproved": unproved})
        else:
            print("\n".join(room.lines(table, REGISTRY)))

    code = _carry_out(room.plans(_catalogue(args), args.guest, args.quick), _options(args), show)
    everything = not args.quick and not args.guest
    return 1 if everything and unproved else code


def bench(args: argparse.Namespace) -> int:
    """One guest after the other: guests side by side would take each other's time. 1 when a bound does not hold."""
    from rig import bench as room
    from rig.plan import plan

    plans = plan(_catalogue(args), [BENCHMARK], args.guest)
    with cancel_on_signal() as cancel:
        figures = [
            figure
            for one in plans
            for figure in room.measure(one, _options(args), lambda text: print(text, file=sys.stderr), cancel)
        ]
    if args.json:
        print_json({"figures": figures})
    else:
        print("\n".join(room.lines(figures)))
    return 0 if all(figure.holds for figure in figures) else 1
