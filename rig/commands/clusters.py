"""The command that makes a machine a part of a cluster, and what `rig matrix` understands of one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rig.commands.common import catalogue_of, print_json, tell
from rig.errors import MachineError, RequestError

if TYPE_CHECKING:
    from rig.cluster.address import Address, Tls
    from rig.cluster.machine import Machine

SCHEDULER, WORKER = "scheduler", "worker"
STORE = "cluster"  # directory in the cache: files by hash
TLS = (
    ("ca", "the authority that has signed all certificates of the cluster"),
    ("cert", "this machine's certificate"),
    ("key", "its key"),
)


def add_tls(sub: argparse.ArgumentParser) -> None:
    for name, text in TLS:
        sub.add_argument(f"--tls-{name}", type=Path, metavar="PEM", help=text)


def add_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("role", choices=(SCHEDULER, WORKER), metavar="ROLE", help=f"{SCHEDULER} or {WORKER}")
    sub.add_argument("address", nargs="?", metavar="ADDRESS", help="of the scheduler, for a worker: tcp://HOST:PORT")
    text = "to listen on (default: 127.0.0.1); another than the loopback takes TLS"
    sub.add_argument("--host", metavar="HOST", help=text)
    sub.add_argument("--port", type=int, metavar="PORT", help="of a scheduler (default: 8786; 0: any)")
    add_tls(sub)


def address_of(args: argparse.Namespace) -> Address | None:
    """The scheduler that `--cluster` names, None without it."""
    from rig.cluster import address

    tls = _tls(args)
    if args.cluster is not None:
        if args.jobs:
            raise RequestError(
                "--jobs is for this machine, and a cluster's workers run the cells",
                hint=f"give it to them: rig cluster {WORKER} --jobs N",
            )
        return address.parse(args.cluster, tls)
    if tls is not None:
        raise RequestError("TLS is for a cluster", hint="name its scheduler with --cluster")
    return None


def cluster(args: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM."""
    from rig.cluster import address

    tls, host = _tls(args), args.host or address.LOOPBACK
    address.require_safe(host, tls)
    if (args.address is None) == (args.role == WORKER):
        raise RequestError(
            f"a worker takes the address of a scheduler, a {SCHEDULER} takes none",
            hint=f"rig cluster {SCHEDULER}; then, on each machine: rig cluster {WORKER} tcp://HOST:PORT",
        )
    if args.role == WORKER:
        return _worker(args, address.parse(args.address, tls), host)
    return _scheduler(args, host, tls)


def _tls(args: argparse.Namespace) -> Tls | None:
    from rig.cluster import address

    return address.tls_of(args.tls_ca, args.tls_cert, args.tls_key)


def _scheduler(args: argparse.Namespace, host: str, tls: Tls | None) -> int:
    import asyncio

    from rig.cluster import address
    from rig.guest.cache import default_root

    address.require_engine()
    from rig.cluster import scheduler

    def announce(where: Address) -> None:
        if args.json:
            print_json({"scheduler": where.text})
            sys.stdout.flush()
        else:
            tell(f"scheduler at {where.text}")

    port = address.PORT if args.port is None else args.port
    asyncio.run(scheduler.serve(host, port, tls, default_root() / STORE, announce))
    return 0


def _worker(args: argparse.Namespace, scheduler: Address, host: str) -> int:
    """:raise MachineError: this machine can't run guests, or the scheduler can't be reached"""
    import asyncio

    from rig.cluster import address
    from rig.guest.cache import default_root

    if args.port is not None:
        raise RequestError("a worker listens on any free port", hint="leave out --port")
    address.require_engine()
    machine = _examined(args)
    from rig.cluster import worker

    def announce() -> None:
        if args.json:
            print_json({"scheduler": scheduler.text, "machine": machine})
            sys.stdout.flush()
        else:
            tell(f"{machine.cpus} workers for {scheduler.text}, {machine.memory} MiB for guests, {machine.accel}")

    asyncio.run(worker.serve(scheduler, host, machine, default_root() / STORE, announce))
    return 0


def _examined(args: argparse.Namespace) -> Machine:
    """This machine, as `rig doctor` finds it.

    :raise MachineError: something is missing without which no guest runs
    """
    from rig import doctor, pool
    from rig.cluster.machine import this_machine
    from rig.guest.cache import default_root
    from rig.vm import accel
    from rig.vm.installed import qemu_version

    root = default_root()
    guests = catalogue_of(args).guests.values()
    rows = doctor.examine(guests, root, root, lambda: accel.choose("auto", memo=root / "kvm.json").name)
    missing = [row for row in rows if row.state is doctor.State.MISSING]
    if missing:
        raise MachineError(
            "\n".join(["this machine gets no cells, for it can't run guests:", *doctor.lines(missing)]),
            hint="`rig doctor` says more",
        )
    capacity = pool.capacity(args.jobs)
    return this_machine(capacity.cpus, capacity.memory, qemu_version(), accel.choose("auto", root / "kvm.json").name)
