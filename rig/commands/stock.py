"""The commands about what there is and what is needed: list, fetch, build, doctor."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from rig.commands.common import cancel_on_signal, catalogue_of, plans_of, print_json
from rig.errors import RequestError
from rig.report.wording import printable

LISTS = ("scenarios", "guests", "kernels", "checks", "triggers", "loads", "selections")


def list_(args: argparse.Namespace) -> int:
    from rig.checks import REGISTRY
    from rig.loads import LOADS
    from rig.triggers import TRIGGERS

    catalogue = catalogue_of(args)
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
    if args.names:
        print("\n".join(name for table in rows.values() for name in table))
        return 0
    width = max(len(name) for table in rows.values() for name in table)
    for part, table in rows.items():
        print(f"{part}:")
        for name, description in table.items():
            print(f"  {name:{width}}  {printable(description)}")
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
    for plan in plans_of(args):
        if plan.skip:
            # what another scenario takes of it comes before what this one can't have
            releases.setdefault(f"{plan.kernel.name} for {plan.guest.name}", f"nothing: {plan.skip}")
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

    catalogue = catalogue_of(args)
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


def doctor(args: argparse.Namespace) -> int:
    from rig import doctor as room
    from rig.guest.cache import default_root
    from rig.vm.accel import choose

    def accel() -> str:
        chosen = choose("auto")
        return f"{chosen.name} ({chosen.reason})"

    guests = list(catalogue_of(args).guests.values())
    rows = room.examine(guests, default_root(), args.results, accel)
    if args.json:
        print_json({"rows": rows})
    else:
        print("\n".join(room.lines(rows)))
    return room.exit_code(rows)
