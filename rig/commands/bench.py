"""`rig bench`: figures of the rig itself, beside what a user would do instead."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rig.bench import FAMILIES, measure
from rig.commands.common import cancel_on_signal, catalogue_of, options_of, print_json
from rig.errors import Cancelled, CouldNotJudge, RequestError

if TYPE_CHECKING:
    from rig.bench.figures import Figure
    from rig.bench.setting import Bench

BENCHMARK = "panic"  # the scenario that is taken the time of
EXIT_CODES = """exit codes:
  0    every bound holds
  1    a bound is broken
  2    the request is wrong: unknown family or guest, no baseline
  3    something could not be measured, and no bound is broken
  130  cancelled (Ctrl-C or SIGTERM)"""


def add_options(sub: argparse.ArgumentParser) -> None:
    about = "; ".join(f"{name}: {text}" for name, text in FAMILIES.items())
    sub.add_argument("families", nargs="*", metavar="FAMILY", help=f"which figures (default: all). {about}")
    text = "what an earlier `rig bench --json` printed: say what has got worse since"
    sub.add_argument("--baseline", type=Path, metavar="FILE", help=text)


def bench(args: argparse.Namespace) -> int:
    """1 when a bound does not hold; 3 when a figure could not be measured, and no bound is broken.

    :raise Cancelled: nothing is shown then
    """
    if unknown := [name for name in args.families if name not in FAMILIES]:
        raise RequestError(f"no family of figures is called {unknown[0]!r}", hint=f"valid: {', '.join(FAMILIES)}")
    from rig.bench import figures as room
    from rig.bench.setting import Bench
    from rig.bench.table import print_table, worse_lines
    from rig.plan import plan

    before = _baseline(args.baseline) if args.baseline is not None else None
    plans = plan(catalogue_of(args), [BENCHMARK], args.guest)
    with cancel_on_signal() as cancel:
        setting = Bench(plans, options_of(args), _words(args), _say, cancel)
        found = [figure for name in args.families or FAMILIES for figure in _measure(name, setting)]
    worse = room.worse(before, found) if before is not None else []
    if args.json:
        print_json(room.document(found, _machine(), worse))
    else:
        print_table(found)
        if before is not None:
            print("\n".join(worse_lines(worse, room.compared(before, found))))
    return room.exit_code(found)


def _measure(family: str, setting: Bench) -> list[Figure]:
    """What keeps a family from being measured is said in its place: the others are measured all the same."""
    from rig.bench.figures import Figure

    try:
        return measure(family, setting)
    except Cancelled:
        raise
    except CouldNotJudge as problem:
        return [Figure(family, FAMILIES[family], None, "", missing=str(problem))]


def _baseline(path: Path) -> list[Figure]:
    from rig.bench.figures import read

    try:
        text = path.read_bytes()
    except OSError as problem:
        hint = "make one: rig bench --json > FILE"
        raise RequestError(f"{path} can't be read: {problem.strerror}", hint=hint) from problem
    return read(text, str(path))


def _words(args: argparse.Namespace) -> list[str]:
    """What the rigs that are started for a measurement are told, too."""
    catalogues = [word for directory in args.catalogue for word in ("--catalogue", str(directory))]
    return ["--accel", args.accel, "--deadline", f"{args.deadline:g}", *catalogues]


def _say(text: str) -> None:
    print(f"rig: {text}", file=sys.stderr, flush=True)


def _machine() -> dict[str, Any]:
    """What the figures were measured on. load: how many processes wanted to run, over the last minutes."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
    }
