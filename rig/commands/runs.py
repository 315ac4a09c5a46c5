"""The commands that run guests or judge what they left: run, matrix, check, selftest."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rig.commands import clusters, interactive
from rig.commands.common import (
    carry_out,
    catalogue_of,
    exit_code,
    options_of,
    plans_of,
    print_json,
    print_verdicts,
)
from rig.errors import RequestError
from rig.model import Dump, RunPlan, Until

if TYPE_CHECKING:
    from rig.pool import Finished

NIGHTLY = "nightly"  # the selection that `rig matrix` runs unless others are named


def run(args: argparse.Namespace) -> int:
    plans, options = _until(plans_of(args, [args.scenario]), args.until), options_of(args)
    if options.keep_dump and plans[0].scenario.dump is Dump.HEADERS:
        raise RequestError(
            f"the scenario {args.scenario} takes only the headers of the dump: there is no dump to keep",
            hint='--keep-dump is for scenarios with dump = "raw" or "makedumpfile", like dump-raw',
        )
    if args.stop_at is not None:
        if args.times > 1:
            raise RequestError("a guest is held once", hint="leave out --repeat, or --stop-at")
        return interactive.run_held(args, plans)
    if args.times > 1 and not args.json:
        return carry_out(plans * args.times, options, _print_repeated)
    return carry_out(plans * args.times, options, lambda done: print_verdicts(done, args.json))


def _print_repeated(finished: Sequence[Finished]) -> None:
    """In full those that are not as expected; then how many came to what."""
    from rig.matrix import repeated_lines

    print_verdicts([one for one in finished if not one[0].as_expected], as_json=False)
    print("\n".join(repeated_lines([result for result, _ in finished])))


def _until(plans: list[RunPlan], until: Until) -> list[RunPlan]:
    from rig.catalog import registries
    from rig.plan import until_handover

    return plans if until is Until.END else [until_handover(plan, registries().later) for plan in plans]


def matrix(args: argparse.Namespace) -> int:
    """Cells whose request is refused are results like others: one unsuitable kernel must not cost a night."""
    from rig import matrix as room
    from rig import shard
    from rig.commands.many import Request, carry_out_cells
    from rig.plan import matrix as cells

    cluster = clusters.address_of(args)
    patterns = args.patterns or [NIGHTLY]
    plans = _until(cells(catalogue_of(args), patterns), args.until)
    if args.shard:
        number, count = args.shard
        plans = shard.split(plans, count, shard.shipped())[number - 1]
    if args.plan:
        return _print_plan(plans, args)

    def show(finished: Sequence[Finished]) -> None:
        if args.json:
            print_verdicts(finished, as_json=True)
        else:
            print("\n".join(room.lines([result for result, _ in finished])))

    shard_text = "{}/{}".format(*args.shard) if args.shard else ""
    request = Request(patterns, shard_text, args.resume, args.retry, cluster)
    options = dataclasses.replace(options_of(args), refused_is_error=True)
    return carry_out_cells(plans, request, options, show)


def _print_plan(plans: Sequence[RunPlan], args: argparse.Namespace) -> int:
    from rig import matrix as room
    from rig import pool
    from rig.guest.cache import default_root

    known = room.Timings(default_root() / "timings").read()
    if not args.json:
        print("\n".join(room.plan_lines(plans, known, pool.capacity(args.jobs))))
        return 0
    cells = [
        {"id": plan.id, "skip": plan.skip, "seconds": seconds, "measured": plan.slug in known}
        for plan, seconds in zip(plans, room.estimates(plans, known), strict=True)
    ]
    print_json({"cells": cells})
    return 0


def check(args: argparse.Namespace) -> int:
    from rig.judge import judge_dir

    judged = [(judge_dir(directory), directory) for directory in args.directories]
    print_verdicts(judged, args.json)
    return exit_code(result for result, _ in judged)


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

    code = carry_out(room.plans(catalogue_of(args), args.guest, args.quick), options_of(args), show)
    everything = not args.quick and not args.guest
    return 1 if everything and unproved else code
