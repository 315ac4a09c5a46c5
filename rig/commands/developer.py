"""The commands of a developer whose series went red: rerun."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rig.commands.common import cancel_on_signal, carry_out, options_of, print_json, print_verdicts
from rig.errors import Cancelled
from rig.report.wording import printable_lines

if TYPE_CHECKING:
    from rig.pool import Finished


def rerun(args: argparse.Namespace) -> int:
    """Says what can't be had before anything boots. The exit code is that of the new run."""
    from rig import rerun as room
    from rig.guest.packages import PackageCache

    evidence = room.read_evidence(args.directory)
    facts, before = evidence.facts, evidence.result
    options = room.options_of(evidence, options_of(args))
    cache = PackageCache(progress=lambda text: print(text, file=sys.stderr, flush=True))
    with cancel_on_signal("nothing was started yet") as cancel:
        outlook = room.examine(facts, cache, options, cancel)
        if outlook.differences and not args.anyway:
            raise room.refuse(args.directory, outlook)
        made_of = room.substitute(facts, outlook, cache, cancel)
        if cancel.is_set():
            raise Cancelled("cancelled: nothing was written")
    again = room.repeat(args.directory, facts, outlook, made_of)

    def show(finished: Sequence[Finished]) -> None:
        changed = room.changes(before, finished[0][0])
        if args.json:
            runs = [{"directory": where, "result": result} for result, where in finished]
            print_json({"runs": runs, "rerun": {**again.told, "changes": [dataclasses.asdict(c) for c in changed]}})
            return
        print_verdicts(finished, as_json=False)
        print("\n".join(printable_lines("\n".join(["", *room.lines(again.told, changed)]))))

    return carry_out([facts.plan], dataclasses.replace(options, repeat=again), show)
